"""Keys that are missing, surplus or of a wrong type: one line each."""

import math

import pytest
from ml_collections import ConfigDict

from dhat_jax import from_config
from dhat_jax.configs import cifar10, cifar100, digits, recipes, svhn
from dhat_jax.from_config import keys
from dhat_jax.losses import LOSSES
from dhat_jax.runtime import workdir
from dhat_jax.training.optim import OPTIMIZERS, SCHEDULES
from tests.fuzz import change

SECTIONS = {**keys._SECTIONS, **keys._STAGE}


def refused(config):
  """Returns the error of a config: one line."""
  with pytest.raises(ValueError) as error:  # noqa: PT011 - the caller matches
    from_config.check(config)
  message = str(error.value)
  assert '\n' not in message
  assert len(message) < 1200
  return message


def parts_of(node, keys_of):
  """Yields (section, its keys, the keys that are expected there)."""
  for name, expected in keys_of.items():
    if isinstance(expected, dict):
      yield name, set(node[name]), set(expected)


@pytest.mark.parametrize('module', [cifar10, cifar100, digits, svhn])
def test_the_keys_are_those_of_the_recipes(module):
  """Neither more nor less; what is more are options of registered parts."""
  config = module.get_config()
  assert set(config) == {*keys._TOP, *config.stages}
  for name, got, expected in parts_of(config, keys._TOP):
    assert got == expected, name
  options = {
    'loss': {'beta', 'label_smoothing'},
    'schedule': {*SCHEDULES.options('step'), *SCHEDULES.shared},
    'optimizer': set(OPTIMIZERS.shared),
  }
  for stage in config.stages:
    assert set(config[stage]) == set(keys._STAGE)
    for name, got, expected in parts_of(config[stage], keys._STAGE):
      assert expected <= got, name
      assert got <= expected | options.get(name, set()) | {'warmup_epochs'}
  assert {'beta', 'label_smoothing'} <= set(LOSSES.options('trades'))


@pytest.mark.parametrize(
  ('path', 'message'),
  [
    ('seed', 'config.seed: got nothing, expected an integer >= 0'),
    ('name', 'config.name: got nothing, expected a string'),
    ('stages', 'config.stages: got nothing, expected a tuple'),
    ('main_head', 'config.main_head: got nothing, expected what stage'),
    (
      'main_head.schedule',
      'config.main_head.schedule: got nothing, expected a dict with name',
    ),
    (
      'main_head.schedule.name',
      'config.main_head.schedule.name: got nothing, expected a string',
    ),
    (
      'main_head.schedule.learning_rate',
      "config.main_head.schedule: 'step' lacks ('learning_rate',)",
    ),
    (
      'main_head.attack.steps',
      'config.main_head.attack.steps: got nothing, expected an integer',
    ),
    ('main_head.attack.epsilon', 'give config.main_head.attack.epsilon or'),
    ('main_head.optimizer.momentum', "'sgd' lacks ('momentum',)"),
    ('main_head.loss.beta', "'trades' lacks ('beta',)"),
    ('evaluation', 'config.evaluation: got nothing, expected a dict with att'),
    ('evaluation.audit', 'config.evaluation.audit: got nothing, expected true'),
    ('validation', 'config.validation: got nothing, expected a dict with eve'),
    ('checkpoint.keep', 'config.checkpoint.keep: got nothing, expected an int'),
    ('dataset.flip', 'config.dataset.flip: got nothing, expected true or'),
    ('model.mean', 'config.model.mean: got nothing, expected a tuple'),
    ('debug_nans', 'config.debug_nans: got nothing, expected true or false'),
  ],
)
def test_missing(path, message):
  config = digits.get_config()
  group, _, key = path.rpartition('.')
  node = config
  for name in group.split('.') if group else ():
    node = node[name]
  del node[key]
  assert message in refused(config)


