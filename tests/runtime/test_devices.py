import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.runtime import devices, processes
from tests.helpers.tiny import normal


def pmap(function):
  mapped = jax.pmap(function, axis_name=devices.AXIS)
  return lambda *args: jax.block_until_ready(mapped(*args))


def test_two_devices():
  assert jax.device_count() == 2


@pytest.mark.parametrize(
  ('size', 'nearest'),
  [(7, 'are 6, 8'), (1, 'is 2'), (0, 'is 2'), (129, 'are 128, 130')],
)
def test_batch_size_that_does_not_divide(size, nearest):
  with pytest.raises(ValueError, match='batch_size') as error:
    devices.check_batch_size('main_head.batch_size', size)
  assert str(error.value) == (
    f'main_head.batch_size: got {size}, expected a multiple of the 2 devices; '
    f'the nearest {nearest}'
  )


def test_batch_size_that_divides():
  for size in (2, 128):
    devices.check_batch_size('batch_size', size)


def test_shard_keeps_the_order():
  batch = {'images': normal(6, 2, 2, 1), 'labels': np.arange(6)}
  sharded = devices.shard(batch)
  assert sharded['images'].shape == (2, 3, 2, 2, 1)
  np.testing.assert_array_equal(sharded['labels'], [[0, 1, 2], [3, 4, 5]])
  np.testing.assert_array_equal(
    sharded['images'].reshape(6, 2, 2, 1), batch['images']
  )
  with pytest.raises(ValueError, match='batch of 5 does not divide over 2'):
    devices.shard({'labels': np.arange(5)})


def test_replicate_compiles_nothing():
  tree = {
    'half': jnp.asarray(normal(3, 17), jnp.bfloat16),
    'flag': jnp.array(True),
    'step': jnp.int32(3),
    'number': 2.5,
  }
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: compiled.append(name) if 'compile' in name else None
  )
  replicated = devices.replicate(tree)
  assert not compiled
  for name, leaf in tree.items():
    assert replicated[name].shape == (2, *np.shape(leaf))
    assert replicated[name].dtype == jnp.asarray(leaf).dtype
    for share in replicated[name].addressable_shards:
      np.testing.assert_array_equal(np.asarray(share.data)[0], leaf)


def test_to_host_inverts_replicate():
  tree = {
    'array': normal(3, 2),
    'step': np.int32(7),
    'rng': jax.random.key(5),
    'rbg': jax.random.key(6, impl='rbg'),
    'none': None,
  }
  replicated = devices.replicate(tree)
  assert replicated['array'].shape == (2, 3, 2)
  host = devices.to_host(replicated)
  for name in ('array', 'step'):
    assert isinstance(host[name], np.ndarray)
    assert host[name].dtype == tree[name].dtype
    np.testing.assert_array_equal(host[name], tree[name])
  for name in ('rng', 'rbg'):
    assert host[name].dtype == tree[name].dtype
    assert host[name].shape == ()
    np.testing.assert_array_equal(
      jax.random.key_data(host[name]), jax.random.key_data(tree[name])
    )
  assert host['none'] is None
  np.testing.assert_array_equal(
    devices.first_copy(replicated['array']), tree['array']
  )


def test_example_indices_count_over_the_global_batch():
  def indices(x):
    return devices.example_indices(x.shape[0], devices.AXIS)

  got = pmap(indices)(np.zeros((2, 3)))
  np.testing.assert_array_equal(got, [[0, 1, 2], [3, 4, 5]])
  assert got.dtype == jnp.int32
  np.testing.assert_array_equal(devices.example_indices(3, None), [0, 1, 2])


def test_psum_equals_a_sum_of_each_leaf():
  tree = {
    'kernel': normal(2, 3, 4),
    'scalar': normal(2, seed=1),
    'nested': {'bias': normal(2, 5, seed=2)},
  }
  got = pmap(lambda t: devices.psum(t, devices.AXIS))(tree)
  for leaf, expected in zip(
    jax.tree.leaves(got), jax.tree.leaves(tree), strict=True
  ):
    assert leaf.shape == expected.shape
    assert leaf.dtype == expected.dtype
    for replica in range(2):
      np.testing.assert_array_equal(leaf[replica], expected.sum(axis=0))
  assert devices.psum(tree, None) is tree


