"""The largest batch per device that an accelerator's memory holds.

Memory is linear in the batch: it is compiled for two sizes, which predict the
largest; that size and the next one are compiled too. Nothing is run, see
`compile_targets`. A TPU's compiler refuses what does not fit. A GPU's does not:
there arguments, temporaries and results are compared with the 75 % of the
memory that JAX takes by default; cuDNN's workspaces come on top.
"""

import copy
import dataclasses
import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections

from dhat_jax import from_config
from dhat_jax.benchmark import compile_facts, compile_programs, compile_targets
from dhat_jax.benchmark.compile_targets import Target
from dhat_jax.runtime import documents

# Sizes are multiples of this: a TPU pads smaller batches to so many lanes.
STEP = 128
SAMPLES = (STEP, 2 * STEP)
# Compiled sizes around the predicted one, before the search gives up.
MOST_PROBES = 4
# The TPU's compiler takes minutes; with less effort it takes half of them, and
# its programs need more memory.
_OPTIONS = {'gpu': None, 'tpu': {'exec_time_optimization_effort': -1.0}}
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


# What every row has.
KEYS = 'target', 'backbone', 'stage', 'dtype', 'batch_size', 'fits'


@dataclasses.dataclass(frozen=True)
class Problem:
  """A training step whose largest batch is looked for.

  Attributes:
    target: one device.
    backbone: the network's.
    stage: of the config.
    dtype: of the network.
  """

  target: Target
  backbone: str
  stage: str
  dtype: str

  def is_of(self, row: Mapping[str, Any]) -> bool:
    """Whether a row belongs to it; the config is that of its document."""
    return self.key.items() <= row.items()

  @property
  def key(self) -> dict[str, str]:
    """What tells its rows from others'."""
    return {
      'target': self.target.name,
      'backbone': self.backbone,
      'stage': self.stage,
      'dtype': self.dtype,
    }


def probe(
  config: ml_collections.ConfigDict,
  problem: Problem,
  batch_size: int,
  devices: Sequence[Any],
) -> dict[str, Any]:
  """Compiles a step for one size.

  Returns:
    A row: the problem's key, 'batch_size', 'bytes' (that the step needs; None
    where the compiler does not say it), 'fits', 'compile_seconds'.
  """
  config = copy.deepcopy(config)
  config.model.backbone = problem.backbone
  config.model.dtype = problem.dtype
  chip = problem.target.chip
  started = time.perf_counter()
  with problem.target.tracing():
    lowered = compile_programs.training_step(
      config, problem.stage, batch_size, devices
    ).trace()
    try:
      analysis = lowered.compile(
        compiler_options=_OPTIONS[chip.platform]
      ).memory_analysis()
      needed = compile_facts.memory(analysis)['total']
      fits = needed <= chip.usable_bytes
    except jax.errors.JaxRuntimeError as error:
      needed, fits = needed_bytes(str(error)), False
  return {
    **problem.key,
    'batch_size': batch_size,
    'bytes': needed,
    'fits': fits,
    'compile_seconds': time.perf_counter() - started,
  }


def needed_bytes(error: str) -> int | None:
  """Reads what a TPU's compiler says of a program that does not fit.

  Raises:
    ValueError: the error is of something else.
  """
  if 'RESOURCE_EXHAUSTED' not in error and 'out of memory' not in error:
    raise ValueError(f'does not compile: {error.strip().splitlines()[0]}')
  match = re.search(r'Used ([\d.]+)([KMGT]?)i?B? of', error)
  return int(float(match[1]) * _UNITS[match[2]]) if match else None


