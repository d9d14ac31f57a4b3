"""Every key is described; parts' options come from their signatures."""

import re
import shlex

import pytest
from ml_collections import ConfigDict

from dhat_jax import from_config, main
from dhat_jax.attacks.autoattack import checks
from dhat_jax.configs import cifar10, digits
from dhat_jax.from_config import keys, reference
from dhat_jax.registry import Registry


def dotted(node, prefix=''):
  for name, value in node.items():
    if isinstance(value, dict):
      yield from dotted(value, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}'


def test_every_key_that_is_checked_is_described():
  expected = {
    *dotted(keys._TOP),
    *(f'{reference.STAGE}.{key}' for key in dotted(keys._STAGE)),
  }
  # What the recipes give beside: options of the parts that they name.
  options = {
    f'{reference.STAGE}.{key}'
    for key in ('loss.beta', 'schedule.learning_rate')
  }
  shared = {
    f'{reference.STAGE}.{part}.{key}'
    for part, names in {
      'schedule': ('drop_epochs', 'drop_factor', 'warmup_epochs'),
      'optimizer': (
        'momentum',
        'nesterov',
        'weight_decay',
        'decay_norm',
        'clip_norm',
      ),
    }.items()
    for key in names
  }
  assert set(reference.KEYS) == expected | options | shared


def refused(config):
  try:
    from_config.check(config)
  except ValueError:
    return True
  return False


def test_keys_that_may_be_missing():
  may_be_missing = set()
  for key in reference.KEYS:
    config = cifar10.get_config()
    *groups, name = key.replace(reference.STAGE, 'second_head').split('.')
    node = config
    for group in groups:
      node = node[group]
    if name in node:
      del node[name]
    if not refused(config):
      may_be_missing.add(key)
  assert may_be_missing == set(reference.OPTIONAL)


@pytest.mark.parametrize(
  ('key', 'others'),
  [
    ('validation.attack', ['autoattack', *checks.NAMES]),
    ('model.attach', ['stem', 'block4', 'tail']),
  ],
)
def test_choices_are_all_that_work(key, others):
  group, name = key.split('.')
  choices = reference.KEYS[key].choices
  for value in {*choices, *others}:
    config = cifar10.get_config('trades_resnet18')
    config[group][name] = value.replace('<steps>', '3')
    assert refused(config) == (value not in choices), value


@pytest.mark.parametrize('module', [cifar10, digits])
def test_every_value_of_a_config_has_a_meaning(module):
  for key, _ in reference.flags(module.get_config()):
    assert reference.describe(key).meaning


def test_every_registered_part_has_a_first_sentence():
  parts = [
    factory
    for registry in reference.PARTS.values()
    for factory in registry.values()
    if factory.__module__.startswith('dhat_jax.')  # not those of other tests
  ]
  assert len(parts) > 30
  for factory in parts:
    assert reference.summary(factory).endswith('.'), factory


def test_options_of_a_part():
  registry = Registry('thing', shared=('size',))

  @registry.register('thing<depth>')
  def make(*, depth: int, size: float, weight: float, norm: str = 'l2'):
    """A thing.

    Args:
      depth: of it.
      size: of it, too.
      weight: how much it counts,
        in kilograms.
      norm: by which it is measured.

    Raises:
      ValueError: always.
    """

  assert reference.options(registry, 'thing<depth>') == [
    ('weight', 'float', 'required', 'how much it counts, in kilograms.'),
    ('norm', 'str', "'l2'", 'by which it is measured.'),
  ]
  assert reference.summary(make) == 'A thing.'


def test_help_text():
  config = ConfigDict(
    {'seed': 3, 'stages': ('a', 'b'), 'main_head': {'epochs': 2.0}, 'mine': 1}
  )
  lines = [line.split() for line in reference.help_text(config).split('\n')]
  assert lines[0] == [
    '--config.main_head.epochs=2.0',
    *('length', 'of', 'the', 'stage', '(epochs)'),
  ]
  assert lines[1] == ['--config.mine=1']
  assert [line[0] for line in lines[2:]] == [
    '--config.seed=3',
    '--config.stages=\'("a","b")\'',
  ]


def test_what_help_prints_can_be_given_as_flags():
  """All of it at once gives the same config again."""
  config = digits.get_config()
  flags = re.findall(
    r"^  (--config\.\S+?=(?:'[^']*'|\S*))", reference.help_text(config), re.M
  )
  assert len(flags) == len(list(reference.flags(config)))
  given = [shlex.split(flag)[0] for flag in flags if '=None' not in flag]
  got = main.parse(['main', *given]).config
  assert from_config.as_json(got) == from_config.as_json(config)


def test_help_lists_the_keys_of_the_config_that_is_given(capsys):
  with pytest.raises(SystemExit) as stopped:
    main.parse(['main', '--config=configs/cifar10.py', '--help'])
  assert stopped.value.code == 0
  printed = capsys.readouterr().out
  assert '--config.seed=3 --config.main_head.epochs=5' in printed  # an example
  assert '  --config.model.backbone=wrn34_10 ' in printed
