"""Data parallelism: the only file that knows about devices.

A step is an ordinary function of one replica's state and share of the batch;
here it is mapped over all devices with `jax.pmap`, named axis `AXIS`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from flax import jax_utils
from jax.experimental import multihost_utils

from dhat_jax.runtime import hoisting

AXIS = 'batch'


def check_batch_size(name: str, batch_size: int) -> None:
  """Raises ValueError unless the global batch divides over all devices."""
  devices = jax.device_count()
  if batch_size < 1 or batch_size % devices:
    lower = max(batch_size, 0) // devices * devices
    nearest = [size for size in (lower, lower + devices) if size > 0]
    verb = 'is' if len(nearest) == 1 else 'are'
    raise ValueError(
      f'{name}: got {batch_size}, expected a multiple of the {devices} '
      f'devices; the nearest {verb} {", ".join(map(str, nearest))}'
    )


def replicate(tree: Any) -> Any:
  """Copies a tree to every local device: leaves gain a leading axis."""
  # From the host: stacking arrays of a device compiles a program per shape.
  tree = jax.tree.map(
    lambda leaf: leaf if _is_key(leaf) else np.asarray(leaf), tree
  )
  # On the axis of the steps: a state laid out otherwise than the one that a
  # step returns would have the step compiled twice.
  return jax_utils.replicate(tree, axis_name=AXIS)


def _is_key(leaf: Any) -> bool:
  """Returns whether a leaf is an array of typed keys."""
  return isinstance(leaf, jax.Array) and jnp.issubdtype(
    leaf.dtype, jax.dtypes.prng_key
  )


def to_host(tree: Any) -> Any:
  """Takes a replicated tree's first copy to the host, as NumPy arrays.

  Typed keys come back as typed keys.
  """

  def fetch(leaf):
    # Not leaf[0]: indexing would gather the array over all devices.
    leaf = jax_utils.unreplicate(leaf)
    return leaf if _is_key(leaf) else np.asarray(leaf)

  return jax.tree.map(fetch, tree)


def first_copy(replicated: jax.Array) -> np.ndarray:
  """Fetches one array that all devices hold the same: [D, ...] -> [...]."""
  return np.asarray(jax_utils.unreplicate(replicated))


def shard(batch: Any) -> Any:
  """Splits this process's batch over its devices: [B, ...] -> [D, B/D, ...].

  Raises:
    ValueError: the batch does not divide over the local devices.
  """
  devices = jax.local_device_count()

  def split(array):
    if array.shape[0] % devices:
      raise ValueError(
        f'batch of {array.shape[0]} does not divide over {devices} devices'
      )
    return array.reshape(devices, -1, *array.shape[1:])

  return jax.tree.map(split, batch)


def own_share(array: np.ndarray) -> np.ndarray:
  """Returns this process's rows of a global batch: [B, ...] -> [B/P, ...]."""
  return np.split(array, jax.process_count())[jax.process_index()]


def unshard(array: jax.Array) -> np.ndarray:
  """Joins the devices' shares of all processes: [D, B/D, ...] -> [B, ...].

  Every process calls it, and gets the global batch.
  """
  array = np.asarray(array)
  array = array.reshape(-1, *array.shape[2:])
  if jax.process_count() == 1:
    return array
  return multihost_utils.process_allgather(array, tiled=True)


def mapped_train_step(
  step: Callable, devices: Sequence[jax.Device] | None = None
) -> Callable:
  """Maps (state, batch) -> (state, metrics) over devices.

  The state's buffers are donated.

  Args:
    step: of one replica.
    devices: default: all. Others, to compile for devices that are not here.
  """
  return jax.pmap(step, axis_name=AXIS, donate_argnums=0, devices=devices)


def _one_device_train_step(step: Callable) -> Callable:
  """As `pmap_train_step`, but an operation that makes a NaN can be named.

  For a computation that several devices share, JAX cannot do that.
  """
  mapped = jax.jit(jax.vmap(step, axis_name=AXIS))
  device = jax.local_devices()[0]

  def on_one(state, batch):
    spread = jax.tree.map(lambda leaf: leaf.sharding, state)
    state, metrics = mapped(*jax.device_put((state, batch), device))
    return jax.device_put(state, spread), metrics

  return on_one


