"""Checks a config before anything expensive starts."""

import logging

import ml_collections

from dhat_jax import arguments
from dhat_jax.from_config import data, evaluation, keys, training
from dhat_jax.from_config.values import completed
from dhat_jax.training.stages import JOINT, roles

# Any number will do; of 1, a fraction of an epoch would be no step.
_STEPS_PER_EPOCH = 100


def check(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError for any mistake in a config.

  It builds everything except the data and the compiled functions. So a mistake
  shows at once, not after hours.
  """
  keys.check(config)
  names = tuple(roles())
  expected = [names[:count] for count in range(1, len(names) + 1)]
  arguments.one_of('config.stages', tuple(config.stages), [*expected, (JOINT,)])
  net = training.make_network(config)
  source = data.make_source(config)
  training.make_augmentation(config)
  for name in config.stages:
    training.find_role(config, name)
    _check_stage(config, name)
    _warn_of_late_parts(config, name)
    if config[name].keep == 'best' and not config.dataset.validation_size:
      raise ValueError(
        f"config.{name}.keep: got 'best', which needs validation images; give "
        "'last', or config.dataset.validation_size > 0"
      )
  arguments.integer(
    'config.dataset.validation_size', config.dataset.validation_size, 0
  )
  data.check_extra(config, source)
  evaluation.make_evaluator(config, net)
  evaluation.make_plan(config, net)
  evaluation.validation_attacks(config)
  evaluation.fit_attack(config, net)
  training.make_intervals(config)
  if config.compare_with_natural:
    natural = training.make_natural(config)
    for name in natural.stages:
      _check_stage(natural, name)


def _check_stage(config: ml_collections.ConfigDict, name: str) -> None:
  """Makes a stage for a number of training images that is not known yet."""
  training.make_stage(
    config,
    name,
    num_train=max(config[name].batch_size, 1),
    steps_per_epoch=_STEPS_PER_EPOCH,
  )


def _warn_of_late_parts(config: ml_collections.ConfigDict, name: str) -> None:
  """Warns of parts that would begin when their stage is over."""
  spec = completed(config)[name]
  begins = {  # epochs before the part begins
    'attack.warmup_start_epoch': spec.attack.warmup_start_epoch - 1,
    'ema.copy_epochs': spec.ema.copy_epochs,
    'weight_perturbation.start_epoch': (
      spec.weight_perturbation.get('start_epoch', 1) - 1
    ),
  }
  for key, epochs in begins.items():
    if epochs >= spec.epochs and epochs > 0:
      logging.warning(
        'config.%s.%s: begins after %g epochs of a stage that has %g: never',
        *(name, key, epochs, spec.epochs),
      )
