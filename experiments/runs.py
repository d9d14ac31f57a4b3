"""What the experiments share: runs in workdirs, stages in common, records.

An experiment is a list of `Entry`, one for each row and seed of its table.
Each names a run and the output of it that is scored; entries of one network
share its run. A run that begins with the same stages as another one, up to the
last bit, takes over that one's checkpoints instead of training them again.
"""

import argparse
import dataclasses
import gc
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from dhat_jax import from_config
from dhat_jax import main as command
from dhat_jax.run import check_workdir, prepare_workdir, train_and_evaluate
from dhat_jax.runtime import (
  documents,
  files,
  lock,
  workdir,
)
from dhat_jax.training.loop import checkpoint_folder
from experiments import costs, packing


@dataclasses.dataclass(frozen=True)
class Run:
  """One network to train and evaluate.

  Attributes:
    name: its workdir, below the experiment's.
    config: as a file in `configs/` makes it.
    source: a run that trains the first stages, or None.
    shared: the stages that are taken over from it.
  """

  name: str
  config: ml_collections.ConfigDict
  source: 'Run | None' = None
  shared: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Entry:
  """One row of a table, for one seed.

  Attributes:
    group: what rows are compared within, as the base method.
    variant: what the row is called.
    seed: of the run.
    run: the network.
    output: which of its outputs is scored.
  """

  group: str
  variant: str
  seed: int
  run: Run
  output: str


def _same_beginning(run: Run) -> None:
  """Raises ValueError if a run cannot take over its source's stages."""
  ours, theirs = (
    workdir.flat(from_config.as_json(config))
    for config in (run.config, run.source.config)
  )
  decides = ('dataset.', 'seed', *(f'{stage}.' for stage in run.shared))
  decides += ('model.backbone', 'model.attach')
  if run.shared != ('main_head',):  # in which nothing is frozen
    decides += ('model.freeze_statistics',)
  differing = sorted(
    key
    for key in ours.keys() | theirs.keys()
    if key.startswith(decides) and ours.get(key) != theirs.get(key)
  )
  if differing:
    raise ValueError(
      f'run {run.name}: cannot share {run.shared} with {run.source.name}, '
      f'whose {differing} differ'
    )


def _take_over(run: Run, root: str) -> None:
  """Copies the shared stages' checkpoints; one copied half does not count."""
  _same_beginning(run)
  # The checkpoints are of the source's data, and of no other.
  source, target = (
    os.path.join(root, name, 'data.json')
    for name in (run.source.name, run.name)
  )
  if not os.path.exists(target) and os.path.exists(source):
    files.write_json(target, files.read_json(source))
  for stage in run.shared:
    source, target = (
      checkpoint_folder(os.path.join(root, name), stage)
      for name in (run.source.name, run.name)
    )
    if not os.path.exists(target):
      half = f'{target}.half'
      shutil.rmtree(half, ignore_errors=True)
      shutil.copytree(source, half)
      os.rename(half, target)


def perform(run: Run, root: str) -> dict[str, Any]:
  """Trains and evaluates a run, or what is missing of it; returns results."""
  if run.source is not None:
    perform(run.source, root)
  directory = os.path.join(root, run.name)
  from_config.check(run.config)
  if run.source is not None:
    with lock.held(directory):
      prepare_workdir(run.config, directory)
      _take_over(run, root)
  return train_and_evaluate(run.config, directory)


def _robust(
  entry: Entry, root: str, results: dict[str, Any]
) -> dict[str, np.ndarray]:
  """Returns {attack: which test images an output still gets right}."""
  folder = os.path.join(root, entry.run.name, 'evaluation', entry.output)
  robust = {}
  for attack in results['accuracy'][entry.output]:
    with np.load(os.path.join(folder, f'{attack}.npz')) as record:
      robust[attack] = record['robust']
  return robust


def _worst(robust: dict[str, np.ndarray]) -> np.ndarray:
  """Returns which of the images that all attacks saw resist all of them."""
  count = min(map(len, robust.values()))
  return np.logical_and.reduce([flags[:count] for flags in robust.values()])


def record(entry: Entry, root: str) -> dict[str, Any] | None:
  """Returns what the experiment's JSON keeps of an entry, None if not made."""
  path = os.path.join(root, entry.run.name, 'results.json')
  if not os.path.exists(path):
    return None
  results = documents.read(path)
  check_workdir(entry.run.config, os.path.join(root, entry.run.name))
  audited = entry.output == 'aggregated' and 'audit' in results
  robust = _robust(entry, root, results)
  flags = _worst(robust)
  worst = float(flags.mean())
  if audited and len(flags) == results['n_test']:
    worst = min(worst, results['audit']['worst_case'])
  environment = files.read_json(
    os.path.join(root, entry.run.name, 'environment.json')
  )
  return {
    'group': entry.group,
    'variant': entry.variant,
    'seed': entry.seed,
    'run': entry.run.name,
    'output': entry.output,
    'accuracy': results['accuracy'][entry.output],
    'images': {attack: packing.pack(flags) for attack, flags in robust.items()},
    # Of the aggregated output also under the attacks of the audit, where both
    # are of all images.
    'worst_case': worst,
    'red_flags': [flag['name'] for flag in results['audit']['flags']]
    if audited
    else None,
    'n_test': results['n_test'],
    'epsilon': results['epsilon'],
    'seconds': results['seconds'],
    'git_commit': environment['git_commit'],
  }


