"""The moving average of the weights: how fast it moves at each step."""

from collections.abc import Callable

import chex
import jax.numpy as jnp

from dhat_jax import arguments


def make_ema_decay(
  *, decay: float, copy_steps: int = 0, warm_up: bool = False
) -> float | Callable[[chex.Numeric], chex.Numeric]:
  """Creates the decay of the moving average, for `make_train_step`.

  The average after step s, counted from 1, is decay * average + (1 - decay) *
  weights. With both options it is that of the published code of Wang et al.
  (arXiv 2302.04638).

  Args:
    decay: in [0, 1); 0 for no average.
    copy_steps: the average is a copy of the weights before this step.
    warm_up: whether the decay rises, as min(decay, (1 + d) / (10 + d)) with the
      number d of steps since `copy_steps`.

  Returns:
    The decay; or, if it changes, (steps done before) -> decay.

  Raises:
    ValueError: a number out of its range.
  """
  arguments.number('decay', decay, 0, below=1)
  arguments.integer('copy_steps', copy_steps, 0)
  if not arguments.flag('warm_up', warm_up) and not copy_steps:
    return decay

  def at(steps_done: chex.Numeric) -> chex.Numeric:
    since = steps_done + 1 - copy_steps
    d = jnp.maximum(since, 0)
    current = jnp.minimum(decay, (1 + d) / (10 + d)) if warm_up else decay
    return jnp.where(since < 0, 0.0, current)

  return at
