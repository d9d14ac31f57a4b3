import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.models.dual_head import DualHeadNet
from dhat_jax.training.optim import make_optimizer
from dhat_jax.training.state import create_train_state, split_parts
from tests.helpers.tiny import TinyBackbone, flat

NET = DualHeadNet(
  backbone=TinyBackbone(),
  num_classes=3,
  aggregator='classwise',
  axis_name='not mapped here',
)
PLAIN = NET.clone(outputs=('main',))
TX = make_optimizer(schedule=lambda step: 0.1, momentum=0.9, weight_decay=0.1)


def create(net=NET, trains=('aggregator',), seed=0, **kwargs):
  return create_train_state(
    net=net,
    tx=TX,
    trains=trains,
    rng=jax.random.key(seed),
    image_shape=(8, 8, 3),
    **kwargs,
  )


@pytest.fixture(scope='module')
def plain_state():
  return create(PLAIN, ('trunk', 'main_head'))


def assert_same(first, second):
  first, second = flat(first), flat(second)
  assert first.keys() == second.keys()
  for name, values in first.items():
    np.testing.assert_array_equal(values, second[name], err_msg=name)


def test_split_parts_puts_every_part_in_one():
  tree = {'trunk': 1, 'main_head': 2, 'second_head': 3}
  assert split_parts(tree, ('trunk', 'second_head')) == (
    {'trunk': 1, 'second_head': 3},
    {'main_head': 2},
  )
  assert split_parts(tree, ()) == ({}, tree)
  # A part without parameters is in neither.
  assert split_parts(tree, ('aggregator',)) == ({}, tree)


def test_optimizer_state_covers_trained_parts_alone():
  state = create(trains=('second_head',), ema=True)
  assert state.step.dtype == jnp.int32
  assert int(state.step) == 0
  momenta = [
    leaf for leaf in jax.tree.leaves(state.opt_state) if np.ndim(leaf) > 0
  ]
  trained = jax.tree.leaves(state.params['second_head'])
  assert sorted(m.shape for m in momenta) == sorted(t.shape for t in trained)
  assert set(state.ema_params) == {'second_head'}
  assert set(state.params) == {
    *('trunk', 'main_head', 'second_head', 'aggregator')
  }
  assert set(state.batch_stats) == set(state.params)


def test_same_seed_same_state(plain_state):
  again = create(PLAIN, ('trunk', 'main_head'))
  assert_same(again.variables(), plain_state.variables())
  assert jnp.issubdtype(again.rng.dtype, jax.dtypes.prng_key)
  np.testing.assert_array_equal(
    jax.random.key_data(again.rng), jax.random.key_data(plain_state.rng)
  )
  other = create(PLAIN, ('trunk', 'main_head'), seed=1)
  name = 'params/trunk/conv/kernel'
  difference = (
    flat(other.variables())[name] - flat(plain_state.variables())[name]
  )
  assert np.abs(difference).max() > 0.01
  assert not np.array_equal(
    jax.random.key_data(other.rng), jax.random.key_data(plain_state.rng)
  )


def test_given_parts_are_kept_and_others_initialised(plain_state):
  given = plain_state.variables()
  given['params'] = jax.tree.map(lambda x: x + 1, given['params'])
  given['batch_stats'] = jax.tree.map(lambda x: x + 2, given['batch_stats'])
  state = create(seed=5, variables=given)
  for part in ('trunk', 'main_head'):
    assert_same(state.params[part], given['params'][part])
    assert_same(state.batch_stats[part], given['batch_stats'][part])
  assert set(state.params) - set(given['params']) == {
    *('second_head', 'aggregator')
  }
  second = flat(state.params['second_head'])['conv/kernel']
  assert np.abs(second).max() > 0.01


def test_given_variables_survive_donation(plain_state):
  given = jax.tree.map(jnp.array, plain_state.variables())
  state = create(PLAIN, ('trunk',), variables=given, ema=True)
  donate = jax.jit(
    lambda s: s.replace(params=jax.tree.map(lambda x: 2 * x, s.params)),
    donate_argnums=0,
  )
  jax.block_until_ready(donate(state))
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(given))
  assert_same(given, plain_state.variables())


def test_ema_starts_as_a_copy_and_takes_part_in_variables():
  state = create(PLAIN, ('main_head',), ema=True)
  assert_same(state.ema_params['main_head'], state.params['main_head'])
  for average, own in zip(
    jax.tree.leaves(state.ema_params['main_head']),
    jax.tree.leaves(state.params['main_head']),
    strict=True,
  ):
    assert average is not own
    assert average.unsafe_buffer_pointer() != own.unsafe_buffer_pointer()
  moved = state.replace(
    ema_params=jax.tree.map(lambda x: x + 1, state.ema_params)
  )
  variables = moved.variables()
  assert_same(variables['params']['main_head'], moved.ema_params['main_head'])
  assert_same(variables['params']['trunk'], state.params['trunk'])
  assert create(PLAIN, ('trunk',)).ema_params is None


def test_parts_that_the_network_lacks(plain_state):
  given = plain_state.variables()
  given['params'] = {**given['params'], 'tail': {}}
  with pytest.raises(ValueError, match=r"part: got 'tail', choices are"):
    create(PLAIN, ('trunk',), variables=given)


def test_shapes_that_do_not_fit(plain_state):
  wider = PLAIN.clone(num_classes=5)
  with pytest.raises(ValueError, match='main_head do not fit') as error:
    create(wider, ('trunk',), variables=plain_state.variables())
  message = str(error.value)
  assert "['classifier']['dense']['kernel']" in message
  assert 'got (6, 3), expected (6, 5)' in message
  assert 'conv' not in message  # whose shape fits
  given = plain_state.variables()
  del given['params']['trunk']['norm']
  with pytest.raises(ValueError, match='trunk do not fit') as error:
    create(PLAIN, ('trunk',), variables=given)
  assert "['norm']['scale']: got None, expected (4,)" in str(error.value)
