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
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dhat_jax import build
from dhat_jax.from_config.values import as_json
from dhat_jax.runtime import devices, documents, files, workdir
from dhat_jax.training import cost as flops
from dhat_jax.training import loop


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
    workdir.flat(as_json(config)) for config in (run.config, run.source.config)
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
  for stage in run.shared:
    source, target = (
      loop.checkpoint_folder(os.path.join(root, name), stage)
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
  build.check(run.config)
  workdir.check(directory, as_json(run.config))
  workdir.prepare(directory, as_json(run.config))
  if run.source is not None:
    _take_over(run, root)
  return loop.train_and_evaluate(run.config, directory)


def parameters(
  config: ml_collections.ConfigDict,
  output: str,
  image_shape: tuple[int, int, int],
) -> int:
  """Returns how many parameters an output of a config's network needs."""
  net = build.model(config)
  images = jnp.zeros((1, *image_shape))
  params = jax.eval_shape(net.init, jax.random.key(0), images)['params']
  unused = {
    'main': ('second_head', 'aggregator'),
    'second': ('main_head', 'aggregator'),
    'mean': ('aggregator',),
    'aggregated': (),
  }[output]
  return sum(
    leaf.size
    for part, tree in params.items()
    if part not in unused
    for leaf in jax.tree.leaves(tree)
  )


def training_gmacs(
  config: ml_collections.ConfigDict,
  output: str,
  image_shape: tuple[int, int, int],
  num_train: int,
) -> float:
  """Returns the multiply-adds, in 1e9, that training an output needs.

  Args:
    config: of the run.
    output: 'main', 'second', 'mean' or 'aggregated'.
    image_shape: (H, W, C).
    num_train: number of training images.
  """
  net = build.model(config, outputs=('main', 'second', 'aggregated'))
  costs = flops.parts(net, image_shape)
  until = {'main': 1, 'second': 2, 'mean': 2, 'aggregated': 3}[output]
  total = 0
  for name in config.stages[:until]:
    stage = build.stage(config, name, num_train)
    per_image = flops.needed(costs, name, stage.loss, config[name].attack.steps)
    total += per_image * stage.num_steps * stage.batch_size
  return total / 1e9


def pack(flags: np.ndarray) -> str:
  """Returns booleans [N] as text: '<N>:<hex digits>'."""
  return f'{len(flags)}:{np.packbits(flags).tobytes().hex()}'


def unpack(text: str) -> np.ndarray:
  """Returns what `pack` made a text of: bool [N]."""
  count, _, digits = text.partition(':')
  packed = np.frombuffer(bytes.fromhex(digits), np.uint8)
  return np.unpackbits(packed, count=int(count)).astype(bool)


def _robust(entry: Entry, root: str, results) -> dict[str, np.ndarray]:
  """Returns {attack: which test images an output still gets right}."""
  folder = os.path.join(root, entry.run.name, 'evaluation', entry.output)
  found = {}
  for attack in results['accuracy'][entry.output]:
    with np.load(os.path.join(folder, f'{attack}.npz')) as part:
      found[attack] = part['robust']
  return found


def cost(
  entry: Entry, image_shape: tuple[int, int, int], num_train: int
) -> dict[str, float]:
  """Returns the size of an entry's network, and what its training needs."""
  network = entry.run.config, entry.output, image_shape
  return {
    'parameters': parameters(*network),
    'training_gmacs': training_gmacs(*network, num_train),
  }


def record(entry: Entry, root: str) -> dict[str, Any] | None:
  """Returns what the experiment's JSON keeps of an entry, None if not made."""
  path = os.path.join(root, entry.run.name, 'results.json')
  if not os.path.exists(path):
    return None
  results = files.read_json(path)
  workdir.check(os.path.join(root, entry.run.name), as_json(entry.run.config))
  worst = results['worst_case'][entry.output]
  audited = entry.output == 'aggregated' and 'audit' in results
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
    'images': {
      attack: pack(robust)
      for attack, robust in _robust(entry, root, results).items()
    },
    # Of the aggregated output also under the attacks of the audit.
    'worst_case': min(worst, results['audit']['worst_case'])
    if audited
    else worst,
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
  parser.add_argument('--workdir', help='where the runs go')
  parser.add_argument('--json', help='where the table goes')
  return parser


def _shown(arguments: list[str]) -> list[str]:
  """Returns the arguments without what is this machine's own."""
  kept = [a for a in arguments if not a.startswith(('--workdir=', '--json='))]
  return [
    f'--data_dir={os.path.basename(argument)}'
    if argument.startswith('--data_dir=')
    else argument
    for argument in kept
  ]


def main(
  entries: Sequence[Entry],
  options: argparse.Namespace,
  *,
  image_shape: tuple[int, int, int],
  num_train: int,
  caption: dict[str, Any],
) -> None:
  """Makes what is missing of an experiment, then writes its JSON.

  Args:
    entries: of all seeds.
    options: of `flags`; those runs are made whose seeds it names.
    image_shape: (H, W, C).
    num_train: number of images that train.
    caption: what else the JSON says: `experiment`, `data`, `setting`, ...
  """
  devices.initialize()
  wanted = [entry for entry in entries if entry.seed in options.seeds]
  made = list({entry.run.name: entry.run for entry in wanted}.values())
  for run in made:
    build.check(run.config)
    workdir.check(os.path.join(options.workdir, run.name), as_json(run.config))
  for index, run in enumerate(made, 1):
    print(f'--- run {index} of {len(made)}: {run.name}', flush=True)
    perform(run, options.workdir)
    # Else the compiled programs of many runs fill the process's memory maps.
    jax.clear_caches()
    gc.collect()
  costs, rows = {}, []  # a cost is the same for all seeds
  for entry in entries:
    row = record(entry, options.workdir)
    key = entry.group, entry.variant
    if row is not None and key not in costs:
      costs[key] = cost(entry, image_shape, num_train)
    rows.append(row and row | costs[key])
  body = {
    **caption,
    'missing': sum(row is None for row in rows),
    'rows': [row for row in rows if row is not None],
  }
  command = ' '.join(
    [f'python -m experiments.{caption["experiment"]}', *_shown(sys.argv[1:])]
  )
  documents.write(
    options.json, documents.document('experiment', body, command=command)
  )
