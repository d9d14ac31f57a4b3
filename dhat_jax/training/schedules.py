"""Learning-rate schedules by name, and the ramp of the attack's radius.

A schedule is (step) -> learning rate. Its factory takes its own options and, if
it names them, `num_steps`, `steps_per_epoch`, `drop_epochs` and `drop_factor`.
A user's config file adds one:

    @optim.SCHEDULES.register('triangle')
    def triangle(*, learning_rate, num_steps):
      ...

A schedule that also moves the momentum has it as an attribute `momentum`, which
is step -> momentum. The optimisers take it in place of their own: see
`CycledSchedule`.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import chex
import jax.numpy as jnp
import optax

from dhat_jax import arguments
from dhat_jax.registry import Registry

# All configs have drop_epochs and drop_factor, whatever their schedule's name:
# so that a command line can choose another one.
SCHEDULES = Registry(
  'schedule',
  shared=('num_steps', 'steps_per_epoch', 'drop_epochs', 'drop_factor'),
)


@dataclasses.dataclass(frozen=True)
class CycledSchedule:
  """A learning rate whose schedule moves the momentum too.

  Attributes:
    rate: step -> learning rate, which a call of the schedule returns.
    momentum: step -> momentum. SGD and AdamW take it in place of their own
      (AdamW as its first beta), and the records have it.
  """

  rate: optax.Schedule
  momentum: optax.Schedule

  def __call__(self, step: chex.Numeric) -> chex.Numeric:
    """Returns the learning rate."""
    return self.rate(step)


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
def cosine_schedule(
  *,
  learning_rate: float,
  num_steps: int,
  steps_per_epoch: int = 1,
  per_epoch: bool = False,
) -> optax.Schedule:
  """Half a cosine, from the rate at step 0 to 0 at the stage's end.

  Args:
    learning_rate: the rate at step 0.
    num_steps: the stage's length.
    steps_per_epoch: steps in one pass over the training set.
    per_epoch: whether the rate is constant within an epoch. In epoch e of E,
      counted from 0, it is .5 (1 + cos(pi e / E)) times the first one.
  """
  if not arguments.flag('per_epoch', per_epoch):
    return optax.cosine_decay_schedule(learning_rate, max(num_steps, 1))
  epochs = max(num_steps, 1) / steps_per_epoch
  return _by_epochs(
    optax.cosine_decay_schedule(learning_rate, epochs), steps_per_epoch
  )


def _by_epochs(
  by_epoch: optax.Schedule, steps_per_epoch: int
) -> optax.Schedule:
  """Turns a schedule of the epoch, counted from 0, into one of the step."""
  return lambda step: by_epoch(step // steps_per_epoch)


@SCHEDULES.register('constant')
def constant_schedule(*, learning_rate: float) -> optax.Schedule:
  """The same rate at every step."""
  return optax.constant_schedule(learning_rate)


@SCHEDULES.register('one_cycle')
def one_cycle_schedule(
  *,
  learning_rate: float,
  num_steps: int,
  steps_per_epoch: int = 1,
  pct_start: float = 0.3,
  div_factor: float = 25.0,
  final_div_factor: float = 1e4,
  cycle_momentum: bool = True,
  base_momentum: float = 0.85,
  max_momentum: float = 0.95,
  per_epoch: bool = False,
) -> optax.Schedule:
  """One rise to the rate and one fall, both half a cosine.

  The momentum falls while the rate rises, and rises while it falls. This is
  `torch.optim.lr_scheduler.OneCycleLR` in two phases (Smith and Topin, arXiv
  1708.07120). PyTorch raises ZeroDivisionError where the rise ends at the very
  first step; here the rate starts at its peak.

  Args:
    learning_rate: the rate at the peak, PyTorch's `max_lr`.
    num_steps: the stage's length.
    steps_per_epoch: steps in one pass over the training set.
    pct_start: the share of the stage in which the rate rises, in (0, 1).
    div_factor: the first rate is the peak's, divided by this.
    final_div_factor: the last rate is the first one, divided by this.
    cycle_momentum: whether the momentum moves too. It takes the place of the
      optimiser's own.
    base_momentum: the momentum at the peak.
    max_momentum: the momentum at both ends.
    per_epoch: whether rate and momentum are constant within an epoch.

  Raises:
    ValueError: a number out of its range, or one epoch with `per_epoch`.
  """
  arguments.number('pct_start', pct_start, above=0, below=1)
  arguments.number('div_factor', div_factor, 1)
  arguments.number('final_div_factor', final_div_factor, 1)
  arguments.number('max_momentum', max_momentum, 0, below=1)
  arguments.number('base_momentum', base_momentum, 0, max_momentum)
  arguments.flag('cycle_momentum', cycle_momentum)
  length = max(num_steps, 1)
  if arguments.flag('per_epoch', per_epoch):
    length = math.ceil(length / steps_per_epoch)
    if num_steps and length < 2:
      raise ValueError(
        'per_epoch: got true for a stage of one epoch, whose rate would be the '
        'last one'
      )
  first = learning_rate / div_factor

  def phases(start: float, peak: float, end: float) -> optax.Schedule:
    schedule = _two_cosines(start, peak, end, length, pct_start)
    return _by_epochs(schedule, steps_per_epoch) if per_epoch else schedule

  rate = phases(first, learning_rate, first / final_div_factor)
  if not cycle_momentum:
    return rate
  return CycledSchedule(rate, phases(max_momentum, base_momentum, max_momentum))


def _two_cosines(
  start: float, peak: float, end: float, length: int, pct_start: float
) -> optax.Schedule:
  """Half a cosine from `start` to `peak`, and another one to `end`.

  The peak is at pct_start * length - 1, between two steps if need be.
  """
  top, last = pct_start * length - 1, length - 1

  def at(step: chex.Numeric) -> chex.Numeric:
    step = jnp.minimum(step, last)
    rising = step / top if top else 1.0
    falling = (step - top) / (last - top)
    return jnp.where(
      step <= top, _cosine(start, peak, rising), _cosine(peak, end, falling)
    )

  return at


def _cosine(start: float, end: float, share: chex.Numeric) -> chex.Numeric:
  return end + (start - end) / 2 * (1 + jnp.cos(jnp.pi * share))


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
    step -> learning rate; a `CycledSchedule` if the momentum moves too.

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

  def warmed(step: chex.Numeric) -> chex.Numeric:
    return schedule(step) * ramp(step + 1)

  momentum = getattr(schedule, 'momentum', None)
  return CycledSchedule(warmed, momentum) if momentum else warmed


def make_attack_scale(
  *,
  warmup_epochs: float,
  steps_per_epoch: int,
  warmup_start_epoch: float = 1.0,
  warmup_start_fraction: float = 0.0,
  warmup_per_epoch: bool = False,
  where: str = 'attack',
) -> optax.Schedule:
  """Creates the factor of the attack's radius and step size.

  Args:
    warmup_epochs: length of the ramp; 0: the factor jumps to 1.
    steps_per_epoch: steps in one pass over the training set.
    warmup_start_epoch: the epoch in which the ramp begins, counted from 1.
    warmup_start_fraction: the factor before the ramp, from which it rises.
    warmup_per_epoch: whether the factor is constant within an epoch. Then it is
      e / E in epoch e of E, counted from 1, as in the code of DKL (NeurIPS
      2024) and DAJAT (2022). By step, the ramp's first step has the fraction.
    where: what gives the options, for errors: 'config.main_head.attack'.

  Returns:
    step -> factor in [0, 1].

  Raises:
    ValueError: a number out of its range.
  """
  arguments.number(f'{where}.warmup_start_epoch', warmup_start_epoch, 1)
  fraction = arguments.number(
    f'{where}.warmup_start_fraction', warmup_start_fraction, 0, 1
  )
  arguments.flag(f'{where}.warmup_per_epoch', warmup_per_epoch)
  warmup_steps = whole_steps(
    f'{where}.warmup_epochs', warmup_epochs, steps_per_epoch
  )
  start = whole_steps(
    f'{where}.warmup_start_epoch', warmup_start_epoch - 1, steps_per_epoch
  )
  if not warmup_steps:
    if not start:
      return optax.constant_schedule(1.0)
    return lambda step: jnp.where(step < start, fraction, 1.0)
  ramp = optax.linear_schedule(
    fraction, 1.0, warmup_steps, transition_begin=start
  )
  if not warmup_per_epoch:
    return ramp
  # That of the epoch's end.
  return lambda step: ramp((step // steps_per_epoch + 1) * steps_per_epoch)