def _waiting(mapped: Callable) -> Callable:
  """Returns a mapped function whose calls wait for each other where they must.

  On the CPU with several simulated devices: what is enqueued there without
  waiting can deadlock in its collectives. Elsewhere a call returns at once, and
  whoever reads the result waits for it.
  """
  if jax.default_backend() != 'cpu' or jax.device_count() == 1:
    return mapped
  return lambda *args: jax.block_until_ready(mapped(*args))


def pmap_train_step(step: Callable) -> Callable:
  """Maps (state, batch) -> (state, metrics) over all devices, to be called.

  As `mapped_train_step`, but a call waits where it must. Under
  `jax.debug_nans` one device does the work of all.
  """
  if jax.config.jax_debug_nans:
    return _one_device_train_step(step)
  return _waiting(mapped_train_step(step))


def mapped_eval_step(
  step: Callable, in_axes: Any, devices: Sequence[jax.Device] | None = None
) -> Callable:
  """Maps an evaluation step; arguments with `in_axes` None are replicated."""
  return jax.pmap(step, axis_name=AXIS, in_axes=in_axes, devices=devices)


def pmap_eval_step(step: Callable, in_axes: Any) -> Callable:
  """As `mapped_eval_step`, but a call waits where it must."""
  return _waiting(mapped_eval_step(step, in_axes))


def pmap_hoisted(fn: Callable, in_axes: Sequence[int | None]) -> Callable:
  """Maps fn over all devices, with closed-over arrays as arguments.

  Otherwise the weights of a closed-over network would become constants of the
  program.

  Args:
    fn: one replica's arrays -> arrays with the batch as first axis; traced
      once, so that all calls have the same shapes.
    in_axes: 0 for arguments that are split over the devices, None for others.

  Returns:
    fn on global batches, host arrays in and out, the same in every process.
  """
  compiled = []

  def call(*args):
    args = [
      shard(own_share(np.asarray(arg))) if axis == 0 else arg
      for arg, axis in zip(args, in_axes, strict=True)
    ]
    if not compiled:
      shares = [
        arg[0] if axis == 0 else arg
        for arg, axis in zip(args, in_axes, strict=True)
      ]
      run, consts = hoisting.hoist(fn, *shares)
      mapped = jax.pmap(run, axis_name=AXIS, in_axes=(0, *in_axes))
      compiled.extend([mapped, replicate(consts)])
    mapped, consts = compiled
    return jax.tree.map(unshard, mapped(consts, *args))

  return call


def example_indices(batch_size: int, axis_name: str | None) -> chex.Array:
  """Returns each example's place in the global batch: int32 [B].

  Args:
    batch_size: the size of this replica's share.
    axis_name: the mapped axis, or None outside of one.
  """
  first = 0 if axis_name is None else jax.lax.axis_index(axis_name)
  return first * batch_size + jnp.arange(batch_size)


def example_rngs(
  rng: chex.PRNGKey,
  batch_size: int,
  axis_name: str | None,
  offset: int = 0,
) -> chex.PRNGKey:
  """One key per example, by its place in the global batch: keys [B].

  Neither the number of devices nor the device enters, so that augmentation
  and attack noise are the same on any number of them. `offset` is the place
  of the batch's first example, where places count over a whole split.
  """
  indices = offset + example_indices(batch_size, axis_name)
  return jax.vmap(lambda index: jax.random.fold_in(rng, index))(indices)


def next_examples(tree: Any, axis_name: str | None) -> Any:
  """Returns each example's successor in the global batch: [B, ...] -> same.

  The last one's is the first. Only one example travels between replicas.
  """

  def shift(array):
    first = array[:1]
    if axis_name is not None:
      replicas = jax.lax.axis_size(axis_name)
      backwards = [(i, (i - 1) % replicas) for i in range(replicas)]
      first = jax.lax.ppermute(first, axis_name, backwards)
    return jnp.concatenate([array[1:], first])

  return jax.tree.map(shift, tree)


def psum(tree: Any, axis_name: str | None) -> Any:
  """Sums a tree of floats over the replicas in one all-reduce.

  The leaves are ravelled into one vector first: not every compiler merges the
  hundreds of small all-reduces that a network's gradients would make.
  """
  if axis_name is None:
    return tree
  vector, unravel = jax.flatten_util.ravel_pytree(tree)
  return unravel(jax.lax.psum(vector, axis_name))


def all_gather(array: chex.Array, axis_name: str | None) -> chex.Array:
  """Joins the replicas' shares in global order: [B/D, ...] -> [B, ...]."""
  if axis_name is None:
    return array
  return jax.lax.all_gather(array, axis_name, tiled=True)
