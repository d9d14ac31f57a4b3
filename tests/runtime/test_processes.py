"""Many devices and several processes train as one device does."""

import json
import os
import re
import shutil
import signal
import time

import numpy as np
import pytest

from dhat_jax.run import train_and_evaluate
from dhat_jax.runtime import files
from dhat_jax.training.checkpoint import Checkpoints
from dhat_jax.training.loop import checkpoint_folder
from dhat_jax.training.stages import roles
from tests.helpers import processes, tiny_run

pytestmark = pytest.mark.slow

# One stage, evaluated by little.
SMALL = {
  'stages': ('main_head',),
  'main_head.epochs': 3,
  'log_every_steps': 1,
  'evaluation.attacks': ('clean', 'pgd_2'),
  'dataset.validation_size': 0,
  'main_head.keep': 'last',
}
STEPS = 66
OPTIONS = ['tests.helpers.tiny_run', *(f'{k}={v!r}' for k, v in SMALL.items())]


def arguments(directory):
  module, *options = OPTIONS
  return [module, directory, *options]


def losses(directory):
  records = files.read_json_lines(os.path.join(directory, 'metrics.jsonl'))
  return {r['step']: r['train/loss'] for r in records if 'train/loss' in r}


def results_of(directory):
  return files.read_json(os.path.join(directory, 'results.json'))


def last_arrays(directory):
  path = checkpoint_folder(directory, 'main_head')
  folder = os.path.join(path, str(STEPS))
  with open(os.path.join(folder, 'info', 'metadata')) as file:
    return json.load(file)['arrays']  # shape, dtype and checksum of each


def wait_for(directory, step, started, timeout=240):
  path = checkpoint_folder(directory, 'main_head')
  deadline = time.monotonic() + timeout
  while time.monotonic() < deadline:
    assert all(process.poll() is None for process in started)
    if os.path.isdir(path) and any(
      name.isdigit() and int(name) >= step for name in os.listdir(path)
    ):
      return
    time.sleep(0.05)
  raise AssertionError(f'no checkpoint {step}')


def test_first_steps_are_equal_on_any_devices(tmp_path):
  """1, 2, 4, 8 devices; and 2 processes with 2 each.

  'modern' has DKL, AWP, one cycle, averages, CutMix, extra images and attacks
  in batch statistics. The sign of the attack's gradient amplifies rounding,
  more with every step.
  """
  whole = [f'tiny:{",".join(roles())}', 'modern:second_head']
  wanted = {
    (1, 1): whole,
    (1, 2): ['tiny:main_head', whole[1]],
    (1, 4): ['tiny:main_head', whole[1]],
    (1, 8): ['tiny:main_head'],
    (2, 2): whole,
  }
  found = {}
  for (count, devices), stages in wanted.items():
    path = str(tmp_path / f'{count}_{devices}.npz')
    processes.run(
      ['tests.helpers.first_steps', path, *stages],
      count=count,
      cpu_devices=devices,
    )
    with np.load(path) as file:
      found[count, devices] = dict(file)
  expected = found.pop((1, 1))
  assert 'modern/second_head/2/loss/class_means' in expected
  for devices, arrays in found.items():
    assert len(arrays) > 40
    for name, array in arrays.items():
      tolerance = 2e-4 if '/0/' in name else 5e-3
      np.testing.assert_allclose(
        array,
        expected[name],
        rtol=tolerance,
        atol=tolerance,
        err_msg=f'{devices}: {name}',
      )
  assert found[2, 2].keys() == expected.keys()


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """An uninterrupted run of two processes with two devices each."""
  directory = str(tmp_path_factory.mktemp('whole'))
  processes.run(arguments(directory), count=2, cpu_devices=2)
  return directory


def test_two_processes_train_as_one_does(whole, tmp_path):
  directory = str(tmp_path)
  processes.run(arguments(directory), count=1, cpu_devices=4)
  expected, actual = losses(directory), losses(whole)
  assert list(expected) == list(actual) == list(range(1, STEPS + 1))
  for step in range(1, 6):
    assert actual[step] == pytest.approx(expected[step], rel=1e-4)
  expected, actual = results_of(directory), results_of(whole)
  assert expected['n_test'] == actual['n_test'] == 360
  for attack, accuracy in expected['accuracy']['main'].items():
    assert actual['accuracy']['main'][attack] == pytest.approx(
      accuracy, abs=0.03
    )


def test_a_killed_process_ends_the_others_and_the_rerun_is_equal(
  whole, tmp_path
):
  directory = str(tmp_path)
  first, second = started = processes.start(
    arguments(directory), count=2, cpu_devices=2
  )
  wait_for(directory, 12, started)
  second.kill()
  killed = time.monotonic()
  output, _ = first.communicate(timeout=60)
  assert time.monotonic() - killed < 60
  assert first.returncode not in (0, None)
  # Ours, or that of JAX's runtime if it is faster.
  assert re.search('lost another process|another task died', output), output
  assert not os.path.exists(os.path.join(directory, 'results.json'))
  processes.run(arguments(directory), count=2, cpu_devices=2)
  assert last_arrays(directory) == last_arrays(whole)
  ignored = {'seconds': None}
  assert results_of(directory) | ignored == results_of(whole) | ignored


def test_sigterm_to_one_process_stops_all_and_fewer_devices_resume(
  whole, tmp_path
):
  directory = str(tmp_path / 'four')
  started = processes.start(arguments(directory), count=2, cpu_devices=2)
  wait_for(directory, 6, started)
  started[1].send_signal(signal.SIGTERM)
  outputs = [process.communicate(timeout=60)[0] for process in started]
  assert [process.returncode for process in started] == [0, 0], outputs
  assert all('resume with the same command' in output for output in outputs)
  with Checkpoints(checkpoint_folder(directory, 'main_head'), keep=9) as saved:
    stopped = saved.steps()[-1]
  assert 6 <= stopped < STEPS

  two = str(tmp_path / 'two')
  shutil.copytree(directory, two)
  train_and_evaluate(tiny_run.get_config(**SMALL), two)  # on two devices
  processes.run(arguments(directory), count=1, cpu_devices=1)
  for resumed in (two, directory):
    assert list(losses(resumed)) == list(range(1, STEPS + 1))
    for step in range(stopped + 1, stopped + 3):
      assert losses(resumed)[step] == pytest.approx(
        losses(whole)[step], rel=0.01
      )


def test_processes_must_share_the_workdir(tmp_path):
  """Each gets a folder of its own, as hosts without a common disk would."""
  started = processes.start(
    ['tests.helpers.tiny_run', str(tmp_path / '{process}')],
    count=2,
    cpu_devices=2,
  )
  outputs = [process.communicate(timeout=120)[0] for process in started]
  assert [process.returncode for process in started] == [2, 2], outputs
  assert all('file system that all hosts share' in text for text in outputs)
