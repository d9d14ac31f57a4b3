"""From a config to networks and training stages.

Every value is read, and every mistake reported, before anything expensive
starts; see `from_config.check`.
"""

import copy
from typing import Any

import ml_collections

from dhat_jax import arguments, losses
from dhat_jax.from_config.attack import (
  attacks_batch_statistics,
  make_attack_scale,
  make_training_attack,
)
from dhat_jax.from_config.optimizer import make_ema_decay, make_optimizer
from dhat_jax.from_config.values import completed, options_of
from dhat_jax.models.backbones import BACKBONES
from dhat_jax.models.dual_head import DualHeadNet
from dhat_jax.models.layers import DTYPES
from dhat_jax.models.outputs import OUTPUTS
from dhat_jax.runtime import devices, streams
from dhat_jax.training import augment, optim
from dhat_jax.training.loop import Intervals
from dhat_jax.training.perturbation import (
  WEIGHT_PERTURBATIONS,
  count_gradients,
)
from dhat_jax.training.stages import Role, Stage, all_roles
from dhat_jax.training.step import make_train_step

ConfigDict = ml_collections.ConfigDict


def find_role(config: ConfigDict, name: str) -> Role:
  """Returns the role of a stage of a config.

  Raises:
    ValueError: no such stage, or a config without it.
  """
  role = arguments.one_of('config.stages', name, all_roles())
  if name not in config:
    raise ValueError(
      f'config.{name}: got nothing, expected what stage {name!r} is: loss, '
      'attack, epochs, batch_size, schedule, optimizer, ...'
    )
  return role


def make_network(
  config: ConfigDict,
  *,
  outputs: tuple[str, ...] | None = None,
  axis_name: str | None = None,
) -> DualHeadNet:
  """Makes the network of a config.

  Args:
    config: the run's config.
    outputs: the outputs that it computes; default: those that `config.stages`
      train.
    axis_name: mapped axis over which batch norm shares its statistics.

  Raises:
    ValueError: an unknown name or an invalid number.
  """
  spec = config.model
  if outputs is None:
    outputs = arguments.one_of(
      'config.stages', config.stages[-1], all_roles()
    ).outputs
  classes = config.dataset.num_classes
  fields = {
    'backbone': BACKBONES.make(
      spec.backbone,
      _part_options(spec, 'backbone'),
      where='config.model.backbone',
    ),
    'num_classes': arguments.integer('config.dataset.num_classes', classes, 2),
    'dtype': arguments.one_of('config.model.dtype', spec.dtype, DTYPES),
  }
  try:
    return DualHeadNet(
      **fields,
      attach=spec.attach,
      aggregator=spec.aggregator,
      aggregator_options=_part_options(spec, 'aggregator') or {},
      outputs=outputs,
      mean=tuple(spec.mean),
      std=tuple(spec.std),
      axis_name=axis_name,
    )
  except ValueError as error:
    raise ValueError(f'config.model.{error}') from error


def _part_options(spec: ConfigDict, part: str) -> dict[str, Any] | None:
  """Returns the options of a part of the network, hashable; None for none.

  Args:
    spec: `config.model`, which may have `<part>_options`.
    part: 'backbone' or 'aggregator'.
  """
  options = options_of(spec.get(f'{part}_options', {}))
  # Tuples come back from JSON as lists.
  return {
    key: tuple(value) if isinstance(value, list) else value
    for key, value in options.items()
  } or None


def make_augmentation(
  config: ConfigDict,
) -> augment.Augmentation | augment.Mixing | None:
  """Returns (rngs, images) -> images or a `Mixing`; None if nothing changes."""
  spec = completed(config).dataset
  return augment.make_augmentation(
    spec.augmentations,
    crop_padding=spec.crop_padding,
    flip=spec.flip,
    where='config.dataset.augmentations',
  )


def make_loss(
  spec: ConfigDict,
  where: str,
  role: Role,
  *,
  num_classes: int,
  steps_per_epoch: int,
) -> losses.Loss:
  """Makes the loss of a stage: its name and its options.

  Args:
    spec: `config.<stage>.loss`.
    where: 'config.<stage>.loss'.
    role: of the stage.
    num_classes: number of classes.
    steps_per_epoch: steps in one pass over the training set.

  Raises:
    ValueError: unknown name or option, or a loss of another output.
  """
  options = options_of(spec)
  name = options.pop('name', None)
  loss = losses.LOSSES.make(
    name,
    options,
    where=where,
    num_classes=num_classes,
    steps_per_epoch=steps_per_epoch,
  )
  if loss.only_output not in (None, role.output):
    raise ValueError(
      f'{where}: got {name!r} for output {role.output!r}, but it can only '
      f'train {loss.only_output!r}'
    )
  return loss


