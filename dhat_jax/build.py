"""The one place that turns names in a config into objects.

Every value that a config may hold is read, and every mistake in it reported,
here and before anything expensive starts: see `check`.
"""

import copy
import inspect
import json
import re
from collections.abc import Callable
from typing import Any

import ml_collections
import optax

from dhat_jax import losses
from dhat_jax.attacks import pgd
from dhat_jax.datasets import batches as input_pipeline
from dhat_jax.datasets import digits, image_folder
from dhat_jax.datasets.base import Dataset, validate
from dhat_jax.datasets.tfds import load as tfds
from dhat_jax.from_config import evaluation as plan
from dhat_jax.from_config.values import at_least, choose, in_unit
from dhat_jax.models.dual_head import DualHeadNet
from dhat_jax.models.resnet import ResNet18
from dhat_jax.models.wide_resnet import WideResNet
from dhat_jax.runtime import devices
from dhat_jax.training import optim
from dhat_jax.training.stages import ALL_ROLES, ROLES, Stage
from dhat_jax.training.step import make_train_step

LOADERS = {
  'tfds': lambda spec: tfds.load(
    spec.name,
    data_dir=spec.data_dir or None,
    manual_dir=spec.manual_dir or None,
    cache_dir=spec.cache_dir or None,
  ),
  'image_folder': lambda spec: image_folder.load(
    data_dir=spec.data_dir, cache_dir=spec.cache_dir or None
  ),
  'digits': lambda spec: digits.load(),
}


def backbone(name: str) -> WideResNet | ResNet18:
  """Returns a backbone: 'wrn34_10' (any depth and width), 'resnet18', ...

  Raises:
    ValueError: no such name, or a depth that WideResNet does not have.
  """
  if match := re.fullmatch(r'wrn(\d+)_(\d+(?:\.\d+)?)', name):
    depth, widen_factor = (json.loads(number) for number in match.groups())
    return WideResNet(depth, widen_factor)
  return choose(
    'config.model.backbone',
    name,
    {
      'resnet18': ResNet18(),
      'preact_resnet18': ResNet18(preact=True),
      'wrn<depth>_<widen factor>': None,
    },
  )


def model(
  config: ml_collections.ConfigDict,
  *,
  outputs: tuple[str, ...] | None = None,
  axis_name: str | None = None,
) -> DualHeadNet:
  """Returns the network of a config.

  Args:
    config: the run's config.
    outputs: what it computes; default: what `config.stages` train.
    axis_name: mapped axis over which batch norm shares its statistics.
  """
  spec = config.model
  return DualHeadNet(
    backbone=backbone(spec.backbone),
    num_classes=config.dataset.num_classes,
    attach=spec.attach,
    aggregator=spec.aggregator,
    outputs=outputs or ALL_ROLES[config.stages[-1]].outputs,
    mean=tuple(spec.mean),
    std=tuple(spec.std),
    dtype=choose('config.model.dtype', spec.dtype, plan.DTYPES),
    axis_name=axis_name,
  )


def norm_axis(config: ml_collections.ConfigDict) -> str | None:
  """Returns the axis over which batch norm is synchronised, or None."""
  return devices.AXIS if config.model.sync_batch_norm else None


def dataset(config: ml_collections.ConfigDict) -> Dataset:
  """Loads and validates the data set of a config.

  Raises:
    ValueError: broken data, or data that the config does not describe.
  """
  spec = config.dataset
  data = choose('config.dataset.loader', spec.loader, LOADERS)(spec)
  validate(data)
  if len(data.class_names) != spec.num_classes:
    raise ValueError(
      f'config.dataset.num_classes: got {spec.num_classes}, but '
      f'{data.source} has {len(data.class_names)} classes'
    )
  return data


def augment(config: ml_collections.ConfigDict) -> Callable | None:
  """Returns (rngs, images) -> images, or None where nothing changes."""
  padding, flip = config.dataset.crop_padding, config.dataset.flip
  if not padding and not flip:
    return None
  return lambda rngs, images: input_pipeline.augment(
    rngs, images, crop_padding=padding, flip=flip
  )


def epsilon(spec: ml_collections.ConfigDict) -> float:
  """Returns the radius of a config's attack in [0, 1] units."""
  return in_unit(spec, 'epsilon')


def attack(spec: ml_collections.ConfigDict) -> Callable:
  """Returns the training attack of a stage's config."""
  return pgd.make_attack(
    epsilon=epsilon(spec),
    step_size=in_unit(spec, 'step_size'),
    steps=spec.steps,
    norm=spec.norm,
    start=spec.start,
  )


def _call(where: str, factory: Callable, options: dict[str, Any]) -> Any:
  """Calls a factory with a config's options; surplus ones are named."""
  known = inspect.signature(factory).parameters
  if not set(options) <= set(known):
    raise ValueError(
      f'{where}: got {sorted(set(options) - set(known))}, choices are '
      f'{sorted(known)}'
    )
  return factory(**options)


def loss(spec: ml_collections.ConfigDict, where: str = 'loss') -> losses.Loss:
  """Returns the loss of a stage's config: its name and its parameters."""
  options = dict(spec)
  factory = choose(f'{where}.name', options.pop('name'), losses.LOSSES)
  return _call(where, factory, options)


