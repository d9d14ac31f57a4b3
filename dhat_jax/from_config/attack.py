"""From a stage's `attack` to the attack of its training step."""

from typing import Any

import ml_collections
import optax

from dhat_jax import arguments
from dhat_jax.attacks.training import TRAINING_ATTACKS
from dhat_jax.from_config.values import in_unit, options_of
from dhat_jax.training import schedules

ConfigDict = ml_collections.ConfigDict
# Of a stage's attack: how its radius and step size rise.
_WARMUP = (
  'warmup_epochs',
  'warmup_start_epoch',
  'warmup_start_fraction',
  'warmup_per_epoch',
)


def make_training_attack(spec: ConfigDict, where: str) -> Any:
  """Makes the training attack of a stage's `attack`."""
  shared = ('steps', 'norm', 'start')
  lengths = ('epsilon', 'epsilon_255', 'step_size', 'step_size_255')
  options = options_of(
    spec, without=(*shared, *lengths, *_WARMUP, 'statistics')
  )
  return TRAINING_ATTACKS.make(
    options.pop('name', 'pgd'),
    options,
    where=where,
    epsilon=in_unit(spec, 'epsilon', where),
    step_size=in_unit(spec, 'step_size', where),
    **{key: spec[key] for key in shared},
  )


def make_attack_scale(
  spec: ConfigDict, where: str, steps_per_epoch: int
) -> optax.Schedule:
  """Returns step -> factor of epsilon and step size: their warm-up."""
  return schedules.make_attack_scale(
    steps_per_epoch=steps_per_epoch,
    where=where,
    **{key: spec[key] for key in _WARMUP},
  )


def attacks_batch_statistics(spec: ConfigDict, where: str) -> bool:
  """Returns whether the attack sees batch norm with the batch's statistics."""
  statistics = arguments.one_of(
    f'{where}.statistics', spec.statistics, ('running', 'batch')
  )
  return statistics == 'batch'
