"""The run: stages in order, each resumable, then the evaluation."""

import logging
import os
import time
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import linen as nn

from dhat_jax import build
from dhat_jax.datasets import batches as input_pipeline
from dhat_jax.datasets.base import Dataset, Split
from dhat_jax.evaluation import robustbench
from dhat_jax.evaluation.results import evaluate, summary, table
from dhat_jax.evaluation.validation import Validation
from dhat_jax.from_config import evaluation as plan
from dhat_jax.runtime import devices, workdir
from dhat_jax.runtime.preemption import Preempted, StopRequest
from dhat_jax.training import checkpoint, metrics
from dhat_jax.training.checkpoint import Checkpoints
from dhat_jax.training.stages import ALL_ROLES, Stage
from dhat_jax.training.state import TrainState, create_train_state

_logger = logging.getLogger(__name__)


class _StageRun:
  """The training of one stage, from its newest checkpoint to its end."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    directory: str,
    stage: Stage,
    net: nn.Module,
    train_split: Split,
    validation_split: Split | None,
    stop: StopRequest,
  ):
    self._config = config
    self._directory = directory
    self._stage = stage
    self._net = net
    self._train_split = train_split
    self._validation_split = validation_split
    self._stop = stop
    clean, attack = plan.validation_attacks(config)
    self._validation = Validation(
      evaluator=plan.make_evaluator(config, net),
      output=stage.role.output,
      clean=clean,
      attack=attack,
      seed=config.seed,
    )
    self._checkpoints = Checkpoints(
      checkpoint_folder(directory, stage.name), keep=config.checkpoint.keep
    )

  def run(self, state: TrainState, *, mode: str) -> tuple[Any, float]:
    """Trains from `state`, or from the newest checkpoint if there is one.

    Args:
      state: the state at step 0.
      mode: 'train', or 'evaluate' to take what is there.

    Returns:
      (variables of the best or the last checkpoint, as the stage says;
      seconds that the stage took, those before an interruption included).

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
        _logger.info('%s: continuing from step %d', stage.name, step)
      if step != stage.num_steps:
        self._train(latest, step or 0, info['seconds'])
        checkpoints.wait()
      step, latest, info = checkpoints.restore_latest(state)
      seconds = info['seconds']
      if stage.keep == 'best':
        step, latest, _ = checkpoints.restore_best(state)
      _logger.info(
        '%s: handing on the %s checkpoint, step %d of %d',
        *(stage.name, stage.keep, step, stage.num_steps),
      )
      return latest.variables(), seconds

  def _train(self, state: TrainState, start_step: int, seconds: float) -> None:
    """Trains to the end; the last thing it does is a checkpoint."""
    stage = self._stage
    is_first = devices.is_first()
    started = time.monotonic() - seconds
    writer = (
      metrics.Writer(self._directory, stage.name, start_step)
      if is_first
      else metrics.NullWriter()
    )
    bar = metrics.progress_bar(
      *(stage.name, stage.num_steps, start_step),
      unit='step',
      disable=not is_first,
    )
    if start_step == stage.num_steps:  # nothing to train: just hand it on
      self._save(state, start_step, None, started)
      return
    state = devices.replicate(state)
    step_fn = devices.pmap_train_step(
      build.train_step(self._config, stage, self._net)
    )
    pending = []  # (step, sums on the device) since the last record
    recorded = (start_step, time.monotonic())
    with writer, bar:
      for step, batch in self._batches(start_step):
        try:
          state, sums = step_fn(state, batch)
        except FloatingPointError as error:  # of jax.debug_nans
          raise metrics.NonFiniteError(
            f'{metrics.nan_source(error)}, at {self._place(step)}'
          ) from error
        if step == start_step + 1:
          compiled = {'compile_seconds': time.monotonic() - recorded[1]}
        stops = self._stop.ask()
        pending.append((step, sums))
        bar.update()
        validates = self._validates_at(step)
        saves = validates or stops or self._saves_at(step)
        if saves or step % self._config.log_every_steps == 0:
          # Before any checkpoint: one that is not finite must not be saved.
          values = self._fetch(pending, recorded) | compiled
          writer.write(step, {f'train/{k}': v for k, v in values.items()})
          bar.set_postfix(_shown(values))
          pending, recorded, compiled = [], (step, time.monotonic()), {}
        if saves:
          # The loss of a step tells nothing of the update made by it.
          saved = devices.to_host(state)
          metrics.check_finite_arrays(
            checkpoint.flatten(saved), f'after {self._place(step)}'
          )
          accuracy = self._validate(state) if validates else None
          if accuracy is not None:
            writer.write(
              step, {f'validation/{k}': v for k, v in accuracy.items()}
            )
            writer.write_pictures(step, self._pictures(state))
          self._save(saved, step, accuracy, started)
          recorded = (step, time.monotonic())
        if stops:
          self._checkpoints.wait()
          raise Preempted(f'stage {stage.name}, step {step}')

  def _batches(self, start_step: int) -> Iterator:
    """Yields (number of steps done once it is trained on, sharded batch)."""
    # Another order of the images in each stage.
    index = tuple(ALL_ROLES).index(self._stage.name)
    batches = input_pipeline.train_batches(
      self._train_split,
      batch_size=self._stage.batch_size,
      seed=self._config.seed * len(ALL_ROLES) + index,
      start_step=start_step,
      num_steps=self._stage.num_steps,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    sharded = (devices.shard(batch) for batch in batches)
    return enumerate(input_pipeline.prefetch(sharded), start_step + 1)

  def _validates_at(self, step: int) -> bool:
    if self._validation_split is None:
      return False
    every_epochs = self._config.validation.every_epochs
    return (
      step == self._stage.num_steps
      or step % (every_epochs * self._stage.steps_per_epoch) == 0
    )

  def _saves_at(self, step: int) -> bool:
    every_steps = self._config.checkpoint.every_steps
    return step == self._stage.num_steps or step % every_steps == 0

  def _fetch(self, pending, recorded: tuple[int, float]) -> dict[str, float]:
    """Brings the sums since the last record to the host and checks them."""
    stage = self._stage
    host = [(step, devices.to_host(sums)) for step, sums in pending]
    metrics.check_finite(host, self._place())
    step = host[-1][0]
    images = stage.batch_size * (step - recorded[0])
    return metrics.means(host) | {
      'epoch': step / stage.steps_per_epoch,
      'learning_rate': float(stage.schedule(step - 1)),
      'images_per_second': images / (time.monotonic() - recorded[1]),
    }

  def _place(self, step: int | None = None) -> str:
    """Returns what an error says of where it came up."""
    saved = self._checkpoints.steps()
    newest = f'{self._checkpoints.directory}/{saved[-1]}' if saved else 'none'
    at = '' if step is None else f'step {step} '
    return f'{at}of stage {self._stage.name}; last good checkpoint: {newest}'

  def _validate(self, state: TrainState) -> dict[str, float]:
    return self._validation.accuracies(
      state.variables(), self._validation_split
    )

  def _pictures(self, state: TrainState) -> dict[str, np.ndarray]:
    """Images under the attack of the validation: one row for each name."""
    clean, attacked = self._validation.images(
      state.variables(), self._validation_split, count=8
    )
    # Gray where nothing is changed.
    changes = 0.5 + 5 * (attacked - clean)
    return {
      'images/clean': clean,
      'images/attacked': attacked,
      'images/change': changes,
    }

  def _save(self, state, step, accuracy, started: float) -> None:
    self._checkpoints.save(
      step,
      state,
      metrics=accuracy,
      info={'seconds': time.monotonic() - started},
    )


def _shown(values: dict[str, float]) -> dict[str, str]:
  """What the progress bar shows of a record."""
  shown = {'loss': f'{values["loss"]:.3f}'}
  for label in ('clean', 'robust'):
    if f'{label}_accuracy' in values:
      shown[label] = f'{100 * values[f"{label}_accuracy"]:.1f}%'
  shown['images/s'] = f'{values["images_per_second"]:.0f}'
  return shown


def checkpoint_folder(directory: str, stage: str) -> str:
  """Returns where a stage's checkpoints are in a workdir."""
  return os.path.join(directory, 'checkpoints', stage)


def train(
  config: ml_collections.ConfigDict,
  directory: str,
  dataset: Dataset,
  *,
  mode: str = 'train',
) -> tuple[Any, dict[str, float]]:
  """Trains all stages of a config, or what is missing of them.

  Args:
    config: the run's config.
    directory: the workdir, already prepared.
    dataset: the data set, already validated.
    mode: 'train', or 'evaluate' to take what is there and train nothing.

  Returns:
    (variables of the last stage as host arrays, {stage: seconds}).

  Raises:
    ValueError: in mode 'evaluate', if a stage is not trained to its end.
    Preempted: SIGTERM came; everything is saved.
    metrics.NonFiniteError: the loss or the gradient is not finite.
  """
  train_split, validation_split = input_pipeline.hold_out(
    dataset.train, config.dataset.validation_size, seed=0
  )
  # All of them before the first trains: mistakes show at once.
  stages = [
    build.stage(config, name, len(train_split.labels)) for name in config.stages
  ]
  variables, seconds = None, {}
  stop = StopRequest()
  with stop.listening():
    for index, stage in enumerate(stages):
      net = build.stage_model(config, stage)
      state = create_train_state(
        net=net,
        tx=stage.tx,
        trains=stage.role.trains,
        rng=jax.random.fold_in(jax.random.key(config.seed), index),
        image_shape=dataset.train.images.shape[1:],
        variables=variables,
        ema=stage.ema_decay > 0,
      )
      run = _StageRun(
        config, directory, stage, net, train_split, validation_split, stop
      )
      variables, seconds[stage.name] = run.run(state, mode=mode)
      if stop.requested:
        raise Preempted(f'the end of stage {stage.name}')
  return variables, seconds


def train_and_evaluate(
  config: ml_collections.ConfigDict, directory: str, *, mode: str = 'train'
) -> dict[str, Any]:
  """Runs a config: trains its stages, evaluates, writes results.json.

  Called again with the same arguments it continues where it was stopped, and
  ends with the same parameters, bit for bit.

  Args:
    config: as a file in `configs/` makes it.
    directory: the workdir; a fresh folder, or that of the same config.
    mode: 'train', or 'evaluate' to evaluate (again) what the workdir holds;
      then `config.evaluation` may differ from the workdir's.

  Returns:
    What results.json holds.

  Raises:
    ValueError: bad config, data or workdir; raised before anything compiles.
    Preempted: SIGTERM came; the state is saved, call again to continue.
    metrics.NonFiniteError: training diverged.
  """
  build.check(config)
  results_path = os.path.join(directory, 'results.json')
  if mode == 'evaluate' and not os.path.exists(
    os.path.join(directory, 'config.json')
  ):
    raise ValueError(f'workdir {directory}: holds no run that can be evaluated')
  may_differ = ('evaluation.',) if mode == 'evaluate' else ()
  workdir.check(directory, config, may_differ=may_differ)
  finished = mode == 'train' and os.path.exists(results_path)
  devices.wait_for_all('workdir checked')  # before the first one writes to it
  if finished:
    _logger.info('%s is there: nothing left to do', results_path)
    results = workdir.read_json(results_path)
  else:
    # Data first: a run that finds none leaves nothing behind. And one process
    # first: what it downloads and caches is there for the others.
    with devices.first_alone('data'):
      dataset = build.dataset(config)
    workdir.prepare(directory, config, may_differ=may_differ)
    with jax.debug_nans(config.debug_nans or jax.config.jax_debug_nans):
      results = _run(config, directory, dataset, mode)
    if devices.is_first():
      workdir.write_json(results_path, results)
  if devices.is_first():
    print(_summary(results))
    print(f'\nresults: {results_path}')
  return results


def _run(config, directory, dataset, mode) -> dict[str, Any]:
  """Trains and evaluates, the natural twin too; returns the results."""
  results = _train_and_score(config, directory, dataset, mode)
  if config.compare_with_natural:
    natural = build.natural(config)
    folder = os.path.join(directory, 'natural')
    workdir.prepare(folder, natural, may_differ=('evaluation.',))
    scored = _train_and_score(natural, folder, dataset, mode)
    results['natural'] = {key: scored[key] for key in ('accuracy', 'seconds')}
  return results


def _train_and_score(config, directory, dataset, mode) -> dict[str, Any]:
  variables, seconds = train(config, directory, dataset, mode=mode)
  net = build.model(config)
  started = time.monotonic()
  found = evaluate(
    plan.make_evaluator(config, net),
    variables,
    dataset.test,
    plan.make_plan(config, net),
    class_names=dataset.class_names,
    seed=config.seed,
    directory=os.path.join(directory, 'evaluation'),
    progress='evaluation',
  )
  seconds['evaluation'] = time.monotonic() - started
  results = {
    'dataset': config.dataset.name,
    'data_source': dataset.source,
    'n_test': len(dataset.test.labels),
    'config': workdir.as_json(config),
    'versions': workdir.versions(),
    'seed': config.seed,
    'epsilon': build.epsilon(config.evaluation),
    **found,
    'seconds': {name: round(value, 1) for name, value in seconds.items()},
  }
  entry = robustbench.entry(results)
  if entry is not None and devices.is_first():
    workdir.write_json(os.path.join(directory, 'robustbench.json'), entry)
  return results


def _summary(results: dict[str, Any]) -> str:
  """Formats the accuracies for the console."""
  epsilon = results['epsilon']
  lines = [
    '',
    f'accuracy in % on {results["n_test"]} test images of '
    f'{results["dataset"]}, epsilon {epsilon:.4f} ({255 * epsilon:.1f}/255)',
    summary(results),
  ]
  if 'natural' in results:
    lines += [
      '',
      'the same network trained without adversarial images',
      table(results['natural']['accuracy']),
    ]
  return '\n'.join(lines)
