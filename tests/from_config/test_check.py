"""What a user may get wrong in a config, each with one clear error."""

import copy

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from dhat_jax import from_config
from dhat_jax.configs import cifar10, digits
from dhat_jax.from_config import training
from dhat_jax.models.backbones import BACKBONES
from dhat_jax.models.resnet import ResNet18
from dhat_jax.models.wide_resnet import WideResNet
from dhat_jax.training import optim


@pytest.fixture
def config():
  config = digits.get_config()
  config.evaluation.audit = True  # so that its options are checked too
  return config


def set_key(config, path, value):
  """Sets a dotted key, whatever its type."""
  *groups, key = path.split('.')
  for group in groups:
    config = config[group]
  with config.ignore_type():
    config[key] = value


@pytest.mark.parametrize(
  ('path', 'value', 'message'),
  [
    ('stages', (), r'config\.stages: got \(\), choices are'),
    ('stages', ('second_head',), r"main_head', 'second_head'"),
    ('stages', ('main_head', 'aggregator'), 'choices are'),
    ('model.backbone', 'vgg16', r"got 'vgg16'.*resnet18"),
    (
      'main_head.loss',
      {'name': 'dkl', 'alpha': -1.0},
      r'config\.main_head\.loss: alpha: got -1\.0, expected a finite number >=',
    ),
    (
      'dataset.augmentations',
      ('cutmix', {'name': 'cutout', 'size': 0}),
      r'config\.dataset\.augmentations: size: got 0, expected an integer >= 1',
    ),
    (
      'dataset.augmentations',
      ('cutmix', 'cutmix'),
      r'config\.dataset\.augmentations: got .* at most one that mixes images',
    ),
    ('model.backbone', 'wrn35_10', r'got 35, expected 6n \+ 4'),
    ('model.backbone', 'wrn16_0', 'got 0, expected >= 1'),
    (
      'model.backbone_options',
      {'activation': 'gelu'},
      r"config\.model\.backbone: activation: got 'gelu', choices are \('relu'",
    ),
    ('model.attach', 'block3', r"attach: got 'block3'.*block1.*block2"),
    ('model.aggregator', 'vote', r"got 'vote'.*pairwise.*classwise.*mean"),
    ('model.dtype', 'float16', r"got 'float16'.*float32.*bfloat16"),
    ('model.mean', (0.5,), 'mean and std'),
    ('dataset.num_classes', 1, 'num_classes: got 1'),
    ('dataset.loader', 'csv', r"got 'csv'.*tfds.*image_folder.*digits"),
    ('dataset.validation_size', 0, r"keep: got 'best'.*validation"),
    ('main_head.loss.name', 'madry', r"got 'madry'.*natural.*sat.*trades"),
    ('main_head.loss.beta', -1.0, 'beta: got -1.0'),
    ('main_head.attack.epsilon', -0.1, 'epsilon: got -0.1'),
    ('main_head.attack.epsilon', 8.0, r'epsilon: got 8.0, expected in \[0, 1'),
    (
      'main_head.attack.epsilon',
      None,
      'give config.main_head.attack.epsilon or',
    ),
    ('main_head.attack.steps', -1, 'steps: got -1'),
    ('main_head.attack.norm', 'l1', r"norm: got 'l1'.*linf"),
    ('main_head.attack.start', 'zero', r"start: got 'zero'.*uniform"),
    ('main_head.batch_size', 31, r'batch_size: got 31.*are 30, 32'),
    ('main_head.batch_size', 0, 'batch_size: got 0'),
    ('main_head.schedule.name', 'linear', r"got 'linear'.*step.*cosine"),
    ('main_head.schedule.learning_rate', 0.0, 'learning_rate: got 0.0'),
    ('main_head.optimizer.momentum', 1.0, 'momentum: got 1.0'),
    ('main_head.optimizer.weight_decay', -1.0, 'weight_decay: got -1.0'),
    ('main_head.keep', 'all', r"keep: got 'all'.*best.*last"),
    ('main_head.ema_decay', 1.0, 'ema_decay: got 1.0'),
    ('main_head.epochs', -1.0, 'epochs: got -1.0'),
    ('second_head.loss.name', 'natura', 'choices are'),
    ('evaluation.attacks', ('pgd',), r"got 'pgd'.*pgd_<steps>"),
    ('evaluation.attacks', (), 'expected different names'),
    ('evaluation.attacks', ('clean', 'clean'), 'expected different names'),
    ('evaluation.attacks', ('fab_t',), r"did you mean 'fab-t'"),
    ('evaluation.sweep_epsilons_255', (8.0, 8.0), 'expected different'),
    ('evaluation.sweep_epsilons_255', (300.0,), r'numbers in \[0, 255\]'),
    ('evaluation.sweep_steps', 0, 'sweep_steps: got 0'),
    ('evaluation.loss_steps', (-1,), 'loss_steps: got -1'),
    ('evaluation.audit_steps', 0, 'audit_steps: got 0'),
    ('evaluation.audit_queries', -1, 'audit_queries: got -1'),
    ('evaluation.autoattack_version', 'best', r"got 'best'.*standard"),
    ('evaluation.autoattack_outputs', ('both',), r"got 'both'.*aggregated"),
    ('evaluation.autoattack_n_iter', 0, 'n_iter: got 0'),
    ('evaluation.norm', 'l0', 'choices are'),
    ('evaluation.restarts', 0, 'restarts: got 0'),
    ('evaluation.batch_size', 0, 'batch_size: got 0'),
    ('evaluation.dtype', 'int8', 'choices are'),
    ('validation.attack', 'square', 'an attack that takes seconds'),
    ('validation.every_epochs', 0, 'every_epochs: got 0'),
    ('checkpoint.every_steps', 0, 'every_steps: got 0'),
    ('checkpoint.keep', 0, 'keep: got 0'),
    ('log_every_steps', 0, 'log_every_steps: got 0'),
  ],
)
def test_check_names_the_mistake(config, path, value, message):
  set_key(config, path, value)
  with pytest.raises(ValueError, match=message):
    from_config.check(config)