def stage(
  config: ml_collections.ConfigDict, name: str, num_train: int
) -> Stage:
  """Returns a stage with everything resolved.

  Args:
    config: the run's config.
    name: key of `ALL_ROLES`.
    num_train: number of training images.

  Raises:
    ValueError: any value that is out of its range.
  """
  role = choose('config.stages', name, ALL_ROLES)
  if name not in config:
    raise ValueError(f'config.{name}: missing, expected what stage {name!r} is')
  spec = config[name]
  devices.check_batch_size(f'config.{name}.batch_size', spec.batch_size)
  if spec.batch_size > num_train:
    raise ValueError(
      f'config.{name}.batch_size: got {spec.batch_size}, expected at most the '
      f'{num_train} training images'
    )
  steps_per_epoch = num_train // spec.batch_size
  epochs = at_least(f'config.{name}.epochs', spec.epochs, least=0)
  if not 0 <= spec.ema_decay < 1:
    raise ValueError(
      f'config.{name}.ema_decay: got {spec.ema_decay}, expected in [0, 1)'
    )
  # The mean of two logits has nothing to train.
  if role.trains == ('aggregator',) and config.model.aggregator == 'mean':
    epochs = 0
  num_steps = round(epochs * steps_per_epoch)
  schedule = optim.make_schedule(
    num_steps=num_steps, steps_per_epoch=steps_per_epoch, **spec.schedule
  )
  stage_loss = loss(spec.loss, f'config.{name}.loss')
  warmup_steps = round(spec.attack.warmup_epochs * steps_per_epoch)
  return Stage(
    name=name,
    role=role,
    loss=stage_loss,
    attack=attack(spec.attack) if stage_loss.uses_adversarial else None,
    attack_scale=(
      optax.linear_schedule(0.0, 1.0, warmup_steps)
      if warmup_steps
      else optax.constant_schedule(1.0)
    ),
    tx=optim.make_optimizer(schedule=schedule, **spec.optimizer),
    schedule=schedule,
    num_steps=num_steps,
    steps_per_epoch=steps_per_epoch,
    batch_size=spec.batch_size,
    ema_decay=spec.ema_decay,
    keep=choose(f'config.{name}.keep', spec.keep, ('best', 'last')),
  )


def stage_model(config: ml_collections.ConfigDict, stage: Stage) -> DualHeadNet:
  """Returns the network as a stage trains it, under `devices.AXIS`."""
  return model(config, outputs=stage.role.outputs, axis_name=norm_axis(config))


def train_step(
  config: ml_collections.ConfigDict, stage: Stage, net: DualHeadNet
) -> Callable:
  """Returns a stage's step, to be mapped over `devices.AXIS`.

  Args:
    config: the run's config.
    stage: from `stage`.
    net: from `stage_model`.
  """
  return make_train_step(
    net=net,
    tx=stage.tx,
    loss=stage.loss,
    attack=stage.attack,
    attack_scale=stage.attack_scale,
    trains=stage.role.trains,
    output=stage.role.output,
    augment=augment(config),
    ema_decay=stage.ema_decay,
    freeze_statistics=config.model.freeze_statistics,
    axis_name=devices.AXIS,
  )


def natural(
  config: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
  """Returns the same run without adversarial images, for comparison."""
  config = copy.deepcopy(config)
  config.name = f'{config.name}_natural'
  config.compare_with_natural = False
  with config.unlocked():
    for name in config.stages:
      config[name].loss = ml_collections.ConfigDict({'name': 'natural'})
    # For comparison the accuracies will do.
    config.evaluation.update(
      sweep_epsilons_255=(), loss_steps=(), audit=False, export_images=False
    )
  return config


def check(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError for anything in a config that cannot work.

  Builds everything but the data and the compiled functions, so that a mistake
  shows at once and not after hours.
  """
  stages = tuple(config.stages)
  expected = [tuple(ROLES)[:count] for count in range(1, len(ROLES) + 1)]
  choose('config.stages', stages, [*expected, ('joint',)])
  model(config)
  norm_axis(config)
  augment(config)
  choose('config.dataset.loader', config.dataset.loader, LOADERS)
  if config.dataset.loader == 'image_folder' and not config.dataset.data_dir:
    raise ValueError(
      'config.dataset.data_dir: got nothing, expected the folder that holds '
      'train/<class>/<image> and test/<class>/<image>'
    )
  for name in stages:
    # The number of training images is not known yet: any that fits will do.
    stage(config, name, num_train=max(config[name].batch_size, 1))
    if config[name].keep == 'best' and not config.dataset.validation_size:
      raise ValueError(
        f"config.{name}.keep: got 'best', which needs validation images; give "
        "'last', or config.dataset.validation_size > 0"
      )
  net = model(config)
  plan.make_plan(config, net)
  plan.validation_attacks(config)
  plan.make_evaluator(config, net)
  for name in (
    'checkpoint.every_steps',
    'checkpoint.keep',
    'validation.every_epochs',
    'log_every_steps',
  ):
    group, _, key = name.rpartition('.')
    at_least(f'config.{name}', (config[group] if group else config)[key])
  if config.compare_with_natural:
    natural(config)
