import json
import os

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from dhat_jax.training import checkpoint
from dhat_jax.training.checkpoint import Checkpoints
from dhat_jax.training.optim import make_optimizer
from dhat_jax.training.state import TrainState
from tests.helpers.tiny import normal

TX = make_optimizer(schedule=lambda step: 0.1, momentum=0.9, weight_decay=0.1)


def make_state(step=0, width=50, ema=False):
  """A state of host arrays, as `devices.to_host` gives it."""
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


@pytest.mark.parametrize('restore', ['restore_latest', 'restore_best'])
def test_another_network_is_an_error_and_nothing_moves(folder, restore):
  save_all(folder, (1, 2))
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