def test_image_folder_needs_a_folder():
  config = cifar10.get_config()
  config.dataset.loader = 'image_folder'
  with pytest.raises(ValueError, match='data_dir: got nothing'):
    from_config.check(config)


def test_unknown_loss_option_is_named(config):
  set_key(config, 'main_head.loss', ConfigDict({'name': 'sat', 'beta': 6.0}))
  with pytest.raises(ValueError, match=r"config.main_head.loss.*'beta'"):
    from_config.check(config)


def test_backbones():
  assert BACKBONES.make('wrn34_10') == WideResNet(34, 10)
  assert BACKBONES.make('resnet18') == ResNet18()
  assert BACKBONES.make('preact_resnet18') == ResNet18(preact=True)


def test_255_has_precedence():
  spec = ConfigDict({'epsilon': 0.031, 'epsilon_255': None})
  assert from_config.in_unit(spec, 'epsilon') == 0.031
  with spec.ignore_type():
    spec.epsilon_255 = 8.0
  assert from_config.in_unit(spec, 'epsilon') == 8 / 255


def test_schedule_counts_epochs_as_published():
  config = cifar10.get_config()
  stage = from_config.make_stage(config, 'main_head', num_train=49_000)
  assert stage.steps_per_epoch == 382
  assert stage.num_steps == 100 * 382
  assert stage.schedule(74 * 382 - 1) == pytest.approx(0.1)
  assert stage.schedule(74 * 382) == pytest.approx(0.01)
  second = from_config.make_stage(config, 'second_head', 49_000)
  assert second.num_steps == 76 * 382


def test_epsilon_warm_up():
  config = digits.get_config()
  config.main_head.attack.warmup_epochs = 2.0
  scale = training.make_attack_scale(
    config.main_head.attack, 'config.main_head.attack', steps_per_epoch=10
  )
  assert scale(0) == 0
  assert scale(10) == pytest.approx(0.5)
  assert scale(20) == scale(100) == 1