def test_what_may_be_left_out():
  """What configs of older runs lack, paths, and one of two lengths."""
  config = digits.get_config()
  for name in config.stages:
    del config[name].attack['name']
    del config[name].optimizer['name']
    del config[name]['weight_perturbation']
    del config[name]['ema']
    del config[name].attack['epsilon_255']
    for key in ('start_epoch', 'start_fraction', 'per_epoch'):
      del config[name].attack[f'warmup_{key}']
    del config[name].schedule['warmup_epochs']
  for name in ('augmentations', 'data_dir', 'manual_dir', 'cache_dir'):
    del config.dataset[name]
  from_config.check(config)


@pytest.mark.parametrize(
  ('path', 'message'),
  [
    ('main_head.lr', 'config.main_head.lr: no such key; config.main_head has'),
    (
      'main_head.epoch',
      'config.main_head.epoch: no such key; nearest is config.main_head.epo',
    ),
    (
      'main_head.Batch_size',
      'nearest is config.main_head.batch_size',
    ),
    ('model.depth', 'config.model.depth: no such key; '),
    ('evaluation.restart', 'nearest is config.evaluation.restarts'),
    ('validation.every_epoch', 'nearest is config.validation.every_epochs'),
    ('checkpoint.every_step', 'nearest is config.checkpoint.every_steps'),
    ('stagse', 'config.stagse: no such key; nearest is config.stages'),
    ('compare_with_naturals', 'nearest is config.compare_with_natural'),
    ('main_head.loss.gamma', r"config.main_head.loss: got ('gamma',)"),
    ('main_head.attack.restarts', r"main_head.attack: got ('restarts',)"),
    ('main_head.schedule.drop', "main_head.schedule: got ('drop',)"),
    ('main_head.optimizer.beta', "main_head.optimizer: got ('beta',)"),
    ('main_head.weight_perturbation.rho', "got ('rho',)"),
    ('dataset.size', "got ('size',)"),
  ],
)
def test_surplus(path, message):
  config = digits.get_config()
  change(config, path, 1)
  assert message in refused(config)


def test_values_that_others_refer_to():
  config = digits.get_config()
  config.learning_rate = 0.2
  for name in config.stages:
    rate = config.get_ref('learning_rate')
    config[name].schedule.learning_rate = rate
  from_config.check(config)


def test_a_stage_that_does_not_run_is_not_checked():
  config = digits.get_config()
  config.stages = ('main_head',)
  config.second_head = ConfigDict({'a': 1})
  config.joint = 3
  from_config.check(config)


