"""Learning-rate schedules and optimisers, as Optax transforms, by name.

A schedule is (step) -> learning rate. Its factory takes its own options and, if
it names them, `num_steps`, `steps_per_epoch`, `drop_epochs` and `drop_factor`.
An optimiser's factory takes `schedule`. A user's config file adds to both:

    @optim.SCHEDULES.register('triangle')
    def triangle(*, learning_rate, num_steps):
      ...
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import optax

from dhat_jax import arguments
from dhat_jax.registry import Registry

# All configs have drop_epochs and drop_factor, whatever their schedule's name:
# so that a command line can choose another one.
SCHEDULES = Registry(
  'schedule',
  shared=('num_steps', 'steps_per_epoch', 'drop_epochs', 'drop_factor'),
)
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


def whole_steps(name: str, epochs: float, steps_per_epoch: int) -> int:
  """Returns a number of epochs in steps, rounded.

  Args:
    name: of the argument, for the error: 'config.main_head.epochs'.
    epochs: >= 0.
    steps_per_epoch: steps in one pass over the training set.

  Raises:
    ValueError: not a number in range, or more steps than can be counted.
  """
  steps = round(arguments.number(name, epochs, 0) * steps_per_epoch)
  if steps > arguments.LARGEST_INTEGER:
    raise ValueError(
      f'{name}: got {arguments.shown(epochs)}, expected at most '
      f'{arguments.LARGEST_INTEGER // steps_per_epoch} '
      f'({arguments.LARGEST_INTEGER} steps)'
    )
  return steps


def _check_drops(
  drop_epochs: Sequence[float], drop_factor: float, steps_per_epoch: int
) -> None:
  """Raises ValueError for invalid drops of the rate."""
  arguments.sequence('drop_epochs', drop_epochs)
  for epoch in drop_epochs:
    whole_steps('drop_epochs', epoch, steps_per_epoch)
  rising = all(a < b for a, b in itertools.pairwise((0, *drop_epochs)))
  if not rising or any(epoch < 1 for epoch in drop_epochs):
    raise arguments.mistake(
      'drop_epochs', drop_epochs, 'rising numbers >= 1, the epochs from 1 on'
    )
  arguments.number('drop_factor', drop_factor, above=0)


@SCHEDULES.register('step')
def step_schedule(
  *,
  learning_rate: float,
  steps_per_epoch: int,
  drop_epochs: Sequence[float] = (),
  drop_factor: float = 0.1,
) -> optax.Schedule:
  """Multiplies the rate by a factor at the start of given epochs.

  Args:
    learning_rate: the rate before the first drop.
    steps_per_epoch: steps in one pass over the training set.
    drop_epochs: epochs, counted from 1 as in the published code: 75 means that
      74 epochs are trained at the rate before.
    drop_factor: the factor of each drop.

  Raises:
    ValueError: epochs that do not rise, or a factor that is not positive.
  """
  _check_drops(drop_epochs, drop_factor, steps_per_epoch)
  drops = {(epoch - 1) * steps_per_epoch: drop_factor for epoch in drop_epochs}
  return optax.piecewise_constant_schedule(learning_rate, drops)


@SCHEDULES.register('cosine')
def cosine_schedule(*, learning_rate: float, num_steps: int) -> optax.Schedule:
  """Half a cosine, from the rate at step 0 to 0 at the stage's end."""
  return optax.cosine_decay_schedule(learning_rate, max(num_steps, 1))


@SCHEDULES.register('constant')
def constant_schedule(*, learning_rate: float) -> optax.Schedule:
  """The same rate at every step."""
  return optax.constant_schedule(learning_rate)


def make_schedule(
  *,
  name: str,
  num_steps: int,
  steps_per_epoch: int,
  warmup_epochs: float = 0.0,
  drop_epochs: Sequence[float] = (),
  drop_factor: float = 0.1,
  where: str = 'schedule',
  **options: Any,
) -> optax.Schedule:
  """Creates the learning rate as a function of the step.

  Args:
    name: key of `SCHEDULES`.
    num_steps: the stage's length.
    steps_per_epoch: steps in one pass over the training set.
    warmup_epochs: the rate rises linearly from 0 over these first epochs.
    drop_epochs: see `step_schedule`; other schedules do not use it.
    drop_factor: likewise.
    where: what gives the options, for errors: 'config.main_head.schedule'.
    **options: the schedule's own options, as `learning_rate`.

  Returns:
    step -> learning rate.

  Raises:
    ValueError: unknown name or option, or a number out of its range.
  """
  arguments.integer('num_steps', num_steps, 0)
  arguments.integer('steps_per_epoch', steps_per_epoch, 1)
  rate = options.get('learning_rate', 1.0)
  arguments.number(f'{where}.learning_rate', rate, above=0)
  warmup_steps = whole_steps(
    f'{where}.warmup_epochs', warmup_epochs, steps_per_epoch
  )
  schedule = SCHEDULES.make(
    name,
    options,
    where=where,
    num_steps=num_steps,
    steps_per_epoch=steps_per_epoch,
    drop_epochs=drop_epochs,
    drop_factor=drop_factor,
  )
  if not warmup_steps:
    return schedule
  ramp = optax.linear_schedule(0.0, 1.0, warmup_steps)
  return lambda step: schedule(step) * ramp(step + 1)


def _is_decayed(params: Any) -> Any:
  """True for kernels, False for biases and batch norm's parameters."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == 'kernel', params
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
    momentum: in [0, 1).
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
  if not callable(schedule):
    arguments.number('schedule', schedule, 0)
  arguments.number('momentum', momentum, 0, below=1)
  arguments.number('weight_decay', weight_decay, 0)
  arguments.number('clip_norm', clip_norm, 0)
  arguments.flag('nesterov', nesterov)
  arguments.flag('decay_norm', decay_norm)
  return optax.chain(
    optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
    optax.add_decayed_weights(
      weight_decay, mask=None if decay_norm else _is_decayed
    ),
    optax.trace(decay=momentum, nesterov=nesterov),
    optax.scale_by_learning_rate(schedule),
  )


# The public name of the default, for other programs.
make_optimizer = sgd
