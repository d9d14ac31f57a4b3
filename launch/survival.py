#!/usr/bin/env python
"""Shows that a run survives: kills it, stops it, fills its disk, compares.

    python launch/survival.py --kills=20 --seed=0 --workdir=/tmp/survival

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

import survival_faults
import survival_run
import survival_table
from survival_run import STAGES, STEPS, Command

# What the kills cycle through, the most telling first.
_KINDS = (
  *((0, 'write'), (1, 'step'), (2, 'write'), (3, 'step'), (0, 'step')),
  *((1, 'write'), (2, 'step'), (None, 'start'), (2, 'write'), (1, 'write')),
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


def terminations(places) -> list[dict]:
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


def interrupt(command, workdir, moment, rng) -> dict | None:
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
  saved = survival_run.checkpoint_steps(workdir, _PLACES[stage])
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


def interrupted_run(command, workdir, reference, moments, rng) -> list[dict]:
  """Interrupts one run at all its moments, ends it, compares it."""
  rows = []
  for moment in sorted(moments, key=lambda m: (m['stage'], m['step'])):
    row = interrupt(command, workdir, moment, rng)
    if row is None:
      continue
    row['wrong'] += survival_run.damages(workdir)
    rows.append(row)
    _say(row)
  command.finish(workdir)
  differing = survival_run.differences(workdir, reference)
  return [{**row, 'differs': differing} for row in rows]


def _say(row: dict) -> None:
  known = (f'{key} {row[key]}' for key in ('stage', 'step') if key in row)
  print('  ' + ', '.join(known), row['wrong'] or '', file=sys.stderr)


def faults(command, folder, reference, names) -> list[dict] | str:
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

  def inside(**more):
    return subprocess.run(
      [
        *('unshare', '-rm', sys.executable, survival_faults.__file__),
        json.dumps(spec | more),
      ],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE if more else None,
      text=True,
      check=False,
    )

  if shutil.which('unshare') is None or inside(probe=True).returncode:
    return 'full disk and read-only workdir: not possible here (unshare -rm)'
  done = inside()
  if done.returncode:
    raise RuntimeError(f'{survival_faults.__file__}: {done.returncode}')
  rows = json.loads(done.stdout)
  return [{'interruption': row.pop('moment'), **row} for row in rows]


def campaign(options, command: Command) -> tuple[list[dict], list[str]]:
  """Makes all runs; returns (rows, what was left out)."""
  rng = random.Random(options.seed)

  def folder(name):
    return os.path.join(options.workdir, name)

  reference = folder('reference')
  rows, runs = [], 0

  def run(moments):
    nonlocal runs
    runs += 1
    print(f'run {runs}', file=sys.stderr)
    found = interrupted_run(
      command, folder(f'interrupted_{runs}'), reference, moments, rng
    )
    rows.extend({'run': runs, **row} for row in found)

  print('reference', file=sys.stderr)
  command.finish(reference)
  chain = options.kills if options.short else options.chain
  terminated = terminations(_SHORT_SIGTERMS if options.short else _SIGTERMS)
  while (missing := options.kills - survival_table.totals(rows)['kills']) > 0:
    # Again, where a run ended before the moment came.
    for moments in plan(missing, chain, rng):
      run(moments + terminated if options.short else moments)
  if not options.short:
    run(terminated)
  print('disk', file=sys.stderr)
  names = _SHORT_FAULTS if options.short else tuple(survival_faults.FAULTS)
  found = faults(command, folder('disk_faults'), reference, names)
  if isinstance(found, str):
    return rows, [found]
  return [*rows, *({'run': runs + 1, **row} for row in found)], []


def _told(options, overrides) -> str:
  """Returns the command without the places of this machine."""
  return shlex.join(
    [
      *('python', 'launch/survival.py', f'--config={options.config}'),
      *(f'--kills={options.kills}', f'--chain={options.chain}'),
      *(f'--seed={options.seed}', *(['--short'] if options.short else [])),
      *('--workdir=/tmp/survival', *overrides),
    ]
  )


def main() -> int:
  """Runs the campaign of the command line; returns the exit code."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--config', default='configs/digits.py')
  parser.add_argument('--kills', type=int, default=20)
  parser.add_argument('--chain', type=int, default=5)
  parser.add_argument('--short', action='store_true')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--workdir', required=True, help='a new folder')
  parser.add_argument('--json', help='where the table is written as JSON')
  options, overrides = parser.parse_known_args()
  options.workdir = os.path.abspath(options.workdir)
  os.makedirs(options.workdir, exist_ok=True)
  if os.listdir(options.workdir):
    parser.error(f'--workdir: {options.workdir} is not empty')
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
  rows = json.loads(json.dumps(rows).replace(options.workdir, 'WORKDIR'))
  found = survival_table.document(rows, skipped, seconds)
  print('\n' + '\n'.join(found['table']))
  if options.json:
    with open(options.json, 'w') as file:
      told = {'command': _told(options, overrides), **found}
      file.write(json.dumps(told, indent=1) + '\n')
  return int(found['totals']['not_equal'] > 0)


if __name__ == '__main__':
  sys.path.insert(0, survival_run.ROOT)
  sys.exit(main())