# By the key: what cannot work there. Types are those of `tests.fuzz`.
IMPOSSIBLE = {
  'name': ('', 3),
  'seed': (-1, 2**32, True, 1.0, math.nan),
  'stages': ('main_head', ('main_head', 3), 3, ('main_head', 'main_head')),
  'dataset.num_classes': (True, 1, 0, -1, 10.0),
  'dataset.validation_size': (-1, 1.5, True, math.inf),
  'dataset.augmentations': ('crop_flip', (3,), ({},), ({'a': 1},), 3),
  'dataset.crop_padding': (-1, 1.5, True, 10**30),
  'dataset.flip': (1, 'yes', None),
  'model.mean': (0.5, ('a',), (math.nan,)),
  'model.backbone': ((), 'wrn10', 'wrn10_nan', 'wrn9_1', 3),
  'main_head.epochs': (math.inf, math.nan, 1e300, True, '3', -0.5),
  'main_head.batch_size': (0, -64, 64.0, True, None, 10**12),
  'main_head.ema_decay': (math.nan, 1, -0.1, True, 'x'),
  'main_head.ema.copy_epochs': (math.nan, -1, 1e300, True, 'x'),
  'main_head.ema.warm_up': (1, 'x', None),
  'main_head.ema.statistics': (0.5, 'x', None),
  'main_head.ema.use': (1, 'x', None),
  'main_head.keep': (1, 'all', ()),
  'main_head.loss': (3, 'trades', None, (), {}),
  'main_head.loss.beta': (math.nan, math.inf, -1, 'x', True, (1,)),
  'main_head.attack.epsilon': (math.nan, math.inf, -0.1, 1.1, True, 'x'),
  'main_head.attack.epsilon_255': (math.nan, math.inf, -1, 256, True, 'x'),
  'main_head.attack.steps': (2.0, -1, True, math.inf, 10**12, None),
  'main_head.attack.warmup_epochs': (math.nan, math.inf, -1, 1e300, 'x'),
  'main_head.attack.warmup_start_epoch': (math.nan, 0.5, 1e300, True, 'x'),
  'main_head.attack.warmup_start_fraction': (math.nan, -0.1, 1.1, 'x', True),
  'main_head.attack.warmup_per_epoch': (1, 0.0, 'x', None),
  'main_head.attack.norm': ('l1', (), 2),
  'main_head.schedule.learning_rate': (math.nan, math.inf, 0, -1, 1e39, 'x'),
  'main_head.schedule.warmup_epochs': (math.nan, math.inf, -1, 1e300, True),
  'main_head.schedule.drop_epochs': (
    *(3, 'x', ('x',), (0,), (-1, 3), (8, 8), (9, 8), (math.nan,), (math.inf,)),
    *((True,), (1e300,), None),
  ),
  'main_head.schedule.drop_factor': (0, -1, math.nan, math.inf, 'x', True),
  'main_head.optimizer.momentum': (math.nan, -0.1, 1, True, 'x'),
  'main_head.optimizer.weight_decay': (math.nan, -1, math.inf, True, 'x'),
  'main_head.optimizer.clip_norm': (math.nan, -1, math.inf, True, 'x'),
  'main_head.optimizer.nesterov': (1, 'x', None),
  'validation.every_epochs': (0, 1.5, math.inf, True),
  'checkpoint.keep': (0, 2.0, True, math.nan),
  'log_every_steps': (0, 2.0, True),
  'evaluation.attacks': ('clean', (3,), ('pgd_99999999999',), ('pgd_1.5',)),
  'evaluation.restarts': (0, 1.5, True, math.nan, 10**12),
  'evaluation.epsilon': (math.nan, 8, -1, True),
  'evaluation.loss_steps': (3, (1.5,), (-1,), (True,), ('x',), (10**12,)),
  'evaluation.sweep_epsilons_255': (4, (math.nan,), (-1,), (True,), ('x',)),
  'evaluation.autoattack_images': (-1, 1.5, True),
  'evaluation.batch_size': (0, 1.5, True),
  'validation.attack': (('clean',), 'pgd_99999999999', 3),
}


@pytest.mark.parametrize('path', IMPOSSIBLE)
def test_impossible(path):
  for value in IMPOSSIBLE[path]:
    config = digits.get_config()
    change(config, path, value)
    message = refused(config)
    section = path.rpartition('.')[0] or path
    assert message.startswith(f'config.{section}'), (value, message)
    assert path.rpartition('.')[2].split('_')[0] in message


def test_mean_and_std():
  for mean, std in (((0.5,), (0.0,)), ((0.5,), (-1.0,)), ((0.5,), ())):
    config = digits.get_config()
    config.model.update(mean=mean, std=std)
    assert 'mean and std need one number per channel each' in refused(config)
  config.model.update(mean=(0.5,) * 3, std=(0.5,) * 3)
  from_config.check(config)  # how many channels there are, the data says
  with pytest.raises(ValueError, match=r'config.model.mean: got .* 1 channels'):
    from_config.load_dataset(config)


def test_the_largest_seed():
  config = digits.get_config()
  config.seed = 2**32 - 1
  from_config.check(config)


def test_a_stage_that_the_config_lacks():
  config = digits.get_config()
  config.stages = ('joint',)
  assert refused(config).startswith('config.joint: got nothing, expected what')


def test_no_config_at_all():
  for config in (None, 3, {}):
    with pytest.raises(ValueError, match=r'config: got .* a ConfigDict'):
      from_config.check(config)
  assert 'config.stages: got nothing' in refused(ConfigDict())


def test_every_leaf_is_read():
  """No config has a key that the tables do not know, at any depth."""
  for base in recipes.BASES:
    config = cifar10.get_config(f'{base}_resnet18')
    paths = workdir.flat(config.to_dict())
    assert all(
      path.split('.')[0] in {*keys._TOP, *config.stages} for path in paths
    )
