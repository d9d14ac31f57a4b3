"""The training step on several devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dhat_jax import losses
from dhat_jax.runtime import devices
from tests.training.test_step import (
  HALVES,
  ROLES,
  compiled,
  flip,
  keys_by_hand,
  make,
  make_batch,
  make_net,
)


def test_two_devices_equal_one():
  """Same noise, synchronised batch norm, one gradient, one mean."""
  state, step = make('main_head', axis_name=devices.AXIS)
  mapped = devices.pmap_train_step(step)
  replicated = devices.replicate(state)
  one, plain = compiled('main_head')
  for seed in range(2):
    batch = make_batch(seed)
    batch['mask'][5:] = False  # All of one device's, a part of the other's.
    replicated, sums = mapped(replicated, devices.shard(batch))
    one, expected = plain(one, batch)
    host = devices.to_host(sums)
    assert host.keys() == expected.keys()
    for name, (total, count) in expected.items():
      assert host[name][1] == count
      np.testing.assert_allclose(
        host[name][0], total, rtol=1e-3, atol=1e-4, err_msg=name
      )
  two = devices.to_host(replicated)
  for group in ('params', 'batch_stats'):
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-4),
      getattr(two, group),
      getattr(one, group),
    )


def test_batch_norm_that_is_not_shared_averages_its_statistics():
  """Each device normalises by its own share; the states stay equal."""
  state, step = make(
    'second_head', loss=losses.natural(), axis_name=devices.AXIS, shared=False
  )
  replicated, _ = devices.pmap_train_step(step)(
    devices.replicate(state), devices.shard(make_batch())
  )
  for leaf in jax.tree.leaves(replicated.batch_stats):
    np.testing.assert_array_equal(leaf[0], leaf[1])
  role, images = ROLES['second_head'], make_batch()['images'] / np.float32(255)
  images = flip(keys_by_hand(state.rng, 0, 0), images)
  update = jax.jit(
    lambda inputs: make_net(role.outputs).apply(
      state.variables(),
      inputs,
      training_parts=role.trains,
      mutable=['batch_stats'],
    )[1]['batch_stats']
  )
  halves = [update(images[part]) for part in HALVES]
  jax.tree.map(
    lambda got, *own: np.testing.assert_allclose(
      got, np.mean(own, axis=0), rtol=1e-4, atol=1e-6
    ),
    devices.to_host(replicated).batch_stats,
    *halves,
  )


def test_examples_have_their_keys_on_any_number_of_devices():
  rng = jax.random.key(3)
  whole = devices.example_rngs(rng, 4, None)
  halves = jax.pmap(
    lambda _: devices.example_rngs(rng, 2, 'batch'), axis_name='batch'
  )(jnp.zeros(2))
  np.testing.assert_array_equal(
    jax.random.key_data(whole),
    np.asarray(jax.random.key_data(halves)).reshape(4, -1),
  )
  shifted = devices.example_rngs(rng, 2, None, offset=2)
  np.testing.assert_array_equal(
    jax.random.key_data(shifted), jax.random.key_data(whole)[2:]
  )
