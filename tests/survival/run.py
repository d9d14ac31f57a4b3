"""Runs of the command line: watched, stopped, compared."""

import atexit
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dhat_jax.runtime import files

ROOT = str(pathlib.Path(__file__).parents[2])
STAGES = ('main_head', 'second_head', 'aggregator')
STEPS = 20  # of each stage, with the digits
_KEPT = 2  # checkpoints of each stage
# Whatever the config: seconds instead of days. A record at every step, so that
# two runs have the same records wherever one of them was stopped.
SHORT = (
  *(f'--config.{stage}.epochs=1' for stage in STAGES),
  *(f'--config.{stage}.attack.steps=2' for stage in STAGES),
  '--config.compare_with_natural=False',
  '--config.checkpoint.every_steps=4',
  f'--config.checkpoint.keep={_KEPT}',
  '--config.log_every_steps=1',
  '--config.validation.attack=pgd_2',
  '--config.validation.every_epochs=1',
)
_TIMEOUT_SECS = 900
_POLL_SECS = 0.002


@dataclasses.dataclass(frozen=True)
class Command:
  """The command line that is run again and again.

  Attributes:
    config: the config file.
    overrides: flags after those of `SHORT`.
    cache: where compiled programs are kept, so that a restart is cheap.
  """

  config: str
  overrides: tuple[str, ...]
  cache: str

  def start(self, workdir: str, log: str = '') -> 'Process':
    """Starts it, its output in a file beside the workdir; returns at once."""
    arguments = [
      sys.executable,
      '-m',
      'dhat_jax.main',
      f'--config={self.config}',
      f'--workdir={workdir}',
      *SHORT,
      *self.overrides,
    ]
    environment = {
      **os.environ,
      'JAX_COMPILATION_CACHE_DIR': self.cache,
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'PYTHONFAULTHANDLER': '1',
    }
    return Process(arguments, environment, workdir, log or f'{workdir}.log')

  def finish(self, workdir: str) -> 'Process':
    """Runs it to its end.

    Raises:
      RuntimeError: it failed.
    """
    process = self.start(workdir)
    if process.wait() != 0:
      raise RuntimeError(f'the run in {workdir} failed:\n{process.output()}')
    return process


class Process:
  """One process of a run, and how far its workdir is."""

  def __init__(
    self,
    arguments: list[str],
    environment: Mapping[str, str],
    workdir: str,
    log: str,
  ):
    self.workdir = workdir
    self._log = log
    self._records = os.path.join(workdir, 'metrics.jsonl')
    # A stage that starts replaces the file: older records are not progress.
    self._old = _inode(self._records)
    self._stale = self._unfinished()  # what an earlier kill left
    with open(self._log, 'w') as output:
      self._popen = subprocess.Popen(
        arguments,
        env=environment,
        cwd=ROOT,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      )
    atexit.register(self._end)

  def _end(self) -> None:
    """Leaves nothing running behind."""
    if self.alive():
      self.signal(signal.SIGKILL)

  def wait(self) -> int:
    """Waits for its end; returns the exit code."""
    try:
      return self._popen.wait(_TIMEOUT_SECS)
    except subprocess.TimeoutExpired:
      self.signal(signal.SIGABRT)  # prints where each thread is
      self._popen.wait()
      raise RuntimeError(f'{self.workdir}: hangs:\n{self.output()}') from None

  def alive(self) -> bool:
    """Whether it still runs."""
    return self._popen.poll() is None

  def output(self) -> str:
    """Returns what it printed."""
    with open(self._log) as file:
      return file.read()

  def signal(self, number: int) -> None:
    """Sends a signal to the process and its children."""
    os.killpg(self._popen.pid, number)

  def until(self, condition: Callable[[], bool]) -> bool:
    """Waits for a condition; False if the process ended before."""
    deadline = time.monotonic() + _TIMEOUT_SECS
    while not condition():
      if self._popen.poll() is not None or time.monotonic() > deadline:
        return False
      time.sleep(_POLL_SECS)
    return True

  def position(self) -> tuple[int, int]:
    """Returns (index of the stage, step) of the newest record, or (0, 0).

    After the stages come the evaluation and the number of its files.
    """
    parts = len(list(finished_files(os.path.join(self.workdir, 'evaluation'))))
    if parts:
      return len(STAGES), parts
    if _inode(self._records) in (None, self._old):
      return 0, 0
    last = last_record(self._records)
    return (STAGES.index(last['stage']), last['step']) if last else (0, 0)

  def writes(self) -> bool:
    """Whether a checkpoint is being written, or was when it was killed."""
    return bool(self._unfinished() - self._stale)

  def _unfinished(self) -> set[tuple[str, int]]:
    """Returns the folders that a write begins with, and their times."""
    folders = set()
    for stage in STAGES:
      folder = os.path.join(self.workdir, 'checkpoints', stage)
      for name in os.listdir(folder) if os.path.isdir(folder) else ():
        path = os.path.join(folder, name)
        if 'orbax-checkpoint-tmp' in name:
          with contextlib.suppress(FileNotFoundError):  # finished meanwhile
            folders.add((path, os.stat(path).st_ctime_ns))
    return folders


