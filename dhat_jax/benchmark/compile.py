"""What the compilers for TPUs and GPUs make of a run's programs.

No accelerator is needed, and nothing is run: see `compile_targets`. Nothing is
autotuned for a GPU then, so that convolutions come without their workspaces.
"""

import copy
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections

from dhat_jax import arguments
from dhat_jax.benchmark import compile_facts, compile_programs, compile_targets
from dhat_jax.benchmark.compile_programs import Program
from dhat_jax.benchmark.compile_targets import Target
from dhat_jax.runtime import documents


def check_programs(names: Sequence[str]) -> tuple[str, ...]:
  """Returns names of programs; () stands for all.

  Raises:
    ValueError: no such program.
  """
  for name in names:
    arguments.one_of('--programs', name, compile_programs.NAMES)
  return tuple(dict.fromkeys(names)) or compile_programs.NAMES


def check_batch_size(target: Target, batch_size: int) -> int:
  """Returns the batch of a device; raises ValueError if it does not divide."""
  if batch_size % target.num_devices:
    raise ValueError(
      f'--batch_size: got {batch_size}, expected a multiple of the '
      f'{target.num_devices} devices of --target={target.name}'
    )
  return batch_size // target.num_devices


@dataclasses.dataclass(frozen=True)
class Job:
  """A program that is to be compiled.

  Attributes:
    target: for what.
    kind: one of `compile_programs.NAMES`.
    config: the run's config, with the network's precision.
    stage: of a training step, else ''.
    batch_size: global.
  """

  target: Target
  kind: str
  config: ml_collections.ConfigDict
  stage: str
  batch_size: int

  def program(self, devices: Sequence[Any]) -> Program:
    """Returns it, to be traced for devices."""
    size = check_batch_size(self.target, self.batch_size)
    if self.kind == compile_programs.TRAINING:
      return compile_programs.training_step(
        self.config, self.stage, size, devices
      )
    if self.kind == compile_programs.EVALUATION:
      return compile_programs.evaluation_step(self.config, size, devices)
    return compile_programs.attack_pass(self.config, self.kind, size, devices)


# What every row has, one of a program that does not compile too.
KEYS = 'target', 'program', 'kind', 'batch_size', 'devices', 'dtype', 'flops'


def is_of(row: Mapping[str, Any], job: Job) -> bool:
  """Whether a row is a job's; the config is that of the row's document."""
  kind = (
    compile_programs.TRAINING if row['kind'] == 'training' else row['program']
  )
  return (
    row['target'] == job.target.name
    and kind == job.kind
    and row['batch_size'] == job.batch_size
    and (not job.stage or row['program'] == job.stage)
    and (not job.stage or row['dtype'] == job.config.model.dtype)
  )


def measure(job: Job, devices: Sequence[Any]) -> dict[str, Any]:
  """Compiles a program.

  Args:
    job: what.
    devices: of its target.

  Returns:
    A row, as JSON can hold it; with 'error', a line, of what does not compile.
  """
  with job.target.tracing():
    program = job.program(devices)
    row = {
      'target': job.target.name,
      'program': program.name,
      'kind': program.kind,
      'batch_size': job.batch_size,
      'devices': len(devices),
      'dtype': program.dtype,
      'remat': job.config.model.remat,
      'flops': program.flops(),
      'needed_flops': program.needed_flops,
    }
    started = time.perf_counter()
    lowered = program.trace()
    traced = time.perf_counter()
    row['traced'] = compile_facts.traced_operations(lowered.as_text())
    begun = time.perf_counter()
    try:
      compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
      return row | {'error': str(error).strip().splitlines()[0]}
  return row | {
    'trace_seconds': traced - started,
    'compile_seconds': time.perf_counter() - begun,
    **_describe(program, compiled),
  }


def _describe(program: Program, compiled: Any) -> dict[str, Any]:
  """Returns what a compiled program says of itself."""
  return {
    'memory': compile_facts.memory(compiled.memory_analysis()),
    'state_leaves': program.state_leaves,
    **compile_facts.facts(
      compiled.as_text(),
      images=program.images,
      gradients=program.gradients,
      half_precision=program.dtype == 'bfloat16',
    ),
    'cost_analysis': _cost_analysis(compiled),
  }


def _cost_analysis(compiled: Any) -> dict[str, float] | None:
  """Returns what XLA counts, loops once; the GPU's compiler counts nothing."""
  costs = compiled.cost_analysis()
  if not costs:
    return None
  return {
    'flops': costs['flops'],
    'bytes_accessed': costs['bytes accessed'],
  }


def bound_seconds(
  row: Mapping[str, Any], chip: compile_targets.Chip
) -> dict[str, float]:
  """Returns the times that a program cannot fall below at published peaks.

  'arithmetic' is the operations at the chip's peak: those that a stage needs,
  or those that were traced of another program. Evaluation and attacks in
  float32 multiply in full float32. A training step multiplies as fast as the
  chip can, in TensorFloat-32 or bfloat16. 'memory' is the kernels' reads and
  writes at the chip's bandwidth.
  """
  is_full = row['dtype'] == 'float32' and row['kind'] != 'training'
  peak = chip.float32_peak if is_full else chip.peak
  return {
    'arithmetic': (row['needed_flops'] or row['flops']) / peak,
    'memory': row['traffic_bytes'] / chip.bandwidth,
  }