def test_psum_is_one_all_reduce():
  tree = [np.zeros((2, size), np.float32) for size in (1, 2, 3)]
  mapped = jax.pmap(
    lambda t: devices.psum(t, devices.AXIS), axis_name=devices.AXIS
  )
  assert str(jax.make_jaxpr(mapped)(tree)).count('psum') == 1


def test_all_gather_joins_in_global_order():
  shares = np.arange(12).reshape(2, 3, 2)
  got = pmap(lambda x: devices.all_gather(x, devices.AXIS))(shares)
  assert got.shape == (2, 6, 2)
  for replica in range(2):
    np.testing.assert_array_equal(got[replica], np.arange(12).reshape(6, 2))
  assert devices.all_gather(shares, None) is shares


def test_train_step_donates_its_state():
  step = devices.pmap_train_step(
    lambda state, batch: (
      state + devices.psum(batch.sum(), devices.AXIS),
      batch.shape[0] * jnp.ones(()),
    )
  )
  state = devices.replicate(np.zeros(3, np.float32))
  new, count = step(state, devices.shard(np.arange(4.0, dtype=np.float32)))
  np.testing.assert_array_equal(devices.to_host(new), [6, 6, 6])
  np.testing.assert_array_equal(count, [2, 2])
  assert state.is_deleted()


def test_eval_step_maps_what_in_axes_says():
  step = devices.pmap_eval_step(
    lambda scale, x: scale * x + jax.lax.axis_index(devices.AXIS),
    in_axes=(None, 0),
  )
  got = step(np.float32(2), np.float32([[1, 2], [3, 4]]))
  np.testing.assert_array_equal(got, [[2, 4], [7, 9]])


@pytest.mark.parametrize(
  ('backend', 'count', 'waits'),
  [('cpu', 2, True), ('cpu', 1, False), ('tpu', 2, False)],
)
def test_calls_wait_on_several_simulated_devices_alone(
  monkeypatch, backend, count, waits
):
  waited = []
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  monkeypatch.setattr(jax, 'device_count', lambda: count)
  monkeypatch.setattr(
    jax, 'block_until_ready', lambda value: waited.append(1) or value
  )
  evaluates = devices.pmap_eval_step(lambda x: x + 1, in_axes=(0,))
  trains = devices.pmap_train_step(lambda state, batch: (state + 1, batch))
  x = np.ones((2, 3), np.float32)
  np.testing.assert_array_equal(evaluates(x), x + 1)
  np.testing.assert_array_equal(trains(devices.replicate(x[0]), x)[0], x + 1)
  assert len(waited) == 2 * waits


def test_initialize_sets_the_flag_for_one_version_alone(monkeypatch):
  flag = '--xla_cpu_experimental_ynn_fusion_type='
  monkeypatch.setenv('XLA_FLAGS', '--xla_cpu_enable_fast_math=false')
  monkeypatch.setattr(processes, '_ONE_CORE_CONVOLUTIONS', 'another version')
  processes.initialize()
  assert flag not in os.environ['XLA_FLAGS']
  monkeypatch.setattr(processes, '_ONE_CORE_CONVOLUTIONS', jax.lib.__version__)
  for _ in range(2):  # once, however often it is called
    processes.initialize()
    assert os.environ['XLA_FLAGS'] == f'--xla_cpu_enable_fast_math=false {flag}'


def test_the_second_step_compiles_nothing():
  """Its state comes from the first, and not from `replicate`."""
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: compiled.append(name) if 'compile' in name else None
  )
  step = devices.pmap_train_step(
    lambda state, batch: (state + batch.sum(), {'loss': state.sum()})
  )
  count = jax.local_device_count()
  batch = devices.shard(np.ones((2 * count, 3), np.float32))
  state, _ = step(devices.replicate(np.ones(3, np.float32)), batch)
  assert compiled
  compiled.clear()
  step(state, batch)
  assert not compiled
