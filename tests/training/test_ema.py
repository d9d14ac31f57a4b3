"""The moving average of the weights, against a loop in float64."""

import dataclasses
import itertools
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.training import ema, loop, stored
from dhat_jax.training.loop import Intervals
from dhat_jax.training.optim import make_schedule, sgd
from dhat_jax.training.stages import Validation
from dhat_jax.training.state import TrainState
from dhat_jax.training.step import update
from tests.helpers.tiny import flat, normal
from tests.training.test_loop import SHAPE, make_stage, records


def decays(steps, **options):
  decay = ema.make_ema_decay(**options)
  return [float(decay(step)) for step in steps]


def test_constant():
  assert ema.make_ema_decay(decay=0.9) == 0.9


def test_copies_first():
  # Steps are counted from 1: the third one averages.
  np.testing.assert_allclose(
    decays(range(4), decay=0.9, copy_steps=3), [0, 0, 0.9, 0.9]
  )


def test_warm_up():
  # d = 1, 2, 3, ...: 2/11, 3/12, 4/13, until .5 at d = 8.
  got = decays([0, 1, 2, 6, 7, 8, 99], decay=0.5, warm_up=True)
  np.testing.assert_allclose(
    got, [2 / 11, 1 / 4, 4 / 13, 8 / 17, 0.5, 0.5, 0.5], rtol=1e-6
  )
  # After the copy it begins with d = 0.
  got = decays([2, 3, 4], decay=0.5, copy_steps=4, warm_up=True)
  np.testing.assert_allclose(got, [0, 0.1, 2 / 11], rtol=1e-6)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'decay': 1.0}, r'decay: got 1.0, expected in \[0, 1\)'),
    ({'decay': 0.9, 'copy_steps': -1}, 'copy_steps: got -1'),
    ({'decay': 0.9, 'warm_up': 1}, 'warm_up: got 1, expected true or false'),
  ],
)
def test_errors(options, message):
  with pytest.raises(ValueError, match=message):
    ema.make_ema_decay(**options)


STEPS = 30


def published_average(average, weights, decay, copy_steps):
  """The average after each step, as the published code writes it."""
  history = []
  for done, values in enumerate(weights, start=1):
    factor = done >= copy_steps
    delta = done - copy_steps
    rate = min(decay, (1 + delta) / (10 + delta)) if 10 + delta else decay
    rate *= factor
    average = average * rate + values * (1 - rate)
    history.append(average)
  return history


@pytest.mark.parametrize('copy_steps', [0, 7])
def test_average_of_weights_and_statistics(copy_steps):
  """Weights move by SGD, statistics as they like; both averages by hand."""
  gradients = np.float64(normal(STEPS, 3, seed=1))
  statistics = np.float64(normal(STEPS, 2, seed=2))
  with jax.enable_x64(True):
    tx = sgd(schedule=lambda step: 0.1, momentum=0.9, weight_decay=0.01)
    params = {'trunk': {'kernel': np.float64(normal(3))}}
    frozen = {'main_head': {'mean': jnp.ones(2)}}
    stats = {'trunk': {'mean': jnp.zeros(2)}, **frozen}
    state = TrainState(
      step=jnp.zeros((), jnp.int64),  # whose fractions are float64
      params=params,
      batch_stats=stats,
      opt_state=tx.init(params),
      rng=jax.random.key(0),
      ema_params=params,
      ema_batch_stats={'trunk': stats['trunk']},
    )
    decay = ema.make_ema_decay(decay=0.7, copy_steps=copy_steps, warm_up=True)

    @jax.jit
    def step(state, grads, mean):
      return update(
        state,
        {'trunk': {'kernel': grads}},
        {**state.batch_stats, 'trunk': {'mean': mean}},
        tx=tx,
        trains=('trunk',),
        ema_decay=decay(state.step),
      )

    states = []
    for grads, mean in zip(gradients, statistics, strict=True):
      state = step(state, grads, mean)
      states.append(state)
  weights = [np.asarray(s.params['trunk']['kernel']) for s in states]
  for start, values, got in (
    (
      params['trunk']['kernel'],
      weights,
      [s.ema_params['trunk']['kernel'] for s in states],
    ),
    (
      np.zeros(2),
      statistics,
      [s.ema_batch_stats['trunk']['mean'] for s in states],
    ),
  ):
    expected = published_average(start, values, 0.7, copy_steps)
    assert got[0].dtype == np.float64
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    # A copy, bit for bit.
    for index in range(copy_steps - 1):
      np.testing.assert_array_equal(got[index], values[index])
  used = states[-1].variables()
  assert used['params']['trunk'] is states[-1].ema_params['trunk']
  assert used['batch_stats']['trunk'] is states[-1].ema_batch_stats['trunk']
  np.testing.assert_array_equal(used['batch_stats']['main_head']['mean'], 1)
  raw = states[-1].variables(averaged=False)
  assert raw['params'] is states[-1].params
  assert raw['batch_stats'] is states[-1].batch_stats


