"""The training loop: stages in order, each resumable from its checkpoints.

It takes objects and callables only. `stages.Stage` says what to train, and
`Intervals` when to record, save and validate.
"""

import dataclasses
import logging
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from dhat_jax.datasets import batches
from dhat_jax.runtime import devices, files, memory, processes
from dhat_jax.runtime.preemption import Preempted, StopRequest
from dhat_jax.runtime.progress import progress_bar
from dhat_jax.training import checkpoint, metrics
from dhat_jax.training.checkpoint import Checkpoints
from dhat_jax.training.stages import Stage, initial_state
from dhat_jax.training.state import TrainState

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Intervals:
  """When a stage records, saves and validates. Its last step does all three.

  Attributes:
    log_steps: steps between records.
    checkpoint_steps: steps between checkpoints.
    validation_epochs: epochs between validations.
    keep_checkpoints: how many of the latest are kept, in addition to the best
      one.
  """

  log_steps: int = 20
  checkpoint_steps: int = 500
  validation_epochs: int = 1
  keep_checkpoints: int = 2


def checkpoint_folder(directory: str, stage: str) -> str:
  """Returns the folder of a stage's checkpoints in a workdir."""
  return os.path.join(directory, 'checkpoints', stage)


class _StageTraining:
  """The training of one stage, from its newest checkpoint to its end."""

  def __init__(
    self, stage: Stage, directory: str, intervals: Intervals, stop: StopRequest
  ):
    self._stage = stage
    self._directory = directory
    self._intervals = intervals
    self._stop = stop
    self._checkpoints = Checkpoints(
      checkpoint_folder(directory, stage.name),
      keep=intervals.keep_checkpoints,
    )

  def run(self, state: TrainState, *, mode: str) -> tuple[Any, float]:
    """Trains from `state`, or from the newest checkpoint if one exists.

    Args:
      state: the state at step 0.
      mode: 'train', or 'evaluate' to load the checkpoint without training.

    Returns:
      (variables of the best or the last checkpoint, as the stage says; seconds
      that the stage took, including those before an interruption).

    Raises:
      ValueError: in mode 'evaluate', if the stage is not trained to its end.
    """
    stage = self._stage
    with self._checkpoints as checkpoints:
      step, latest, info = checkpoints.restore_latest(state) or (None,) * 3
      if mode == 'evaluate' and step != stage.num_steps:
        raise ValueError(
          f'workdir {self._directory}: stage {stage.name!r} is at step {step} '
          f'of {stage.num_steps}; finish it with --mode=train first'
        )
      if step is None:
        latest, info = state, {'seconds': 0.0}
      elif step < stage.num_steps:
        _logger.info('%s: resuming from step %d', stage.name, step)
      if step != stage.num_steps:
        self._train(latest, step or 0, info['seconds'])
        checkpoints.wait()
      step, latest, info = checkpoints.restore_latest(state)
      seconds = info['seconds']
      if stage.keep == 'best':
        step, latest, _ = checkpoints.restore_best(state)
      _logger.info(
        '%s: using the %s checkpoint, step %d of %d',
        stage.name,
        stage.keep,
        step,
        stage.num_steps,
      )
      return latest.variables(averaged=stage.ema_use), seconds

  def _train(self, state: TrainState, start_step: int, seconds: float) -> None:
    """Trains to the end, and writes a last checkpoint."""
    stage = self._stage
    started = time.monotonic() - seconds
    if start_step == stage.num_steps:  # nothing to train: fit, or hand it on
      if stage.fit is not None:
        state = self._fit(state)
      self._save(state, start_step, None, started)
      return
    bar = progress_bar(
      stage.name,
      stage.num_steps,
      start_step,
      unit='step',
      disable=not processes.is_first(),
    )
    with self._writer(start_step) as writer, bar:
      self._run_steps(state, start_step, started, writer, bar)

  def _fit(self, state: TrainState) -> TrainState:
    """Returns the state with the parameters that the stage fits.

    The checkpoint comes last. So a killed fit runs again, a finished one not.
    """
    fitted = self._stage.fit(devices.replicate(state.variables()))
    metrics.check_finite_arrays(
      checkpoint.flatten(fitted.params), f'in the fit {self._place(0)}'
    )
    # A killed fit may have written its record.
    with self._writer(start_step=-1) as writer:
      writer.write(0, {f'fit/{k}': v for k, v in fitted.numbers.items()})
    return state.with_parts(fitted.params)

  def _writer(self, start_step: int) -> Any:
    """Opens the records, in the first process."""
    if not processes.is_first():
      return metrics.NullWriter()
    return metrics.Writer(self._directory, self._stage.name, start_step)

  def _run_steps(
    self,
    state: TrainState,
    start_step: int,
    started: float,
    writer: Any,
    bar: Any,
  ) -> None:
    """Runs the missing steps, with records and checkpoints."""
    memory.return_freed()  # of what compiled before; the step needs most
    state = devices.replicate(state)
    step_fn = devices.pmap_train_step(self._stage.step)
    pending = []  # (step, sums on the device) since the last record
    recorded = (start_step, time.monotonic())
    compiled = {}
    bar.set_postfix_str('compiling, or loading what is compiled')
    for step, batch in self._batches(start_step):
      try:
        state, sums = step_fn(state, batch)
      except FloatingPointError as error:  # of jax.debug_nans
        raise metrics.NonFiniteError(
          f'{metrics.nan_source(error)}, at {self._place(step)}'
        ) from error
      if step == start_step + 1:
        devices.to_host(sums)  # which waits for the step
        bar.set_postfix_str('', refresh=False)
        compiled = {'compile_seconds': time.monotonic() - recorded[1]}
        memory.return_freed()
        recorded = (step, time.monotonic())
      stops = self._stop.ask()
      pending.append((step, sums))
      bar.update()
      validates = self._validates_at(step)
      saves = validates or stops or self._saves_at(step)
      if saves or step % self._intervals.log_steps == 0:
        # Before any checkpoint: one that is not finite must not be saved.
        values = self._fetch(pending, recorded) | compiled
        writer.write(step, {f'train/{k}': v for k, v in values.items()})
        bar.set_postfix(_shown(values))
        pending, recorded, compiled = [], (step, time.monotonic()), {}
      if saves:
        self._validate_and_save(state, step, started, writer, validates)
        recorded = (step, time.monotonic())
      if stops:
        self._checkpoints.wait()
        raise Preempted(f'stage {self._stage.name}, step {step}')

  def _validate_and_save(
    self,
    state: TrainState,
    step: int,
    started: float,
    writer: Any,
    validates: bool,
  ) -> None:
    """Writes a checkpoint of a replicated state, with its validation."""
    # The loss of a step tells nothing of the update made by it.
    saved = devices.to_host(state)
    metrics.check_finite_arrays(
      checkpoint.flatten(saved), f'after {self._place(step)}'
    )
    accuracies = None
    if validates:
      variables = state.variables(averaged=self._stage.ema_use)
      accuracies, pictures = self._stage.validation.judge(variables)
      writer.write(step, {f'validation/{k}': v for k, v in accuracies.items()})
      writer.write_pictures(step, pictures)
    self._save(saved, step, accuracies, started)

  def _batches(self, start_step: int) -> Iterator:
    """Yields (number of steps done once it is trained on, sharded batch)."""
    source = self._stage.source
    sharded = (
      devices.shard(source.batch(step))
      for step in range(start_step, self._stage.num_steps)
    )
    return enumerate(batches.prefetch(sharded), start_step + 1)

  def _validates_at(self, step: int) -> bool:
    if self._stage.validation is None:
      return False
    every_steps = (
      self._intervals.validation_epochs * self._stage.steps_per_epoch
    )
    return step == self._stage.num_steps or step % every_steps == 0

  def _saves_at(self, step: int) -> bool:
    every_steps = self._intervals.checkpoint_steps
    return step == self._stage.num_steps or step % every_steps == 0

  def _fetch(
    self, pending: list, recorded: tuple[int, float]
  ) -> dict[str, float]:
    """Brings the sums since the last record to the host and checks them."""
    stage = self._stage
    host = [(step, devices.to_host(sums)) for step, sums in pending]
    metrics.check_finite(host, self._place())
    step = host[-1][0]
    values = metrics.means(host) | {
      'epoch': step / stage.steps_per_epoch,
      'learning_rate': float(stage.schedule(step - 1)),
    }
    if momentum := getattr(stage.schedule, 'momentum', None):
      values['momentum'] = float(momentum(step - 1))
    # The first step, which compiles, has a time of its own.
    if images := stage.batch_size * (step - recorded[0]):
      values['images_per_second'] = images / (time.monotonic() - recorded[1])
    return values

  def _place(self, step: int | None = None) -> str:
    """Returns the place that an error names."""
    saved = self._checkpoints.steps()
    newest = f'{self._checkpoints.directory}/{saved[-1]}' if saved else 'none'
    at = '' if step is None else f'step {step} '
    return f'{at}of stage {self._stage.name}; last good checkpoint: {newest}'

  def _save(
    self,
    state: TrainState,
    step: int,
    accuracies: dict[str, float] | None,
    started: float,
  ) -> None:
    self._checkpoints.save(
      step,
      state,
      metrics=accuracies,
      info={'seconds': time.monotonic() - started},
    )


