"""Optimisers and learning-rate schedules, as Optax transforms."""

from collections.abc import Sequence
from typing import Any

import jax
import optax


def make_schedule(
  *,
  name: str,
  learning_rate: float,
  num_steps: int,
  steps_per_epoch: int,
  drop_epochs: Sequence[int] = (),
  drop_factor: float = 0.1,
  warmup_epochs: float = 0.0,
) -> optax.Schedule:
  """Creates the learning rate as a function of the step.

  Args:
    name: 'step' (multiplied by `drop_factor` from each of `drop_epochs` on),
      'cosine' (to 0 at `num_steps`) or 'constant'.
    learning_rate: the rate after the warm-up.
    num_steps: the stage's length.
    steps_per_epoch: steps in one pass over the training set.
    drop_epochs: epochs, counted from 1 as the published code counts them:
      75 means that 74 epochs are trained at the rate before.
    drop_factor: the factor of each drop.
    warmup_epochs: the rate rises linearly from 0 over these first epochs.

  Returns:
    step -> learning rate.

  Raises:
    ValueError: unknown name, or a rate that is not positive.
  """
  if learning_rate <= 0:
    raise ValueError(f'learning_rate: got {learning_rate}, expected > 0')
  if warmup_epochs < 0:
    raise ValueError(f'warmup_epochs: got {warmup_epochs}, expected >= 0')
  if name == 'step':
    drops = {(e - 1) * steps_per_epoch: drop_factor for e in drop_epochs}
    schedule = optax.piecewise_constant_schedule(learning_rate, drops)
  elif name == 'cosine':
    schedule = optax.cosine_decay_schedule(learning_rate, max(num_steps, 1))
  elif name == 'constant':
    schedule = optax.constant_schedule(learning_rate)
  else:
    raise ValueError(
      f"schedule: got {name!r}, choices are 'step', 'cosine', 'constant'"
    )
  warmup_steps = round(warmup_epochs * steps_per_epoch)
  if not warmup_steps:
    return schedule
  ramp = optax.linear_schedule(0.0, 1.0, warmup_steps)
  return lambda step: schedule(step) * ramp(step + 1)


def _is_decayed(params: Any) -> Any:
  """True for kernels, False for biases and batch norm's parameters."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == 'kernel', params
  )


def make_optimizer(
  *,
  schedule: optax.Schedule,
  momentum: float,
  weight_decay: float,
  decay_norm: bool = True,
  nesterov: bool = False,
  clip_norm: float = 0.0,
) -> optax.GradientTransformation:
  """Creates SGD as PyTorch defines it: decay joins the gradient.

  g <- g + weight_decay * p;  m <- momentum * m + g;  p <- p - rate * m

  Args:
    schedule: step -> learning rate.
    momentum: in [0, 1).
    weight_decay: L2 coefficient.
    decay_norm: whether biases and batch norm's parameters decay too, as in
      PyTorch's default; False leaves the decay to kernels.
    nesterov: whether the momentum is Nesterov's.
    clip_norm: the gradient's largest global norm; 0 does not clip.

  Returns:
    The transform. It knows no frozen parts: it is given trained ones only.

  Raises:
    ValueError: a number out of its range.
  """
  if not 0 <= momentum < 1:
    raise ValueError(f'momentum: got {momentum}, expected in [0, 1)')
  for name, value in (
    ('weight_decay', weight_decay),
    ('clip_norm', clip_norm),
  ):
    if value < 0:
      raise ValueError(f'{name}: got {value}, expected >= 0')
  return optax.chain(
    optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
    optax.add_decayed_weights(
      weight_decay, mask=None if decay_norm else _is_decayed
    ),
    optax.trace(decay=momentum, nesterov=nesterov),
    optax.scale_by_learning_rate(schedule),
  )