def _inode(path: str) -> int | None:
  return os.stat(path).st_ino if os.path.exists(path) else None


def finished_files(folder: str) -> Iterator[str]:
  """Yields the finished files of a folder."""
  for base, _, names in os.walk(folder):
    for name in names:
      if not name.startswith('.'):
        yield os.path.join(base, name)


def last_record(path: str) -> dict | None:
  """Reads the last whole line of a file that grows."""
  with open(path, 'rb') as file:
    file.seek(max(0, os.path.getsize(path) - 4096))
    lines = file.read().decode(errors='replace').split('\n')[:-1]
  try:
    return json.loads(lines[-1]) if lines else None
  except ValueError:
    return None


def checkpoint_steps(workdir: str, stage: str) -> list[int]:
  """Returns the steps that have a finished checkpoint, in order."""
  folder = os.path.join(workdir, 'checkpoints', stage)
  names = os.listdir(folder) if os.path.isdir(folder) else ()
  return sorted(int(name) for name in names if name.isdigit())


def arrays(workdir: str, stage: str, step: int) -> dict[str, Any]:
  """Reads all arrays of a checkpoint, without this project's code."""
  import jax
  import numpy as np
  import orbax.checkpoint as ocp
  from absl import logging

  jax.config.update('jax_platforms', 'cpu')  # the runs have the accelerator
  logging.set_verbosity(logging.ERROR)
  path = os.path.abspath(
    os.path.join(workdir, 'checkpoints', stage, str(step), 'state')
  )
  with ocp.PyTreeCheckpointer() as reader:
    tree = reader.metadata(path).item_metadata.tree
    as_numpy = {key: ocp.RestoreArgs(restore_type=np.ndarray) for key in tree}
    return reader.restore(path, restore_args=as_numpy)


def damages(workdir: str) -> list[str]:
  """Returns which checkpoints are not what was written.

  Of each stage the newest two, as many as the short config keeps: a kill may
  leave an older one half deleted.
  """
  from dhat_jax.training import checkpoint

  damaged = []
  for stage in STAGES:
    for step in checkpoint_steps(workdir, stage)[-_KEPT:]:
      path = os.path.join(workdir, 'checkpoints', stage, str(step))
      try:
        info = files.read_json(os.path.join(path, 'info', 'metadata'))
        whole = (
          checkpoint.fingerprint(arrays(workdir, stage, step)) == info['arrays']
        )
      except Exception as error:
        damaged.append(f'{stage}/{step}: {error}')
      else:
        damaged += [] if whole else [f'{stage}/{step}: other arrays']
  return damaged


def differences(
  workdir: str,
  reference: str,
  read_arrays: Callable[[str, str, int], dict[str, Any]] = arrays,
) -> list[str]:
  """Returns in what a finished run differs from an uninterrupted one.

  Args:
    workdir: the run's.
    reference: the uninterrupted one's.
    read_arrays: (workdir, stage, step) -> the arrays of a checkpoint.
  """
  differing = []
  for stage in STAGES:
    steps = checkpoint_steps(workdir, stage)
    expected_steps = checkpoint_steps(reference, stage)
    if steps[-1:] != expected_steps[-1:]:
      differing.append(f'{stage}: checkpoints {steps}, not {expected_steps}')
    for step in sorted({*steps} & {*expected_steps}):
      expected = read_arrays(reference, stage, step)
      actual = read_arrays(workdir, stage, step)
      if not _same_arrays(actual, expected):
        differing.append(f'{stage}: arrays of step {step}')
  if _results(workdir) != _results(reference):
    differing.append('results.json')
  if _timeless_records(workdir) != _timeless_records(reference):
    differing.append('metrics.jsonl')
  return differing


def _same_arrays(actual: dict, expected: dict) -> bool:
  return actual.keys() == expected.keys() and all(
    actual[name].dtype == value.dtype
    and actual[name].shape == value.shape
    and actual[name].tobytes() == value.tobytes()
    for name, value in expected.items()
  )


def _results(workdir: str) -> dict:
  results = files.read_json(os.path.join(workdir, 'results.json'))
  results.pop('seconds')
  return results


def _timeless_records(workdir: str) -> list[dict]:
  """Returns the records, in order, without what depends on the clock."""
  return [
    {
      key: value
      for key, value in record.items()
      if not key.endswith(('_second', '_seconds'))
    }
    for record in files.read_json_lines(os.path.join(workdir, 'metrics.jsonl'))
  ]