def _shown(values: dict[str, float]) -> dict[str, str]:
  """Returns what the progress bar shows of a record."""
  shown = {'loss': f'{values["loss"]:.3f}'}
  for label in ('clean', 'robust'):
    if f'{label}_accuracy' in values:
      shown[label] = f'{100 * values[f"{label}_accuracy"]:.1f}%'
  if 'images_per_second' in values:
    shown['images/s'] = f'{values["images_per_second"]:.0f}'
  return shown


def train(
  stages: Sequence[Stage],
  directory: str,
  *,
  image_shape: tuple[int, int, int],
  intervals: Intervals | None = None,
  mode: str = 'train',
) -> tuple[Any, dict[str, float]]:
  """Trains the missing stages in order.

  Args:
    stages: each starts from the variables of the one before.
    directory: the workdir: `checkpoints/<stage>/`, `metrics.jsonl` and
      `tensorboard/<stage>/` go there.
    image_shape: (H, W, C).
    intervals: default: `Intervals()`.
    mode: 'train', or 'evaluate' to load the checkpoints without training.

  Returns:
    (variables of the last stage as host arrays, {stage: seconds}).

  Raises:
    ValueError: in mode 'evaluate', if a stage is not trained to its end.
    Preempted: a signal came; everything is saved.
    metrics.NonFiniteError: the loss or the gradient is not finite.
  """
  directory = files.user_path(directory)
  intervals = intervals or Intervals()
  variables, seconds = None, {}
  stop = StopRequest()
  with stop.listening():
    for stage in stages:
      state = initial_state(stage, image_shape, variables)
      training = _StageTraining(stage, directory, intervals, stop)
      variables, seconds[stage.name] = training.run(state, mode=mode)
      if stop.requested:
        raise Preempted(f'the end of stage {stage.name}')
  return variables, seconds
