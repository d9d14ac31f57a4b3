"""A run: trains, evaluates, writes results; and loads trained networks."""

import dataclasses
import functools
import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from dhat_jax.datasets.base import Dataset
from dhat_jax.evaluation import robustbench
from dhat_jax.evaluation.results import evaluate
from dhat_jax.evaluation.summary import summary
from dhat_jax.from_config.check import check
from dhat_jax.from_config.data import digests, load_dataset
from dhat_jax.from_config.experiment import Experiment, make_experiment
from dhat_jax.from_config.training import find_role, make_natural, make_network
from dhat_jax.from_config.values import (
  as_json,
  completed,
  in_unit,
  workdir_defaults,
)
from dhat_jax.models.dual_head import DualHeadNet
from dhat_jax.models.outputs import Outputs, final
from dhat_jax.runtime import (
  documents,
  files,
  processes,
  provenance,
  settings,
  workdir,
)
from dhat_jax.training import loop, stored

_logger = logging.getLogger(__name__)


@settings.standard()
def train_and_evaluate(
  config: ml_collections.ConfigDict, directory: str, *, mode: str = 'train'
) -> dict[str, Any]:
  """Runs a config: trains its stages, evaluates, writes results.json.

  A second call with the same arguments resumes a stopped run. It ends with the
  same parameters, bit for bit.

  Args:
    config: as a file in `configs/` returns it.
    directory: the workdir: a new folder, or that of the same config.
    mode: 'train', or 'evaluate' to evaluate the workdir's network (again). Then
      `config.evaluation` may differ from the workdir's.

  Returns:
    The content of results.json.

  Raises:
    ValueError: bad config, data or workdir, or a workdir that another process
      uses (`lock.InUseError`). It is raised before anything compiles.
    Preempted: a signal came; the state is saved, call again to resume.
    metrics.NonFiniteError: training diverged.
  """
  check(config)
  directory = files.user_path(directory)
  results_path = os.path.join(directory, 'results.json')
  if mode == 'evaluate' and not os.path.exists(
    os.path.join(directory, 'config.json')
  ):
    raise ValueError(f'workdir {directory}: holds no run that can be evaluated')
  may_differ = ('evaluation.',) if mode == 'evaluate' else ()
  check_workdir(config, directory, may_differ=may_differ)
  finished = mode == 'train' and os.path.exists(results_path)
  processes.wait_for_all('workdir checked')  # before the first one writes to it
  if finished:
    if workdir.data_moved(directory, as_json(config)):
      workdir.check_data(directory, digests(config, _load(config)))
    _logger.info('%s is there: nothing left to do', results_path)
    results = documents.read(results_path)
  else:
    with workdir.exclusive(directory):
      # After the mistakes that show at once: they are one line.
      _logger.info('starting %s', directory)
      # Data first: a run that finds none leaves nothing behind.
      dataset = _load(config)
      with jax.debug_nans(config.debug_nans or jax.config.jax_debug_nans):
        results = _run(config, directory, dataset, mode)
      if processes.is_first():
        documents.write(results_path, results)
  if processes.is_first():
    print(summary(results))
    print(f'\nresults: {results_path}')
  return results


def _load(config: ml_collections.ConfigDict) -> Dataset:
  """Loads the data, in one process first; the others then read its cache."""
  with processes.first_alone('data'):
    return load_dataset(config)


def check_workdir(
  config: ml_collections.ConfigDict,
  directory: str,
  *,
  may_differ: tuple[str, ...] = (),
) -> None:
  """Checks that a folder can hold a run of a config; see `workdir.check`."""
  workdir.check(
    files.user_path(directory),
    as_json(config),
    may_differ=may_differ,
    defaults=workdir_defaults(),
  )


def prepare_workdir(
  config: ml_collections.ConfigDict,
  directory: str,
  *,
  data: Mapping[str, str] | None = None,
  splits: Sequence[str] | None = None,
  may_differ: tuple[str, ...] = (),
) -> None:
  """Prepares a folder for a run of a config; see `workdir.prepare`."""
  workdir.prepare(
    files.user_path(directory),
    as_json(config),
    data=data,
    splits=splits,
    may_differ=may_differ,
    defaults=workdir_defaults(),
  )


def _run(
  config: ml_collections.ConfigDict, directory: str, dataset: Dataset, mode: str
) -> dict[str, Any]:
  """Trains and evaluates, also the natural twin; returns the results."""
  evaluates = mode == 'evaluate'
  data = {
    'data': digests(config, dataset),
    'splits': ('test',) if evaluates else None,
  }
  may_differ = ('evaluation.',)
  # Before the workdir is written: a mistake in the config leaves it free.
  experiment = make_experiment(config, dataset)
  prepare_workdir(
    config, directory, may_differ=may_differ if evaluates else (), **data
  )
  results = _train_and_score(config, experiment, directory, mode)
  if config.compare_with_natural:
    natural = make_natural(config)
    folder = os.path.join(directory, 'natural')
    _logger.info('the same network, trained without adversarial images:')
    # The same network: the twin is attacked by what is compiled already.
    twin = make_experiment(natural, dataset, evaluator=experiment.evaluator)
    prepare_workdir(natural, folder, may_differ=may_differ, **data)
    scored = _train_and_score(natural, twin, folder, mode)
    results['natural'] = {key: scored[key] for key in ('accuracy', 'seconds')}
  return results


