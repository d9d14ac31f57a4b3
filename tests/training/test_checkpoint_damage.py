"""What a kill or a disk can do to checkpoints, and that it is survived."""

import os
import shutil

import numpy as np
import pytest
from absl import logging

from dhat_jax.training.checkpoint import Checkpoints
from tests.training.test_checkpoint import (
  assert_bitwise_equal,
  make_state,
  save_all,
)

# What Orbax leaves behind when it fails to read a file.
pytestmark = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning'
)


@pytest.fixture
def folder(tmp_path):
  return str(tmp_path / 'checkpoints' / 'main_head')


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """Two checkpoints, 1 and 2, to be copied by the tests that damage them."""
  folder = str(tmp_path_factory.mktemp('saved') / 'main_head')
  save_all(folder, (1, 2))
  return folder


@pytest.fixture
def errors(monkeypatch):
  """What is logged as an error."""
  messages = []
  monkeypatch.setattr(
    logging, 'error', lambda text, *args: messages.append(text % args)
  )
  return messages


def array_file(folder, step):
  """The largest file of a checkpoint: it holds the arrays."""
  files = [
    os.path.join(base, name)
    for base, _, names in os.walk(os.path.join(folder, str(step), 'state'))
    for name in names
  ]
  return max(files, key=os.path.getsize)


def flip(path, position):
  with open(path, 'r+b') as file:
    file.seek(position)
    byte = file.read(1)[0]
    file.seek(position)
    file.write(bytes([byte ^ 0x10]))


