import json
import os
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from absl import logging

from dhat_jax import checkpoint
from dhat_jax.checkpoint import Checkpoints
from dhat_jax.optim import make_optimizer
from dhat_jax.train_state import TrainState
from tests.tiny import normal

TX = make_optimizer(schedule=lambda step: 0.1, momentum=0.9, weight_decay=0.1)


def make_state(step=0, width=50, ema=False):
  """A state of host arrays, as `parallel.to_host` gives it."""
  params = {
    'trunk': {'kernel': normal(40, width, seed=step)},
    'main_head': {'bias': np.float32([step, np.pi, 1e-40])},
  }
  opt_state = jax.tree.map(np.asarray, TX.init(params))
  opt_state = jax.tree.map(lambda x: x + x.dtype.type(step), opt_state)
  return TrainState(
    step=np.int32(step),
    params=params,
    batch_stats={'trunk': {'mean': normal(3, seed=step + 100)}},
    opt_state=opt_state,
    rng=jax.random.key(step),
    ema_params={'trunk': params['trunk']} if ema else None,
  )


def assert_bitwise_equal(got, expected):
  assert jax.tree.structure(got) == jax.tree.structure(expected)
  flat = checkpoint.flatten(got)
  for name, array in checkpoint.flatten(expected).items():
    assert flat[name].dtype == array.dtype, name
    assert flat[name].shape == array.shape, name
    assert flat[name].tobytes() == array.tobytes(), name


def save_all(folder, steps, keep=5, metrics=None):
  """Saves the states of some steps; metrics are {step: (robust, clean)}."""
  with Checkpoints(folder, keep=keep) as checkpoints:
    for step in steps:
      accuracy = (metrics or {}).get(step)
      checkpoints.save(
        step,
        make_state(step),
        metrics=accuracy
        and {'robust_accuracy': accuracy[0], 'clean_accuracy': accuracy[1]},
        info={'seconds': step / 2},
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


def test_flatten_and_unflatten_are_inverse():
  tree = {
    'keys': jax.random.split(jax.random.key(1, impl='rbg'), 3),
    'nested': [np.float32(2), {'low': np.ones(2, ml_dtypes.bfloat16)}],
    'nothing': None,
  }
  flat = checkpoint.flatten(tree)
  assert set(flat) == {'keys', 'nested/0', 'nested/1/low'}
  assert flat['keys'].dtype == np.uint32
  assert_bitwise_equal(checkpoint.unflatten(tree, flat), tree)
  restored = checkpoint.unflatten(tree, flat)['keys']
  assert restored.dtype == tree['keys'].dtype


def test_fingerprint_sees_shape_dtype_and_every_value():
  base = {'a': np.zeros((2, 3), np.float32)}
  changed = base['a'].copy()
  changed[1, 2] = 1e-40
  others = [
    changed,
    base['a'].T,
    base['a'].view(np.int32),
    -base['a'],  # the sign of zero
  ]
  prints = [checkpoint.fingerprint({'a': array}) for array in others]
  assert all(p != checkpoint.fingerprint(base) for p in prints)
  # Memory order is no value.
  ordered = {'a': np.asfortranarray(changed)}
  assert checkpoint.fingerprint(ordered) == prints[0]
  assert json.loads(json.dumps(prints[0])) == prints[0]


@pytest.mark.parametrize('ema', [False, True])
def test_save_and_restore_bitwise(folder, ema):
  state = make_state(7, ema=ema)
  with Checkpoints(folder, keep=1) as checkpoints:
    checkpoints.save(7, state, info={'seconds': 1.5, 'name': 'x'})
  like = make_state(0, ema=ema)
  with Checkpoints(folder, keep=1) as checkpoints:
    step, restored, info = checkpoints.restore_latest(like)
  assert step == 7
  assert info == {'seconds': 1.5, 'name': 'x'}
  assert_bitwise_equal(restored, state)
  assert (restored.ema_params is None) == (not ema)
  assert jnp.issubdtype(restored.rng.dtype, jax.dtypes.prng_key)


def test_state_may_change_after_save(folder):
  state = make_state(3)
  with Checkpoints(folder, keep=1) as checkpoints:
    checkpoints.save(3, state)
    state.params['trunk']['kernel'][:] = 0
    checkpoints.wait()
    _, restored, _ = checkpoints.restore_latest(state)
  assert_bitwise_equal(restored, make_state(3))


def test_no_checkpoint(folder):
  with Checkpoints(folder, keep=1) as checkpoints:
    assert checkpoints.steps() == []
    assert checkpoints.restore_latest(make_state()) is None
    assert checkpoints.restore_best(make_state()) is None


def test_saving_a_step_again_is_an_error(folder):
  with Checkpoints(folder, keep=2) as checkpoints:
    checkpoints.save(4, make_state(4))
    checkpoints.wait()
    for step in (4, 3):
      with pytest.raises(RuntimeError, match=f'checkpoint {step} was not'):
        checkpoints.save(step, make_state(step))


def test_keeps_the_latest_and_the_best(folder):
  metrics = {1: (0.2, 0.9), 2: (0.5, 0.5), 3: (0.1, 0.9), 4: (0.4, 0.9)}
  save_all(folder, (1, 2, 3, 4, 5, 6), keep=2, metrics=metrics)
  with Checkpoints(folder, keep=2) as checkpoints:
    assert checkpoints.steps() == [2, 5, 6]
    step, restored, info = checkpoints.restore_best(make_state())
    assert (step, info) == (2, {'seconds': 1.0})
    assert_bitwise_equal(restored, make_state(2))
    assert checkpoints.restore_latest(make_state())[0] == 6


@pytest.mark.parametrize(
  ('metrics', 'best'),
  [
    ({}, 3),  # none was validated: the newest
    ({1: (0.5, 0.6), 2: (0.4, 0.9), 3: (0.3, 0.9)}, 1),
    ({1: (0.5, 0.6), 2: (0.5, 0.7), 3: (0.5, 0.5)}, 2),  # cleaner
    ({1: (0.5, 0.6), 2: (0.5, 0.6), 3: (0.5, 0.5)}, 2),  # later
    ({1: (0.0, 0.0)}, 1),
  ],
)
def test_restore_best_and_its_ties(folder, metrics, best):
  save_all(folder, (1, 2, 3), metrics=metrics)
  with Checkpoints(folder, keep=5) as checkpoints:
    step, restored, _ = checkpoints.restore_best(make_state())
  assert step == best
  assert_bitwise_equal(restored, make_state(best))


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


@pytest.mark.parametrize('restore', ['restore_latest', 'restore_best'])
def test_another_network_is_an_error_and_nothing_moves(saved, folder, restore):
  shutil.copytree(saved, folder)
  for like in (make_state(width=51), make_state(ema=True)):
    with (
      Checkpoints(folder, keep=5) as checkpoints,
      pytest.raises(ValueError, match='arrays do not fit') as error,
    ):
      getattr(checkpoints, restore)(like)
    assert 'kernel' in str(error.value)
  assert os.listdir(os.path.dirname(folder)) == ['main_head']
  with Checkpoints(folder, keep=5) as checkpoints:
    assert checkpoints.steps() == [1, 2]
    assert getattr(checkpoints, restore)(make_state())[0] == 2
