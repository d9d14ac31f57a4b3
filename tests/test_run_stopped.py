"""Runs that are asked to stop, and workdirs that are in use: real processes."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from dhat_jax.run import train_and_evaluate
from dhat_jax.runtime import files
from tests.helpers import processes, tiny_run

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent
# One stage, and an evaluation of many small parts.
CHANGES = {
  'stages': ('main_head',),
  'main_head.epochs': 3,
  'main_head.keep': 'last',
  'checkpoint.every_steps': 20,
  'dataset.validation_size': 0,
  'log_every_steps': 1,
  'evaluation.attacks': ('clean', *(f'pgd_{steps}' for steps in range(2, 12))),
}
# Of several processes one hears of a signal to another up to seconds later.
LONG = CHANGES | {
  'evaluation.attacks': ('clean', *(f'pgd_{steps}' for steps in range(2, 52)))
}


def options(changes):
  return [f'{key}={value!r}' for key, value in changes.items()]


def start(directory):
  return subprocess.Popen(
    [
      *(sys.executable, '-m', 'tests.helpers.tiny_run'),
      *(directory, *options(CHANGES)),
    ],
    cwd=ROOT,
    env={**os.environ, 'JAX_NUM_CPU_DEVICES': '2'},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def until(condition, started, timeout=120):
  deadline = time.monotonic() + timeout
  while not condition():
    assert time.monotonic() < deadline
    assert all(process.poll() is None for process in started)
    time.sleep(0.02)


def records(directory):
  path = os.path.join(directory, 'metrics.jsonl')
  return files.read_json_lines(path) if os.path.exists(path) else []


def trains(directory):
  """Whether a run that starts now has begun to train: it replaces the file."""
  path = os.path.join(directory, 'metrics.jsonl')
  old = os.stat(path).st_ino if os.path.exists(path) else None
  return lambda: len(records(directory)) > 2 and os.stat(path).st_ino != old


def evaluates(directory):
  return os.path.join(directory, 'evaluation', 'main', 'pgd_2.npz')


def outputs_of(started, timeout=120):
  try:
    return [process.communicate(timeout=timeout)[0] for process in started]
  finally:
    for process in started:
      process.kill()


def saved_steps(directory):
  folder = os.path.join(directory, 'checkpoints', 'main_head')
  return sorted(int(name) for name in os.listdir(folder) if name.isdigit())


def last_step(directory):
  return records(directory)[-1]['step']


def test_one_process(tmp_path):
  """Two at once; kill -9; Ctrl-C in training; SIGHUP in evaluation; the end."""
  directory = str(tmp_path / 'run')
  first = start(directory)
  until(trains(directory), [first])
  first.send_signal(signal.SIGSTOP)  # alive, and not done too soon
  second = start(directory)
  (output,) = outputs_of([second])
  assert second.returncode == 2, output
  assert output.count('\n') == 1
  assert f'in use by process {first.pid} on ' in output
  assert ' since 20' in output
  assert first.poll() is None
  first.kill()
  first.communicate()

  again = trains(directory)
  third = start(directory)
  until(again, [third])
  third.send_signal(signal.SIGINT)
  (output,) = outputs_of([third])
  assert third.returncode == 130, output
  assert f'taken over from process {first.pid} on ' in output
  assert 'resume with the same command' in output
  assert 'Traceback' not in output
  # The step that it was at is saved.
  assert saved_steps(directory)[-1] == last_step(directory)
  assert not os.path.exists(os.path.join(directory, '.lock'))

  fourth = start(directory)
  until(lambda: os.path.exists(evaluates(directory)), [fourth])
  fourth.send_signal(signal.SIGHUP)
  (output,) = outputs_of([fourth])
  assert fourth.returncode == 129, output
  assert 'resume with the same command' in output
  assert 'Traceback' not in output
  before = os.stat(evaluates(directory)).st_mtime_ns
  assert not os.path.exists(os.path.join(directory, 'results.json'))

  train_and_evaluate(tiny_run.get_config(**CHANGES), directory)
  assert os.stat(evaluates(directory)).st_mtime_ns == before
  steps = [record['step'] for record in records(directory)]
  assert steps == list(range(1, 67))  # none twice, none lost
  assert not os.path.exists(os.path.join(directory, '.lock'))


def test_two_processes(tmp_path):
  """A signal to one of them stops both at the same place, saved."""
  directory = str(tmp_path / 'run')
  for number, code, place in (
    (signal.SIGINT, 130, trains(directory)),
    (signal.SIGHUP, 129, lambda: os.path.exists(evaluates(directory))),
  ):
    started = processes.start(
      ['tests.helpers.tiny_run', directory, *options(LONG)],
      count=2,
      cpu_devices=1,
    )
    until(place, started)
    started[1].send_signal(number)
    outputs = outputs_of(started)
    assert [process.returncode for process in started] == [0, code], outputs
    for output in outputs:
      assert 'saved; resume with the same command' in output
      assert 'Traceback' not in output
    assert saved_steps(directory)[-1] == last_step(directory)
  assert last_step(directory) == 66
  assert not os.path.exists(os.path.join(directory, 'results.json'))
