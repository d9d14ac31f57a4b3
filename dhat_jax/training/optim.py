"""Optimisers, as Optax transforms, by name.

An optimiser's factory takes `schedule`, step -> learning rate, which
`make_schedule` creates. A user's config file adds one:

    @optim.OPTIMIZERS.register('lion')
    def lion(*, schedule, weight_decay):
      return optax.lion(schedule, weight_decay=weight_decay)
"""

from collections.abc import Sequence
from typing import Any

import jax
import optax

from dhat_jax import arguments
from dhat_jax.registry import Registry

# The names under which users' files know them.
from dhat_jax.training.schedules import SCHEDULES as SCHEDULES
from dhat_jax.training.schedules import CycledSchedule as CycledSchedule
from dhat_jax.training.schedules import make_schedule as make_schedule
from dhat_jax.training.schedules import whole_steps as whole_steps

# All configs have SGD's options; another optimiser takes what it names.
OPTIMIZERS = Registry(
  'optimizer',
  shared=(
    'schedule',
    'momentum',
    'nesterov',
    'weight_decay',
    'decay_norm',
    'clip_norm',
  ),
)


def _is_decayed(params: Any) -> Any:
  """True for kernels, False for biases and batch norm's parameters."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == 'kernel', params
  )


def _clip_and_decay(
  schedule: optax.ScalarOrSchedule,
  weight_decay: float,
  decay_norm: bool,
  clip_norm: float,
) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
  """Checks what all optimisers have, and returns (clipping, weight decay)."""
  if not callable(schedule):
    arguments.number('schedule', schedule, 0)
  arguments.number('weight_decay', weight_decay, 0)
  arguments.number('clip_norm', clip_norm, 0)
  arguments.flag('decay_norm', decay_norm)
  return (
    optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
    optax.add_decayed_weights(
      weight_decay, mask=None if decay_norm else _is_decayed
    ),
  )


@OPTIMIZERS.register('sgd')
def sgd(
  *,
  schedule: optax.ScalarOrSchedule,
  momentum: float,
  weight_decay: float,
  decay_norm: bool = True,
  nesterov: bool = False,
  clip_norm: float = 0.0,
) -> optax.GradientTransformation:
  """Creates SGD as PyTorch defines it: decay joins the gradient.

  g <- g + weight_decay * p;  m <- momentum * m + g;  p <- p - rate * m

  Args:
    schedule: step -> learning rate; or one rate for all steps.
    momentum: in [0, 1). A schedule with a `momentum`, as one_cycle's, takes its
      place.
    weight_decay: L2 coefficient.
    decay_norm: whether biases and batch norm's parameters decay too, as in
      PyTorch's default; False leaves the decay to kernels.
    nesterov: whether the momentum is Nesterov's.
    clip_norm: the gradient's largest global norm; 0 does not clip.

  Returns:
    The transform. It gets the trained parts only.

  Raises:
    ValueError: a number out of its range.
  """
  arguments.number('momentum', momentum, 0, below=1)
  arguments.flag('nesterov', nesterov)
  clip, decay = _clip_and_decay(schedule, weight_decay, decay_norm, clip_norm)
  cycled = getattr(schedule, 'momentum', None)
  if cycled is None:
    trace = optax.trace(decay=momentum, nesterov=nesterov)
  else:
    trace = optax.inject_hyperparams(
      optax.trace, static_args=('nesterov', 'accumulator_dtype')
    )(decay=cycled, nesterov=nesterov)
  return optax.chain(clip, decay, trace, optax.scale_by_learning_rate(schedule))


@OPTIMIZERS.register('adamw')
def adamw(
  *,
  schedule: optax.ScalarOrSchedule,
  weight_decay: float,
  decay_norm: bool = True,
  clip_norm: float = 0.0,
  betas: Sequence[float] = (0.9, 0.999),
  eps: float = 1e-8,
) -> optax.GradientTransformation:
  """Creates AdamW as PyTorch defines it: decay beside the gradient.

  p <- p - rate * (m / (sqrt(v) + eps) + weight_decay * p), with m and v without
  bias (Loshchilov and Hutter, arXiv 1711.05101).

  Args:
    schedule: step -> learning rate; or one rate for all steps.
    weight_decay: coefficient of the decay, times the rate.
    decay_norm: whether biases and batch norm's parameters decay too.
    clip_norm: the gradient's largest global norm; 0 does not clip.
    betas: decay of the two moments, each in [0, 1). A schedule with a
      `momentum`, as one_cycle's, takes the place of the first, as in PyTorch.
    eps: added to the root of the second moment.

  Returns:
    The transform. It gets the trained parts only.

  Raises:
    ValueError: a number out of its range.
  """
  if len(arguments.sequence('betas', betas)) != 2:
    raise arguments.mistake('betas', betas, 'two numbers')
  for index, beta in enumerate(betas):
    arguments.number(f'betas[{index}]', beta, 0, below=1)
  arguments.number('eps', eps, above=0)
  clip, decay = _clip_and_decay(schedule, weight_decay, decay_norm, clip_norm)
  b1, b2 = betas
  cycled = getattr(schedule, 'momentum', None)
  if cycled is None:
    moments = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
  else:
    moments = optax.inject_hyperparams(
      optax.scale_by_adam, static_args=('b2', 'eps', 'eps_root', 'mu_dtype')
    )(b1=cycled, b2=b2, eps=eps)
  return optax.chain(
    clip, moments, decay, optax.scale_by_learning_rate(schedule)
  )


# The public name of the default, for other programs.
make_optimizer = sgd