def truncate(folder):
  path = array_file(folder, 2)
  os.truncate(path, os.path.getsize(path) // 2)


def delete_arrays(folder):
  os.remove(array_file(folder, 2))


def delete_manifest(folder):
  os.remove(os.path.join(folder, '2', 'state', 'manifest.ocdbt'))


def delete_info(folder):
  os.remove(os.path.join(folder, '2', 'info', 'metadata'))


def cut_info(folder):
  path = os.path.join(folder, '2', 'info', 'metadata')
  os.truncate(path, os.path.getsize(path) // 2)


def empty_folder(folder):
  shutil.rmtree(os.path.join(folder, '2'))
  os.mkdir(os.path.join(folder, '2'))


DAMAGES = (
  *(truncate, delete_arrays, delete_manifest),
  *(delete_info, cut_info, empty_folder),
)


@pytest.mark.parametrize('damage', DAMAGES)
def test_damaged_newest_is_skipped_and_set_aside(saved, folder, errors, damage):
  shutil.copytree(saved, folder)
  damage(folder)
  with Checkpoints(folder, keep=5) as checkpoints:
    step, restored, info = checkpoints.restore_latest(make_state())
    assert (step, info) == (1, {'seconds': 0.5})
    assert_bitwise_equal(restored, make_state(1))
    assert checkpoints.steps() == [1]
    # Loudly: which, and where it is now.
    assert f'{folder}/2 is damaged and is skipped' in errors[0]
    target = os.path.join(os.path.dirname(folder), 'damaged', 'main_head_2')
    assert errors[1] == f'moved to {target}'
    assert os.path.isdir(target)
    # Training can write it again.
    checkpoints.save(2, make_state(2))
    checkpoints.wait()
    assert checkpoints.restore_latest(make_state())[0] == 2


def test_flipped_bytes_never_restore_to_wrong_values(saved, folder, errors):
  size = os.path.getsize(array_file(saved, 2))
  skipped = 0
  for position in np.linspace(200, size - 200, 7).astype(int):
    shutil.copytree(saved, folder)
    flip(array_file(folder, 2), position)
    with Checkpoints(folder, keep=5) as checkpoints:
      step, restored, _ = checkpoints.restore_latest(make_state())
    assert_bitwise_equal(restored, make_state(step))
    skipped += step == 1
    shutil.rmtree(os.path.dirname(folder))
  assert skipped >= 5
  # Most restore to other values without an error: the checksum finds them.
  found = [e for e in errors if 'arrays do not fit' in e]
  assert found
  assert any('kernel' in e for e in found)


@pytest.mark.parametrize('damage', ['cut', 'flipped', 'deleted'])
def test_damage_to_any_file_is_survived(folder, tmp_path, errors, damage):
  whole = str(tmp_path / 'whole')
  save_all(whole, (1, 2), metrics={1: (0.1, 0.2), 2: (0.3, 0.4)})
  names = [
    os.path.relpath(os.path.join(base, name), whole)
    for base, _, names in os.walk(os.path.join(whole, '2'))
    for name in names
  ]
  assert len(names) > 8
  for name in names:
    shutil.copytree(whole, folder)
    path = os.path.join(folder, name)
    middle = os.path.getsize(path) // 2
    if damage == 'cut':
      os.truncate(path, middle)
    elif damage == 'flipped':
      flip(path, middle)
    else:
      os.remove(path)
    with Checkpoints(folder, keep=5) as checkpoints:
      step, restored, _ = checkpoints.restore_latest(make_state())
      assert_bitwise_equal(restored, make_state(step))
      assert checkpoints.restore_best(make_state())[0] in (1, step)
    shutil.rmtree(os.path.dirname(folder))


def test_all_damaged(saved, folder, errors):
  shutil.copytree(saved, folder)
  for step in (1, 2):
    path = array_file(folder, step)
    flip(path, os.path.getsize(path) // 2)
  # The place where it would be put is taken already.
  taken = os.path.join(os.path.dirname(folder), 'damaged', 'main_head_2')
  os.makedirs(taken)
  with Checkpoints(folder, keep=5) as checkpoints:
    assert checkpoints.restore_latest(make_state()) is None
    assert checkpoints.steps() == []
  assert len(errors) == 4
  assert sorted(os.listdir(os.path.dirname(taken))) == [
    'main_head_1',
    'main_head_2',
    'main_head_2_1',
  ]


def test_unfinished_checkpoint_is_no_checkpoint(saved, folder):
  shutil.copytree(saved, folder)
  name = '3.orbax-checkpoint-tmp-12345'
  shutil.copytree(os.path.join(folder, '2'), os.path.join(folder, name))
  with Checkpoints(folder, keep=5) as checkpoints:
    assert checkpoints.steps() == [1, 2]
    assert checkpoints.restore_latest(make_state())[0] == 2
    checkpoints.save(3, make_state(3))
    checkpoints.wait()
    assert checkpoints.restore_latest(make_state())[0] == 3


def test_damaged_best_is_skipped_for_the_next_best(folder, errors):
  save_all(
    folder, (1, 2, 3), metrics={1: (0.4, 0.9), 2: (0.5, 0.9), 3: (0.1, 0.9)}
  )
  flip(array_file(folder, 2), os.path.getsize(array_file(folder, 2)) // 2)
  with Checkpoints(folder, keep=5) as checkpoints:
    step, restored, _ = checkpoints.restore_best(make_state())
    assert checkpoints.steps() == [1, 3]
  assert step == 1
  assert_bitwise_equal(restored, make_state(1))
  assert 'is damaged and is skipped' in errors[0]


@pytest.mark.parametrize('text', ['', '{"robust_accu', '{}', '[1]'])
def test_damaged_metrics_are_set_aside(folder, errors, text):
  save_all(folder, (1, 2, 3), metrics={1: (0.4, 0.9), 2: (0.5, 0.9)})
  with open(os.path.join(folder, '2', 'metrics', 'metrics'), 'w') as file:
    file.write(text)
  with Checkpoints(folder, keep=5) as checkpoints:
    assert checkpoints.steps() == [1, 3]
    assert checkpoints.restore_latest(make_state())[0] == 3
    step, restored, _ = checkpoints.restore_best(make_state())
  assert step == 1
  assert_bitwise_equal(restored, make_state(1))
  assert '/2 is damaged and is skipped' in errors[0]


def test_deleted_metrics_leave_the_others(folder):
  save_all(folder, (1, 2, 3), metrics={1: (0.4, 0.9), 2: (0.5, 0.9)})
  os.remove(os.path.join(folder, '2', 'metrics', 'metrics'))
  with Checkpoints(folder, keep=5) as checkpoints:
    assert checkpoints.restore_best(make_state())[0] == 1


def test_flipped_bytes_of_the_description(saved, folder, errors):
  path = os.path.join('info', 'metadata')
  size = os.path.getsize(os.path.join(saved, '2', path))
  for position in np.linspace(2, size - 3, 7).astype(int):
    shutil.copytree(saved, folder)
    flip(os.path.join(folder, '2', path), position)
    with Checkpoints(folder, keep=5) as checkpoints:
      step, restored, info = checkpoints.restore_latest(make_state())
    assert_bitwise_equal(restored, make_state(step))
    assert info == {'seconds': step / 2}
    shutil.rmtree(os.path.dirname(folder))
  assert sum('is damaged and is skipped' in e for e in errors) >= 6