@pytest.mark.parametrize(('epochs', 'fits'), [(0.4, 0), (1, 0), (1.2, 1)])
def test_one_cycle_by_epochs_counts_begun_ones(epochs, fits):
  config = digits.get_config()
  config.main_head.epochs = float(epochs)
  with config.unlocked():
    config.main_head.schedule = {
      'name': 'one_cycle',
      'learning_rate': 0.1,
      'per_epoch': True,
    }
  if fits:
    from_config.check(config)
    return
  with pytest.raises(ValueError, match=r'per_epoch: got true for a stage of'):
    from_config.check(config)


def test_mean_aggregator_trains_nothing(config):
  config.model.aggregator = 'mean'
  stage = from_config.make_stage(config, 'aggregator', num_train=640)
  assert stage.num_steps == 0


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      {'dataset.validation_size': 0},
      r"dataset.validation_size: got 0, expected more: aggregator 'mixed'",
    ),
    (
      {'model.aggregator_options': {'attack': 'pgd'}},
      r"model.aggregator_options.attack: got 'pgd', choices are \('clean'",
    ),
    (
      {'model.aggregator_options': {'percentile': 120.0}},
      r'model.aggregator: percentile: got 120.0, expected in \[0, 100\]',
    ),
    (
      {'model.aggregator_options': {'percent': 90.0}},
      r"model.aggregator: got \('percent',\), choices for 'mixed' are",
    ),
    (
      {'stages': ('joint',)},
      "model.aggregator: got 'mixed', which is fitted to trained heads",
    ),
  ],
)
def test_what_a_fit_needs(config, change, message):
  config.model.aggregator = 'mixed'
  with config.unlocked():
    config.joint = copy.deepcopy(config.aggregator)
    for name in ('main_head', 'second_head', 'aggregator', 'joint'):
      config[name].keep = 'last'
    from_config.check(config)
    for path, value in change.items():
      group, _, key = path.rpartition('.')
      (config[group] if group else config)[key] = value
  with pytest.raises(ValueError, match=message):
    from_config.check(config)
  # Nothing is fitted where nothing is aggregated.
  config.update(stages=('main_head',))
  config.model.aggregator_options = {}
  config.dataset.validation_size = 0
  from_config.check(config)


def test_plain_network_has_one_output(config):
  config.stages = ('main_head',)
  net = from_config.make_network(config)
  images = jnp.zeros((2, 8, 8, 1))
  variables = jax.eval_shape(net.init, jax.random.key(0), images)
  outputs = jax.eval_shape(net.apply, variables, images)
  assert outputs.main.shape == (2, 10)
  assert list(outputs) == ['main']
  assert set(variables['params']) == {'trunk', 'main_head'}


def test_natural_config_attacks_nothing(config):
  natural = from_config.make_natural(config)
  for name in natural.stages:
    stage = from_config.make_stage(natural, name, num_train=640)
    assert stage.loss.name == 'natural'
    assert not stage.loss.uses_adversarial
  assert config.main_head.loss.name == 'trades'


def test_schedules_reject_negative_warmup():
  with pytest.raises(ValueError, match='warmup_epochs: got -1'):
    optim.make_schedule(
      name='constant',
      learning_rate=0.1,
      num_steps=10,
      steps_per_epoch=5,
      warmup_epochs=-1,
    )


@pytest.mark.parametrize(
  ('path', 'value', 'epochs'),
  [
    ('attack.warmup_start_epoch', 4, 3),
    ('ema.copy_epochs', 3, 3),
    ('weight_perturbation', {'name': 'awp', 'start_epoch': 4}, 3),
    ('weight_perturbation', {'name': 'awp', 'start_epoch': 3}, None),
    ('ema.copy_epochs', 2.9, None),
  ],
)
def test_parts_that_never_begin_are_warned_of(
  config, caplog, path, value, epochs
):
  config.main_head.epochs = 3
  set_key(
    config.main_head, path, ConfigDict(value) if type(value) is dict else value
  )
  from_config.check(config)
  lines = [r.getMessage() for r in caplog.records if 'never' in r.getMessage()]
  if epochs is None:
    assert not lines
  else:
    (line,) = lines
    assert line.startswith(f'config.main_head.{path}')
    assert f'begins after {epochs} epochs of a stage that has 3' in line