def _num_steps(
  config: ConfigDict, name: str, role: Role, steps_per_epoch: int
) -> int:
  """Returns a stage's length; 0 if it has nothing to train."""
  num_steps = optim.whole_steps(
    f'config.{name}.epochs', config[name].epochs, steps_per_epoch
  )
  try:
    aggregator = make_network(config).make_aggregator()
  except ValueError as error:
    raise ValueError(f'config.model.{error}') from error
  row = OUTPUTS[role.output]
  alone = row.aggregates and role.trains == row.parts[-1:]
  if alone and not aggregator.trains:
    return 0
  return num_steps


def check_batch_size(config: ConfigDict, name: str, num_train: int) -> None:
  """Raises ValueError for a batch that devices or training images cannot fill.

  Args:
    config: the run's config.
    name: of the stage.
    num_train: number of training images.
  """
  where, size = f'config.{name}.batch_size', config[name].batch_size
  devices.check_batch_size(where, size)
  if size > num_train:
    raise ValueError(
      f'{where}: got {size}, expected at most the {num_train} training images'
    )


def make_stage(
  config: ConfigDict,
  name: str,
  num_train: int,
  *,
  steps_per_epoch: int | None = None,
) -> Stage:
  """Makes a stage with everything except batches and validation.

  Args:
    config: the run's config.
    name: key of `stages.all_roles()`.
    num_train: number of training images.
    steps_per_epoch: of the source of batches; default: the number of full
      batches.

  Raises:
    ValueError: any value that is out of its range.
  """
  config = completed(config)
  role = find_role(config, name)
  spec, where = config[name], f'config.{name}'
  check_batch_size(config, name, num_train)
  if steps_per_epoch is None:
    steps_per_epoch = num_train // spec.batch_size
  num_steps = _num_steps(config, name, role, steps_per_epoch)
  schedule = optim.make_schedule(
    num_steps=num_steps,
    steps_per_epoch=steps_per_epoch,
    where=f'{where}.schedule',
    **options_of(spec.schedule),
  )
  loss = make_loss(
    spec.loss,
    f'{where}.loss',
    role,
    num_classes=config.dataset.num_classes,
    steps_per_epoch=steps_per_epoch,
  )
  attack = make_training_attack(spec.attack, f'{where}.attack')
  tx = make_optimizer(spec.optimizer, f'{where}.optimizer', schedule)
  net = make_network(
    config,
    outputs=role.outputs,
    axis_name=devices.AXIS if config.model.sync_batch_norm else None,
  )
  ema_decay = make_ema_decay(spec, where, steps_per_epoch)
  perturbation = options_of(spec.weight_perturbation)
  value_and_grad = WEIGHT_PERTURBATIONS.make(
    perturbation.pop('name', None),
    perturbation,
    where=f'{where}.weight_perturbation',
    axis_name=devices.AXIS,
    steps_per_epoch=steps_per_epoch,
  )
  return Stage(
    name=name,
    role=role,
    net=net,
    loss=loss,
    tx=tx,
    schedule=schedule,
    num_steps=num_steps,
    steps_per_epoch=steps_per_epoch,
    batch_size=spec.batch_size,
    attack_steps=spec.attack.steps,
    gradients=count_gradients(value_and_grad),
    rng=streams.fold_in(streams.key(config.seed), f'stage/{name}'),
    ema=spec.ema_decay > 0,
    ema_statistics=spec.ema.statistics,
    ema_use=spec.ema.use,
    keep=arguments.one_of(f'{where}.keep', spec.keep, ('best', 'last')),
    step=make_train_step(
      net=net,
      tx=tx,
      loss=loss,
      attack=attack if loss.uses_adversarial else None,
      attack_scale=make_attack_scale(
        spec.attack, f'{where}.attack', steps_per_epoch
      ),
      trains=role.trains,
      output=role.output,
      augment=make_augmentation(config),
      ema_decay=ema_decay,
      freeze_statistics=config.model.freeze_statistics,
      attack_batch_statistics=attacks_batch_statistics(
        spec.attack, f'{where}.attack'
      ),
      remat=config.model.remat,
      axis_name=devices.AXIS,
      value_and_grad=value_and_grad,
    ),
  )


def make_intervals(config: ConfigDict) -> Intervals:
  """Returns when a run records, saves and validates."""

  def read(name: str) -> int:
    group, _, key = name.rpartition('.')
    spec = config[group] if group else config
    return arguments.integer(f'config.{name}', spec[key], 1)

  return Intervals(
    log_steps=read('log_every_steps'),
    checkpoint_steps=read('checkpoint.every_steps'),
    validation_epochs=read('validation.every_epochs'),
    keep_checkpoints=read('checkpoint.keep'),
  )


def make_natural(config: ConfigDict) -> ConfigDict:
  """Returns the same run without adversarial images, for comparison."""
  config = copy.deepcopy(config)
  config.name = f'{config.name}_natural'
  config.compare_with_natural = False
  with config.unlocked():
    for name in config.stages:
      config[name].loss = ConfigDict({'name': 'natural'})
    # For comparison the accuracies will do.
    config.evaluation.update(
      sweep_epsilons_255=(), loss_steps=(), audit=False, export_images=False
    )
  return config