def _train_and_score(
  config: ml_collections.ConfigDict,
  experiment: Experiment,
  directory: str,
  mode: str,
) -> dict[str, Any]:
  """Trains the missing stages of one network and evaluates it."""
  dataset = experiment.dataset
  variables, seconds = loop.train(
    experiment.stages,
    directory,
    image_shape=experiment.image_shape,
    intervals=experiment.intervals,
    mode=mode,
  )
  started = time.monotonic()
  scores = evaluate(
    experiment.evaluator,
    variables,
    dataset.test,
    experiment.plan,
    class_names=dataset.class_names,
    seed=experiment.seed,
    directory=os.path.join(directory, 'evaluation'),
    progress='evaluation',
  )
  seconds['evaluation'] = time.monotonic() - started
  results = documents.document(
    'run',
    {
      'dataset': config.dataset.name,
      'data_source': dataset.source,
      'n_test': len(dataset.test.labels),
      'config': as_json(config),
      'versions': provenance.versions(),
      'seed': config.seed,
      'epsilon': in_unit(config.evaluation, 'epsilon'),
      **scores,
      'seconds': {name: round(value, 1) for name, value in seconds.items()},
    },
  )
  if processes.is_first():
    _write_entry(os.path.join(directory, 'robustbench.json'), results)
  return results


def _write_entry(path: str, results: Mapping[str, Any]) -> None:
  """Writes RobustBench's entry, or removes that of earlier results."""
  entry = robustbench.entry(results)
  if entry is not None:
    files.write_json(path, entry)
  elif os.path.exists(path):
    os.remove(path)


@dataclasses.dataclass(frozen=True)
class Run:
  """A trained run.

  Attributes:
    net: the network; `net.apply(variables, images)` returns its `Outputs`.
    variables: {'params': ..., 'batch_stats': ...}, NumPy arrays.
    config: the run's config.
    output: the output that the run is about: the aggregated output if it has
      one. If a stage was requested, the output that it trains.
  """

  net: DualHeadNet
  variables: Mapping[str, Any]
  config: ml_collections.ConfigDict
  output: str

  @functools.cached_property
  def _apply(self) -> Any:
    return jax.jit(self.net.apply)

  def outputs(self, images: Any) -> Outputs:
    """Computes all outputs.

    Args:
      images: [N, H, W, C], uint8 or float in [0, 1].

    Returns:
      Outputs of float logits [N, K].
    """
    images = np.asarray(images)
    if images.dtype == np.uint8:
      images = images.astype(np.float32) / 255
    return self._apply(self.variables, images)

  def predict(self, images: Any, output: str | None = None) -> np.ndarray:
    """Computes the logits of one output.

    Args:
      images: [N, H, W, C], uint8 or float in [0, 1].
      output: default: `run.output`, `aggregated` for a whole DH-AT run.

    Returns:
      float [N, K]; its argmax over axis 1 is the predicted class.
    """
    return np.asarray(self.outputs(images).select(output or self.output))


def load_run(workdir: str, stage: str | None = None) -> Run:
  """Loads the network of a trained run, without its data.

  Nothing is written to the workdir, so the run may still be training.

  Args:
    workdir: its folder.
    stage: the stage whose network is loaded; default: the last one. The
      checkpoint is the one that the next stage starts from, best or last.

  Returns:
    The run.

  Raises:
    ValueError: no run, a stage that is missing or not trained, or an unknown
      part. If a config file of your own registers the part, import it first.
  """
  directory = files.user_path(workdir)
  path = os.path.join(directory, 'config.json')
  if not os.path.exists(path):
    raise ValueError(f'workdir {workdir}: holds no run (no config.json)')
  values = files.read_json(path)
  with files.reading(path, 'config of a run'):
    config = completed(ml_collections.ConfigDict(values))
    stages = tuple(config.stages)
  asked, stage = stage, stage or stages[-1]
  if stage not in stages:
    raise ValueError(f'stage: got {stage!r}, choices are {stages}')
  try:
    role = find_role(config, stage)
    net = make_network(config, outputs=role.outputs)
    keep, averaged = config[stage].keep, config[stage].ema.use
  except ValueError as error:
    raise files.DataError(
      f'{path}: {error}; if a config file of your own registers it, import '
      'that file first (a command: give it as --config)'
    ) from error
  except (AttributeError, KeyError, TypeError) as error:
    raise files.DataError(
      f'{path}: is not a readable config of a run ({files.reason(error)})'
    ) from error
  folder = loop.checkpoint_folder(directory, stage)
  if not stored.steps(folder):
    raise ValueError(f'workdir {workdir}: stage {stage!r} is not trained')
  return Run(
    net=net,
    variables=stored.read_variables(folder, keep=keep, averaged=averaged),
    config=config,
    output=role.output if asked else final(role.outputs),
  )
