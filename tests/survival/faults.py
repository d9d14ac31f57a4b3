"""Disk full and read-only workdir.

Needs a mount namespace of its own, which the campaign starts it in:

    unshare -rm python -m tests.survival.faults ARGUMENTS

One run lives on a small tmpfs and meets one fault after the other; each time
it must end with one clear line, its checkpoints whole, and go on when the
fault is gone.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable

from tests.survival import run
from tests.survival.run import STAGES, Command, Process

_DISK_MB = 48
_BALLAST = 'ballast'
# What a full disk still takes: some records, but no checkpoint.
_RECORDS_BYTES = 64 * 1024
# Stage (or the evaluation) and step at which the fault comes, and the fault.
FAULTS = {
  'disk full, in a checkpoint': (0, 5, 'full', _RECORDS_BYTES),
  'disk full, not a byte left': (1, 6, 'full', 0),
  'read-only, in a checkpoint': (2, 7, 'read-only', None),
  'disk full, in the evaluation': (len(STAGES), 1, 'full', 0),
}
SAYS = {'full': 'no space left on device', 'read-only': 'read-only file system'}


def _mount(*arguments: str) -> None:
  subprocess.run(['mount', *arguments], check=True)


def _fill(disk: str, leave_bytes: int) -> Callable[[], None]:
  """Fills a disk; returns what undoes it."""
  path = os.path.join(disk, _BALLAST)
  with open(path, 'wb', buffering=0) as ballast:
    state = os.statvfs(disk)
    missing = state.f_bavail * state.f_frsize - leave_bytes
    try:
      while missing > 0:
        missing -= ballast.write(bytes(min(missing, 1 << 16)))
    except OSError:  # the run took the rest
      pass
  return lambda: os.remove(path)


def _make_read_only(workdir: str) -> Callable[[], None]:
  """Makes a folder read-only, even for root; returns what undoes it."""
  # A mount of its own, made read-only where nobody writes, then moved on top:
  # with a file open for writing, remounting fails as busy.
  aside = os.path.join(os.path.dirname(os.path.dirname(workdir)), 'read-only')
  os.makedirs(aside, exist_ok=True)
  _mount('--bind', workdir, aside)
  _mount('-o', 'remount,ro,bind', aside)
  _mount('--move', aside, workdir)
  # Lazily: the process may have looked at it this moment.
  return lambda: subprocess.run(['umount', '-l', workdir], check=True)


def _cause(process: Process, fault: tuple) -> Callable[[], None] | None:
  """Waits for the moment, then lets the fault happen."""
  stage, step, kind, leave = fault
  if not process.until(lambda: process.position() >= (stage, step)):
    return None
  if kind == 'read-only':
    process.until(process.writes)
    return _make_read_only(process.workdir)
  return _fill(os.path.dirname(process.workdir), leave)


def _complaints(process: Process, kind: str, code: int) -> list[str]:
  """Returns what is wrong with how a process ended."""
  output = process.output()
  errors = [line for line in output.splitlines() if line.startswith('error: ')]
  complaints = []
  if code == 0:
    complaints.append('exit code 0')
  if len(errors) != 1 or not output.rstrip().endswith(errors[-1]):
    complaints.append(f'{len(errors)} lines of error at the end')
  else:
    wanted = (SAYS[kind], process.workdir, 'intact', 'same command')
    complaints += [f'does not say {w!r}' for w in wanted if w not in errors[0]]
  if 'Traceback' in output:
    complaints.append('a traceback')
  return complaints


def _run_into(command: Command, workdir: str, name: str) -> dict:
  """Runs until a fault has ended the run; returns what came of it."""
  fault = FAULTS[name]
  # The log is not on the disk that is full.
  process = command.start(workdir, os.path.dirname(workdir) + '.log')
  undo = _cause(process, fault)
  before = {s: run.checkpoint_steps(workdir, s) for s in STAGES}
  code = process.wait()
  wrong = []
  if undo is None:
    wrong.append('the fault came too late')
  else:
    undo()
    wrong += _complaints(process, fault[2], code)
  wrong += run.damages(workdir)
  for stage, steps in before.items():
    if steps and max(steps) not in run.checkpoint_steps(workdir, stage):
      wrong.append(f'{stage}: checkpoint {max(steps)} is gone')
  stage, step = fault[:2]
  output = process.output()
  return {
    'moment': name,
    'stage': (*STAGES, 'evaluation')[stage],
    'step': step,
    'exit code': code,
    'message': output[output.rfind('error: ') :].strip(),
    'wrong': wrong,
    'output': output[-6000:] if wrong else '',
  }


def main() -> None:
  """Runs all faults; prints what came of them as JSON."""
  spec = json.loads(sys.argv[1])
  disk = os.path.join(spec['workdir'], 'disk')
  os.makedirs(disk, exist_ok=True)
  _mount('-t', 'tmpfs', '-o', f'size={_DISK_MB}m', 'tmpfs', disk)
  if spec.get('probe'):
    return
  command = Command(spec['config'], tuple(spec['overrides']), spec['cache'])
  workdir = os.path.join(disk, 'run')
  rows = []
  for name in spec['faults']:
    rows.append(_run_into(command, workdir, name))
    print(f'{name}: {rows[-1]["message"]}', file=sys.stderr)
  command.finish(workdir)
  differing = run.differences(workdir, spec['reference'])
  print(json.dumps([{**row, 'differs': differing} for row in rows]))


if __name__ == '__main__':
  main()
