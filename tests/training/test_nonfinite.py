"""What is not finite is reported, with its place, and never saved."""

import dataclasses
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax import losses
from dhat_jax.run import train_and_evaluate
from dhat_jax.training import checkpoint, loop, metrics
from dhat_jax.training.loop import Intervals
from tests.helpers import tiny_run
from tests.training import test_loop

STAGE = {'stages': ('main_head',)}


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
def test_an_update_that_overflows_is_not_saved(tmp_path, where):
  """Losses and gradients of all steps are finite, what step 6 leaves is not."""
  stage = test_loop.make_stage('main_head', num_steps=8)

  def overflowing(state, batch):
    state, sums = stage.step(state, batch)
    tree = jax.tree.map(
      lambda leaf: jnp.where(state.step == 6, jnp.inf, leaf).astype(leaf.dtype),
      getattr(state, where),
    )
    return state.replace(**{where: tree}), sums

  with pytest.raises(metrics.NonFiniteError) as error:
    loop.train(
      [dataclasses.replace(stage, step=overflowing)],
      str(tmp_path),
      image_shape=test_loop.SHAPE,
      # A record at step 5 only, a checkpoint at 3 and 6.
      intervals=Intervals(log_steps=5, checkpoint_steps=3),
    )
  message = str(error.value)
  assert message.startswith(where)
  assert 'not finite after step 6 of stage main_head' in message
  folder = tmp_path / 'checkpoints' / 'main_head'
  assert message.endswith(f'last good checkpoint: {folder}/3')
  assert saved_steps(tmp_path) == [3]


@losses.register('nan')
def nan_loss():
  """SAT, times the logarithm of negative numbers."""
  sat = losses.sat()

  def per_example(clean, adversarial, labels, output):
    values, more = sat.per_example(clean, adversarial, labels, output)
    logits = adversarial.select(output)
    return values * jnp.log(-1 - logits[:, 0] ** 2), more

  return dataclasses.replace(sat, name='nan', per_example=per_example)


def test_debug_nans_names_the_operation(tmp_path):
  config = tiny_run.get_config(**STAGE, debug_nans=True)
  config.main_head.loss = {'name': 'nan'}
  with pytest.raises(metrics.NonFiniteError) as error:
    train_and_evaluate(config, str(tmp_path))
  message = str(error.value)
  assert 'invalid value (nan) encountered in log' in message
  # In a user's own file, as this one is.
  assert re.search(rf'in {re.escape(__file__)}:\d+: return values \*', message)
  assert 'at step 1 of stage main_head' in message
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