def predict(rows: Sequence[Mapping[str, Any]], usable_bytes: int) -> int:
  """Returns the largest multiple of `STEP` that fits, by a straight line.

  Args:
    rows: of `probe`; the two smallest sizes with known bytes are taken.
    usable_bytes: of the device.
  """
  known = sorted((r['batch_size'], r['bytes']) for r in rows if r['bytes'])
  (small, low), (large, high) = known[:2]
  slope = max((high - low) / (large - small), 1)
  size = small + (usable_bytes - low) / slope
  return max(int(size) // STEP * STEP, 0)


def next_size(
  rows: Sequence[Mapping[str, Any]], usable_bytes: int
) -> int | None:
  """Returns the size that is compiled next, or None: the search is over.

  It is over where a size fits and the next one does not, where the smallest one
  does not fit, or after `MOST_PROBES` sizes beside the samples.
  """
  sizes = {row['batch_size']: row['fits'] for row in rows}
  for size in SAMPLES:
    if size not in sizes:
      return size
    if not sizes[size]:
      return None
  if len(sizes) >= len(SAMPLES) + MOST_PROBES:
    return None
  fitting = max(size for size, fits in sizes.items() if fits)
  too_large = min((s for s, fits in sizes.items() if not fits), default=None)
  if too_large is None:
    return max(predict(rows, usable_bytes), fitting + STEP)
  if too_large - fitting <= STEP:
    return None
  return max(too_large - STEP, fitting + STEP)


def problems(
  config: ml_collections.ConfigDict,
  stages: Sequence[str],
  dtype: str,
  *,
  targets: Sequence[str],
  backbones: Sequence[str],
) -> list[Problem]:
  """Returns what is looked for; arguments as of `run`."""
  parsed = compile_targets.parse_all(targets)
  for target in parsed:
    if target.num_devices > 1:
      raise ValueError(
        f'--target: got {target.name!r}, expected one device, as h100:1'
      )
  names = tuple(dict.fromkeys(backbones)) or (config.model.backbone,)
  return [
    Problem(target, backbone, stage, dtype)
    for target, backbone, stage in itertools.product(parsed, names, stages)
  ]


def run(
  config: ml_collections.ConfigDict,
  stages: Sequence[str],
  dtype: str,
  *,
  targets: Sequence[str],
  backbones: Sequence[str] = (),
  done: Sequence[dict[str, Any]] = (),
  save: Callable[[dict[str, Any]], None] = lambda measured: None,
  report: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Looks for the largest batch of stages.

  Args:
    config: the run's config.
    stages: whose steps are compiled.
    dtype: of the network.
    targets: of one device each, as `compile_targets.parse` reads them.
    backbones: names; () for the config's.
    done: rows of an earlier call, which are not compiled again.
    save: called with what is measured so far.
    report: called with a line for each size.

  Returns:
    {'compilers': their versions, 'rows': those of `probe`}.

  Raises:
    ValueError: what does not exist, or is not installed; a program that does
      not compile at all.
  """
  listed = problems(config, stages, dtype, targets=targets, backbones=backbones)
  for problem in listed:
    checked = copy.deepcopy(config)
    checked.model.backbone = problem.backbone
    from_config.check(checked)
  parsed = {problem.target.name: problem.target for problem in listed}
  devices = {n: compile_targets.devices(each) for n, each in parsed.items()}
  compilers = compile_targets.versions(list(parsed.values()))
  rows = list(done)
  for name, target in parsed.items():
    ours = [problem for problem in listed if problem.target == target]
    for problem, size in _turns(ours, rows):
      row = probe(config, problem, size, devices[name])
      rows.append(row)
      save({'compilers': compilers, 'rows': rows})
      report(_line(row))
  return {'compilers': compilers, 'rows': rows}


def _turns(
  problems: Sequence[Problem], rows: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[Problem, int]]:
  """Yields what is compiled next: for the problem with the fewest sizes.

  So that a search which is stopped early has a size for all of them.

  Args:
    problems: of one target.
    rows: those of `probe`; the caller appends each new one.
  """
  while True:
    waiting = []
    for problem in problems:
      known = [row for row in rows if problem.is_of(row)]
      size = next_size(known, problem.target.chip.usable_bytes)
      if size is not None:
        waiting.append((len(known), problem, size))
    if not waiting:
      return
    _, problem, size = min(waiting, key=lambda entry: entry[0])
    yield problem, size


def _line(row: Mapping[str, Any]) -> str:
  needed = 'unknown' if row['bytes'] is None else f'{row["bytes"] / 2**30:.2f}'
  return (
    f'{row["target"]} {row["backbone"]} {row["stage"]} {row["batch_size"]}: '
    f'{needed} GiB, {"fits" if row["fits"] else "does not fit"}, '
    f'{row["compile_seconds"]:.0f} s'
  )


def table(measured: Mapping[str, Any]) -> str:
  """Returns the Markdown table of what `run` returns."""
  headers = (
    'target',
    'network',
    'stage',
    'dtype',
    'at 128, GiB',
    'per image more, MiB',
    'largest that was compiled',
    'its memory, GiB',
    'larger ones',
  )
  names = 'target', 'backbone', 'stage', 'dtype'
  groups: dict[tuple, list[Mapping[str, Any]]] = {}
  for row in measured['rows']:
    groups.setdefault(tuple(row[name] for name in names), []).append(row)
  seen = [[key[n] for key in groups] for n in range(len(names))]
  keys = sorted(
    groups,
    key=lambda key: [seen[n].index(value) for n, value in enumerate(key)],
  )
  lines = [(*key, *_cells(groups[key])) for key in keys]
  return documents.markdown_table(headers, lines, left=4)


def _cells(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
  """Formats the rows of a problem."""
  by_size = {row['batch_size']: row for row in rows}
  samples = [by_size.get(size, {}).get('bytes') for size in SAMPLES]
  low, high = samples
  slope = (high - low) / (SAMPLES[1] - SAMPLES[0]) if low and high else None
  fitting = [size for size, row in by_size.items() if row['fits']]
  largest = max(fitting, default=0)
  return (
    f'{low / 2**30:.2f}' if low else '',
    f'{slope / 2**20:.1f}' if slope else '',
    str(largest or f'less than {SAMPLES[0]}'),
    f'{by_size[largest]["bytes"] / 2**30:.1f}' if largest else '',
    _next(by_size, largest),
  )


def _next(by_size: Mapping[int, Mapping[str, Any]], largest: int) -> str:
  """Says what is known of larger sizes than the largest that fits."""
  rows = list(by_size.values())
  larger = sorted(size for size in by_size if size > largest)
  if not larger and len([row for row in rows if row['bytes']]) > 1:
    chip = compile_targets.parse(rows[0]['target']).chip
    return f'{predict(rows, chip.usable_bytes)} predicted, not compiled'
  if not larger:
    return 'not compiled'
  size = larger[0]
  needed = by_size[size]['bytes']
  return f'{size} needs ' + (f'{needed / 2**30:.1f} GiB' if needed else 'more')
