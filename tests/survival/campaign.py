"""Shows that a run survives: kills it, stops it, fills its disk, compares.

    python -m tests.survival.campaign --kills=20 --workdir=/tmp/survival

makes one uninterrupted run of a short config, then others that meet

  - kill -9 at random moments of all stages and of the evaluation, many inside
    a checkpoint's write, up to `--chain` times in succession;
  - SIGTERM in every stage and in the evaluation: exit code 0;
  - a full disk and a read-only workdir (where `unshare -rm` is allowed): one
    clear line, older checkpoints whole;

each started again with the same command until it is done (`--short`: all
signals in one run, two faults of the disk in another). All arrays of the
stages' checkpoints, results.json (but its seconds) and the records of
metrics.jsonl must then equal the uninterrupted run's, bit for bit. Prints a
table; exit code 1 if anything differs. Further flags go to the command line:
`--config.dataset...`.
"""

import argparse
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence

from dhat_jax.runtime import documents
from tests.survival import faults, table
from tests.survival import run as runs
from tests.survival.run import STAGES, STEPS, Command

# What the kills cycle through, the most telling first.
_KINDS = (
  (0, 'write'),
  (1, 'step'),
  (2, 'write'),
  (3, 'step'),
  (0, 'step'),
  (1, 'write'),
  (2, 'step'),
  (None, 'start'),
  (2, 'write'),
  (1, 'write'),
)
_PLACES = (*STAGES, 'evaluation')
_ATTACKS = ('clean', 'pgd_2')
_EVALUATION_FILES = 8  # 4 outputs, 2 attacks
_SIGTERMS = ((0, 5), (1, 10), (2, 14), (3, 2))
_SHORT_SIGTERMS = ((1, 10),)
_SHORT_FAULTS = ('disk full, in a checkpoint', 'read-only, in a checkpoint')
_SIGNALS = {signal.SIGKILL: 'kill -9', signal.SIGTERM: 'SIGTERM'}
_START_SECS = 8.0
# Two writes are still to come, should one be over before the signal.
_LATEST = {'write': STEPS - 8}


def plan(kills: int, chain: int, rng: random.Random) -> list[list[dict]]:
  """Draws the moments of all kills, run by run."""
  moments = []
  for index in range(kills):
    stage, kind = _KINDS[index % len(_KINDS)]
    last = _EVALUATION_FILES if stage == 3 else STEPS
    moments.append(
      {
        'signal': signal.SIGKILL,
        'kind': kind,
        'stage': rng.randrange(len(STAGES)) if stage is None else stage,
        'step': min(rng.randrange(1, last), _LATEST.get(kind, last)),
        'delay_secs': rng.uniform(0, {'step': 0.3, 'write': 0.1}.get(kind, 0)),
      }
    )
  return [moments[start : start + chain] for start in range(0, kills, chain)]


def terminations(places: Iterable[tuple[int, int]]) -> list[dict]:
  """Returns the moments of SIGTERM."""
  return [
    {
      'signal': signal.SIGTERM,
      'kind': 'step',
      'stage': stage,
      'step': step,
      'delay_secs': 0.0,
    }
    for stage, step in places
  ]


def interrupt(
  command: Command, workdir: str, moment: dict, rng: random.Random
) -> dict | None:
  """Starts the run, sends a signal at a moment; None if it ended before."""
  number, kind = moment['signal'], moment['kind']
  target = moment['stage'], moment['step']
  started = time.monotonic()
  process = command.start(workdir)
  if kind == 'start':
    delay_secs = rng.uniform(0, _START_SECS)
    alive = process.until(lambda: time.monotonic() - started > delay_secs)
  else:
    alive = process.until(lambda: process.position() >= target)
  if alive and kind == 'write':
    alive = process.until(process.writes)
  if alive:
    time.sleep(moment['delay_secs'])
    alive = process.alive()
  if alive and kind == 'write' and not process.writes():
    alive = process.until(process.writes)  # that one is over: the next, at once
  if alive:
    process.signal(number)
  code = process.wait()
  if not alive and code == 0:
    return None
  stage, step = process.position()
  saved = runs.checkpoint_steps(workdir, _PLACES[stage])
  in_training = stage < len(STAGES) and step > 0
  row = {
    'interruption': _SIGNALS[number],
    'moment': f'{time.monotonic() - started:.1f} s',
    'stage': _PLACES[stage] if step else 'start-up',
    'step': step,
    'inside a write': process.writes() if number == signal.SIGKILL else False,
    'steps lost': step - max(saved, default=0) if in_training else 0,
    'exit code': code,
    'wrong': [],
  }
  if number == signal.SIGTERM:
    if code != 0:
      row['wrong'].append(f'exit code {code}')
    if 'resume with ' not in process.output():
      row['wrong'].append('does not say how to resume')
    if row['steps lost'] > 0:
      row['wrong'].append('not saved')
    if row['wrong']:
      row['output'] = process.output()[-3000:]
  return row


def interrupted_run(
  command: Command,
  workdir: str,
  reference: str,
  moments: list[dict],
  rng: random.Random,
) -> list[dict]:
  """Interrupts one run at all its moments, ends it, compares it."""
  rows = []
  for moment in sorted(moments, key=lambda m: (m['stage'], m['step'])):
    row = interrupt(command, workdir, moment, rng)
    if row is None:
      continue
    row['wrong'] += runs.damages(workdir)
    rows.append(row)
    _report(row)
  command.finish(workdir)
  differing = runs.differences(workdir, reference)
  return [{**row, 'differs': differing} for row in rows]