def _seeds(text: str) -> tuple[int, ...]:
  """Reads '0,1,2'."""
  try:
    return tuple(int(seed) for seed in text.split(','))
  except ValueError:
    raise argparse.ArgumentTypeError(
      f'got {text!r}, expected numbers as in 0,1,2'
    ) from None


def flags(document: str) -> argparse.ArgumentParser:
  """Returns the flags that every experiment has."""
  parser = argparse.ArgumentParser(
    description=document.partition('\n')[0],
    formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  parser.add_argument(
    '--seeds',
    type=_seeds,
    help='those to run now, as 0,1; the table holds all that are done',
  )
  for name, text in (
    ('--workdir', 'where the runs go'),
    ('--json', 'where the table goes'),
  ):
    parser.add_argument(name, type=files.user_path, help=text)
  return parser


def _shown(arguments: list[str]) -> list[str]:
  """Returns the arguments without what is this machine's own."""
  return [
    f'--data_dir={os.path.basename(argument.partition("=")[2])}'
    if argument.startswith('--data_dir=')
    else argument
    for argument in arguments
    if not argument.startswith(
      ('--workdir=', '--json=', '--out=', '--seconds=')
    )
  ]


def main(
  entries: Sequence[Entry],
  options: argparse.Namespace,
  *,
  image_shape: tuple[int, int, int],
  num_train: int,
  caption: dict[str, Any],
) -> None:
  """Makes what is missing of an experiment; writes its JSON after each run.

  Runs that another process is at are left to it.

  Args:
    entries: of all seeds.
    options: of `flags`; those runs are made whose seeds it names.
    image_shape: (H, W, C).
    num_train: number of images that train.
    caption: what else the JSON says: `experiment`, `data`, `setting`, ...
  """
  with command.session():
    make(
      entries,
      options,
      image_shape=image_shape,
      num_train=num_train,
      caption=caption,
    )


def make(
  entries: Sequence[Entry],
  options: argparse.Namespace,
  *,
  image_shape: tuple[int, int, int],
  num_train: int,
  caption: dict[str, Any],
) -> None:
  """Does what `main` says, in a session that is open; arguments as there."""
  wanted = [entry for entry in entries if entry.seed in options.seeds]
  runs = list({entry.run.name: entry.run for entry in wanted}.values())
  for run in runs:
    from_config.check(run.config)
    check_workdir(run.config, os.path.join(options.workdir, run.name))
  table = {
    'image_shape': image_shape,
    'num_train': num_train,
    'caption': caption,
  }
  for _ in perform_all(runs, options.workdir):
    write(entries, options, **table)
  write(entries, options, **table)


def perform_all(runs: Sequence[Run], root: str) -> Iterator[Run]:
  """Performs the first run that no other process is at, until none is left.

  Args:
    runs: in the order of their importance.
    root: the experiment's workdir.

  Yields:
    Each run once it is done.
  """
  pending = list(runs)
  while pending:
    for run in pending:
      left = len(pending) - 1
      print(f'--- run {run.name}; after it: {left}', flush=True)
      try:
        perform(run, root)
      except lock.InUseError as error:
        print(f'left to another process: {error}', flush=True)
        continue
      break
    else:
      names = ', '.join(run.name for run in pending)
      print(f'not made here, other processes are at work: {names}', flush=True)
      return
    pending.remove(run)
    # The compiled programs of many runs would fill the process's memory maps.
    jax.clear_caches()
    gc.collect()
    yield run


def write(
  entries: Sequence[Entry],
  options: argparse.Namespace,
  *,
  image_shape: tuple[int, int, int],
  num_train: int,
  caption: dict[str, Any],
) -> None:
  """Writes the JSON of what is made; arguments as of `main`."""
  known, rows = {}, []  # a cost is the same for all seeds
  for entry in entries:
    row = record(entry, options.workdir)
    key = entry.group, entry.variant
    if row is not None and key not in known:
      network = entry.run.config, entry.output
      known[key] = costs.of(*network, image_shape, num_train)
    rows.append(row and row | known[key])
  body = {
    **caption,
    'missing': sum(row is None for row in rows),
    'rows': [row for row in rows if row is not None],
  }
  typed = ' '.join(
    [f'python -m experiments.{caption["experiment"]}', *_shown(sys.argv[1:])]
  )
  documents.write(
    options.json, documents.document('experiment', body, command=typed)
  )
