"""From a stage's `optimizer`, `ema_decay` and `ema` to their functions."""

from collections.abc import Callable

import ml_collections
import optax

from dhat_jax import arguments
from dhat_jax.from_config.values import options_of
from dhat_jax.training import ema, optim

ConfigDict = ml_collections.ConfigDict


def make_optimizer(
  spec: ConfigDict, where: str, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """Makes the optimiser of a stage's `optimizer`."""
  shared = tuple(key for key in optim.OPTIMIZERS.shared if key in spec)
  options = options_of(spec, without=shared)
  return optim.OPTIMIZERS.make(
    options.pop('name', 'sgd'),
    options,
    where=where,
    schedule=schedule,
    **{key: spec[key] for key in shared},
  )


def make_ema_decay(
  spec: ConfigDict, where: str, steps_per_epoch: int
) -> float | Callable:
  """Makes the decay of a stage's average: `ema_decay` and `ema`."""
  arguments.number(f'{where}.ema_decay', spec.ema_decay, 0, below=1)
  for name in ('warm_up', 'statistics', 'use'):
    arguments.flag(f'{where}.ema.{name}', spec.ema[name])
  return ema.make_ema_decay(
    decay=spec.ema_decay,
    copy_steps=optim.whole_steps(
      f'{where}.ema.copy_epochs', spec.ema.copy_epochs, steps_per_epoch
    ),
    warm_up=spec.ema.warm_up,
  )