def jobs(
  config: ml_collections.ConfigDict,
  stages: Sequence[str],
  batch_size: int,
  dtypes: Sequence[str],
  *,
  targets: Sequence[Target],
  programs: Sequence[str],
) -> Iterator[Job]:
  """Yields what is compiled; arguments as of `run`.

  Evaluation and AutoAttack have a precision of their own: they come once.
  """
  for target in targets:
    for kind in programs:
      trains = kind == compile_programs.TRAINING
      for dtype in dict.fromkeys(dtypes if trains else dtypes[:1]):
        typed = copy.deepcopy(config)
        typed.model.dtype = dtype
        for stage in stages if trains else ('',):
          yield Job(target, kind, typed, stage, batch_size)


def run(
  config: ml_collections.ConfigDict,
  stages: Sequence[str],
  batch_size: int,
  dtypes: Sequence[str],
  *,
  targets: Sequence[str],
  programs: Sequence[str] = (),
  done: Sequence[dict[str, Any]] = (),
  save: Callable[[dict[str, Any]], None] = lambda measured: None,
  report: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Compiles the programs of a run for targets.

  Args:
    config: the run's config.
    stages: whose steps are compiled.
    batch_size: global.
    dtypes: of the network in training.
    targets: as `compile_targets.parse` reads them.
    programs: of `compile_programs.NAMES`; () for all.
    done: rows of an earlier call, which are not compiled again, but for errors.
    save: called with what is measured so far.
    report: called with a line for each program.

  Returns:
    {'compilers': their versions, 'rows': those of `measure`}.

  Raises:
    ValueError: a target or program that does not exist, a batch that does not
      divide; a compiler that is not installed.
  """
  parsed = compile_targets.parse_all(targets)
  names = check_programs(programs)
  for target in parsed:
    check_batch_size(target, batch_size)
  devices = {target.name: compile_targets.devices(target) for target in parsed}
  compilers = compile_targets.versions(parsed)

  def saved(rows: list[dict[str, Any]]) -> None:
    save({'compilers': compilers, 'rows': rows})
    report(_line(rows[-1]))

  listed = jobs(
    config, stages, batch_size, dtypes, targets=parsed, programs=names
  )
  rows = rows_of(
    listed, done, lambda job: measure(job, devices[job.target.name]), saved
  )
  return {'compilers': compilers, 'rows': rows}


def rows_of(
  listed: Iterable[Job],
  done: Sequence[dict[str, Any]],
  measure: Callable[[Job], dict[str, Any]],
  save: Callable[[list[dict[str, Any]]], None],
) -> list[dict[str, Any]]:
  """Returns the rows of jobs, after those of other jobs.

  Args:
    listed: what is compiled, but for what is done.
    done: earlier rows; what did not compile then is compiled again.
    measure: job -> its row.
    save: called with all rows after each new one.
  """
  rows = list(done)
  for job in listed:
    earlier = [row for row in rows if is_of(row, job)]
    if any('error' not in row for row in earlier):
      continue
    rows = [row for row in rows if row not in earlier] + [measure(job)]
    save(rows)
  return rows


def _line(row: Mapping[str, Any]) -> str:
  where = f'{row["target"]} {row["program"]} {row["dtype"]}: '
  if 'error' in row:
    return f'{where}does not compile: {row["error"]}'
  return f'{where}compiled in {row["compile_seconds"]:.1f} s'


def table(measured: Mapping[str, Any]) -> str:
  """Returns the Markdown table of what `run` returns."""
  headers = (
    'target',
    'program',
    'batch per device',
    'dtype',
    'compiling, s',
    'arguments, MiB',
    'temporaries, MiB',
    'donated',
    'all-reduces',
    'all-reduced, MB',
    'convolutions',
    'channels last',
    'arithmetic at least, ms',
    'memory traffic at least, ms',
  )
  return documents.markdown_table(
    headers, map(_cells, measured['rows']), left=2
  )


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
  """Formats a row of `measure`; all numbers are per device."""
  if 'error' in row:
    size = row['batch_size'] // row['devices']
    reason = 'does not compile', *[''] * 9
    return row['target'], row['program'], size, row['dtype'], *reason
  memory, found = row['memory'], row['convolutions']
  reduces = row['all_reduces'].values()
  last = found['by_fastest'].get('channels', 0) / max(found['number'], 1)
  leaves = row['state_leaves']
  bounds = bound_seconds(row, compile_targets.parse(row['target']).chip)
  return (
    row['target'],
    row['program'],
    row['batch_size'] // row['devices'],
    row['dtype'],
    f'{row["compile_seconds"]:.0f}',
    f'{memory["arguments"] / 2**20:.0f}',
    f'{memory["temporaries"] / 2**20:.0f}',
    f'{row["aliases"]} of {leaves}' if leaves else '',
    str(sum(each['number'] for each in reduces)),
    f'{sum(each["bytes"] for each in reduces) / 1e6:.1f}',
    str(found['number']),
    f'{100 * last:.0f} %',
    f'{1e3 * bounds["arithmetic"]:.2f}',
    f'{1e3 * bounds["memory"]:.2f}',
  )