def _report(row: dict) -> None:
  known = (f'{key} {row[key]}' for key in ('stage', 'step') if key in row)
  print('  ' + ', '.join(known), row['wrong'] or '', file=sys.stderr)


def disk_faults(
  command: Command, folder: str, reference: str, names: Sequence[str]
) -> list[dict] | str:
  """Lets one run meet the disk's faults; a sentence where that is denied."""
  os.makedirs(folder, exist_ok=True)
  spec = {
    'config': command.config,
    'overrides': command.overrides,
    'cache': command.cache,
    'reference': reference,
    'workdir': folder,
    'faults': names,
  }

  def in_a_namespace(**more) -> subprocess.CompletedProcess:
    program = [sys.executable, '-m', faults.__name__, json.dumps(spec | more)]
    return subprocess.run(
      ['unshare', '-rm', *program],
      cwd=runs.ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE if more else None,
      text=True,
      check=False,
    )

  if shutil.which('unshare') is None or in_a_namespace(probe=True).returncode:
    return 'full disk and read-only workdir: not possible here (unshare -rm)'
  process = in_a_namespace()
  if process.returncode:
    raise RuntimeError(f'{faults.__name__}: exit code {process.returncode}')
  rows = json.loads(process.stdout)
  return [{'interruption': row.pop('moment'), **row} for row in rows]


def campaign(
  options: argparse.Namespace, command: Command
) -> tuple[list[dict], list[str]]:
  """Makes all runs; returns (rows, what was left out)."""
  rng = random.Random(options.seed)
  reference = os.path.join(options.workdir, 'reference')
  rows, num_runs = [], 0

  def make_run(moments: list[dict]) -> None:
    nonlocal num_runs
    num_runs += 1
    print(f'run {num_runs}', file=sys.stderr)
    folder = os.path.join(options.workdir, f'interrupted_{num_runs}')
    of_run = interrupted_run(command, folder, reference, moments, rng)
    rows.extend({'run': num_runs, **row} for row in of_run)

  print('reference', file=sys.stderr)
  command.finish(reference)
  chain = options.kills if options.short else options.chain
  terminated = terminations(_SHORT_SIGTERMS if options.short else _SIGTERMS)
  while (missing := options.kills - table.totals(rows)['kills']) > 0:
    # Again, where a run ended before the moment came.
    for moments in plan(missing, chain, rng):
      make_run(moments + terminated if options.short else moments)
  if not options.short:
    make_run(terminated)
  print('disk', file=sys.stderr)
  names = _SHORT_FAULTS if options.short else tuple(faults.FAULTS)
  folder = os.path.join(options.workdir, 'disk_faults')
  of_disk = disk_faults(command, folder, reference, names)
  if isinstance(of_disk, str):
    return rows, [of_disk]
  return [*rows, *({'run': num_runs + 1, **row} for row in of_disk)], []


def parser() -> argparse.ArgumentParser:
  """Returns the flags; others go to the command line that is run."""
  flags = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  flags.add_argument('--config', default='configs/digits.py')
  flags.add_argument('--kills', type=int, default=20)
  flags.add_argument('--chain', type=int, default=5)
  flags.add_argument('--short', action='store_true')
  flags.add_argument('--seed', type=int, default=0)
  flags.add_argument('--workdir', required=True, help='a new folder')
  flags.add_argument('--json', help='where the results are written')
  return flags


def command_line(options: argparse.Namespace, overrides: Sequence[str]) -> str:
  """Returns the command without the places of this machine."""
  return shlex.join(
    [
      'python',
      '-m',
      'tests.survival.campaign',
      f'--config={options.config}',
      f'--kills={options.kills}',
      f'--chain={options.chain}',
      f'--seed={options.seed}',
      *(['--short'] if options.short else []),
      '--workdir=/tmp/survival',
      *overrides,
    ]
  )


def main() -> int:
  """Runs the campaign of the command line; returns the exit code."""
  flags = parser()
  options, overrides = flags.parse_known_args()
  options.workdir = os.path.abspath(options.workdir)
  os.makedirs(options.workdir, exist_ok=True)
  if os.listdir(options.workdir):
    flags.error(f'--workdir: {options.workdir} is not empty')
  cache = os.path.join(options.workdir, 'xla')
  cache = os.environ.get('JAX_COMPILATION_CACHE_DIR', cache)
  # Not twice: of a tuple, a second flag adds to the first.
  attacks = ('clean',) if options.short else _ATTACKS
  added = (f'--config.evaluation.attacks={attacks}',)
  command = Command(options.config, (*added, *overrides), cache)
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  started = time.monotonic()
  rows, skipped = campaign(options, command)
  seconds = time.monotonic() - started
  # Without the places of this machine.
  rows = json.loads(json.dumps(rows).replace(options.workdir, 'WORKDIR'))
  document = table.document(
    rows, skipped, seconds, command=command_line(options, overrides)
  )
  print('\n' + '\n'.join(table.lines(document)))
  if options.json:
    documents.write(options.json, document)
  return int(document['totals']['not_equal'] > 0)


if __name__ == '__main__':
  sys.exit(main())