NO_AVERAGE = {'ema': False, 'ema_statistics': False}


def averaging_stage(validated=None, *, ema_use=True):
  """A stage with every option of the average, in one cycle.

  Its validation appends the variables that it gets to `validated`.
  """

  def accuracies(variables):
    if validated is not None:
      validated.append(flat(variables))
    return {'clean_accuracy': 0.5, 'robust_accuracy': 0.5}

  schedule = make_schedule(
    name='one_cycle', learning_rate=0.1, num_steps=6, steps_per_epoch=3
  )
  return make_stage(
    'main_head',
    tx=sgd(schedule=schedule, momentum=0.9, weight_decay=1e-3, nesterov=True),
    schedule=schedule,
    ema_decay=ema.make_ema_decay(decay=0.9, copy_steps=2, warm_up=True),
    ema=True,
    ema_statistics=True,
    ema_use=ema_use,
    validation=Validation(lambda variables: (accuracies(variables), {})),
  )


def train(stage, directory):
  variables, _ = loop.train(
    [stage],
    directory,
    image_shape=SHAPE,
    intervals=Intervals(log_steps=1, checkpoint_steps=2),
  )
  return flat(variables)


@pytest.fixture(scope='module')
def averaged(tmp_path_factory):
  """(workdir, variables that were handed on, those of each validation)."""
  directory, validated = str(tmp_path_factory.mktemp('averaged')), []
  return directory, train(averaging_stage(validated), directory), validated


def folder_of(directory):
  return loop.checkpoint_folder(directory, 'main_head')


def last_state(directory):
  return flat(stored.read_state(folder_of(directory), keep='last'))


def test_the_average_is_validated_and_handed_on(averaged):
  directory, variables, validated = averaged
  state = last_state(directory)
  differs = []
  for path, array in variables.items():
    group, _, leaf = path.partition('/')
    average = {'params': 'ema_params', 'batch_stats': 'ema_batch_stats'}[group]
    np.testing.assert_array_equal(array, state[f'{average}/{leaf}'])
    np.testing.assert_array_equal(array, validated[-1][path][0])
    if not np.array_equal(array, state[path]):
      differs.append(group)
  assert {'params', 'batch_stats'} == set(differs)


def test_the_records_have_the_momentum(averaged):
  directory, _, _ = averaged
  schedule = averaging_stage().schedule
  rows = [row for row in records(directory) if 'train/loss' in row]
  assert [row['step'] for row in rows] == [1, 2, 3, 4, 5, 6]
  for name, of_step in (
    ('learning_rate', schedule),
    ('momentum', schedule.momentum),
  ):
    expected = [float(of_step(step)) for step in range(6)]
    assert [row[f'train/{name}'] for row in rows] == expected
    assert len(set(expected)) > 2


def test_the_weights_themselves_on_request(averaged):
  """Of the same checkpoints; nothing is trained."""
  directory, _, _ = averaged
  state = last_state(directory)
  variables = train(averaging_stage(ema_use=False), directory)
  read = flat(
    stored.read_variables(folder_of(directory), keep='last', averaged=False)
  )
  assert variables.keys() == read.keys()
  for path, array in variables.items():
    np.testing.assert_array_equal(array, state[path])
    np.testing.assert_array_equal(array, read[path])


def test_resumes_bitwise(averaged, tmp_path):
  """Averages, and the state of an optimiser with a cycled momentum."""
  directory, _, _ = averaged
  again = str(tmp_path)
  shutil.copytree(directory, again, dirs_exist_ok=True)
  steps = stored.steps(folder_of(again))
  assert steps[-2:] == [4, 6]
  shutil.rmtree(os.path.join(folder_of(again), '6'))
  train(averaging_stage(), again)
  expected, got = last_state(directory), last_state(again)
  assert expected.keys() == got.keys()
  assert any(path.startswith('ema_batch_stats') for path in got)
  for path, array in got.items():
    np.testing.assert_array_equal(array, expected[path], err_msg=path)


def test_a_checkpoint_of_other_averages_does_not_fit(averaged):
  directory, _, _ = averaged
  for options in ({}, {'ema': True}):
    stage = dataclasses.replace(averaging_stage(), **{**NO_AVERAGE, **options})
    with pytest.raises(ValueError, match='ema_batch_stats'):
      train(stage, directory)


def test_combinations_of_options_have_the_state_that_they_need():
  for has, statistics in itertools.product((False, True), repeat=2):
    stage = make_stage('main_head', ema=has, ema_statistics=statistics)
    state = jax.eval_shape(lambda stage=stage: loop.initial_state(stage, SHAPE))
    assert (state.ema_params is not None) == has
    assert (state.ema_batch_stats is not None) == (has and statistics)
