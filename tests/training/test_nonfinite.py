"""What is not finite is told, with its place, and never saved."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax import losses
from dhat_jax.runtime import devices
from dhat_jax.training import checkpoint, metrics
from dhat_jax.training.loop import train_and_evaluate
from tests.helpers import tiny_run

STAGE = {'stages': ('main_head',)}


@pytest.fixture(autouse=True)
def tiny_backbone(monkeypatch):
  tiny_run.use_tiny_backbone(monkeypatch)


def saved_steps(folder):
  return sorted(
    int(name)
    for name in os.listdir(folder / 'checkpoints' / 'main_head')
    if name.isdigit()
  )


def test_check_finite_arrays():
  good = {'a': np.ones(3, np.float32), 'step': np.int32(4)}
  metrics.check_finite_arrays(good, 'after step 4')
  bad = {
    **good,
    'b': np.array([1, np.nan], np.float32),
    'c': np.float32(-np.inf),
  }
  with pytest.raises(metrics.NonFiniteError) as error:
    metrics.check_finite_arrays(bad, 'after step 4')
  assert str(error.value) == 'b, c not finite after step 4'
  with pytest.raises(metrics.NonFiniteError, match='a0, a1, a2 and 2 more'):
    metrics.check_finite_arrays(
      {f'a{i}': np.array([np.inf]) for i in range(5)}, ''
    )


@pytest.mark.parametrize('where', ['params', 'opt_state'])
def test_an_update_that_overflows_is_not_saved(tmp_path, monkeypatch, where):
  """Losses and gradients of all steps are finite, what step 6 leaves is not."""
  make = devices.pmap_train_step

  def overflowing(step):
    step_fn = make(step)

    def call(state, batch):
      state, sums = step_fn(state, batch)
      if int(np.asarray(state.step).max()) == 6:
        tree = jax.tree.map(lambda leaf: leaf + np.inf, getattr(state, where))
        state = state.replace(**{where: tree})
      return state, sums

    return call

  monkeypatch.setattr(devices, 'pmap_train_step', overflowing)
  # A record at steps 5 and 10 only, a checkpoint at 3 and 6.
  config = tiny_run.get_config(**STAGE, log_every_steps=5)
  with pytest.raises(metrics.NonFiniteError) as error:
    train_and_evaluate(config, str(tmp_path))
  message = str(error.value)
  assert message.startswith(where)
  assert 'not finite after step 6 of stage main_head' in message
  folder = tmp_path / 'checkpoints' / 'main_head'
  assert message.endswith(f'last good checkpoint: {folder}/3')
  assert saved_steps(tmp_path) == [3]
  assert not (tmp_path / 'results.json').exists()


def planted(monkeypatch):
  """Makes SAT's loss take the logarithm of negative numbers."""
  cross_entropy = losses._smoothed_cross_entropy

  def with_nan(logits, *args):
    return cross_entropy(logits, *args) * jnp.log(-1 - logits[:, 0] ** 2)

  monkeypatch.setattr(losses, '_smoothed_cross_entropy', with_nan)


def test_debug_nans_names_the_operation(tmp_path, monkeypatch):
  planted(monkeypatch)
  config = tiny_run.get_config(**STAGE, debug_nans=True)
  config.main_head.loss = {'name': 'sat'}
  with pytest.raises(metrics.NonFiniteError) as error:
    train_and_evaluate(config, str(tmp_path))
  assert 'invalid value (nan) encountered in log' in str(error.value)
  assert 'in dhat_jax/losses.py:' in str(error.value)
  assert 'at step 1 of stage main_head' in str(error.value)
  # Outside the run it is as it was.
  assert not jax.config.jax_debug_nans


def test_debug_nans_trains_and_goes_on_where_a_run_was(tmp_path):
  config = tiny_run.get_config(
    **STAGE, **{'evaluation.attacks': ('clean',), 'debug_nans': True}
  )
  train_and_evaluate(config, str(tmp_path))
  assert saved_steps(tmp_path) == [9, 10]
  os.remove(tmp_path / 'results.json')
  config.debug_nans = False
  train_and_evaluate(config, str(tmp_path))


def test_checkpoint_names_are_those_of_the_error():
  flat = checkpoint.flatten({'params': {'kernel': np.ones(2)}})
  assert list(flat) == ['params/kernel']
