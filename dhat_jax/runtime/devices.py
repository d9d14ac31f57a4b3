"""Data parallelism: the only file that knows about devices.

A step is an ordinary function of one replica's state and share of the batch;
here it is mapped over all devices with `jax.pmap`, named axis `AXIS`.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
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

# A process that was not heard of for so long counts as lost, and ends the run.
HEARTBEAT_SECS = 30

# With this jaxlib the CPU's default convolutions run on one core; without its
# fusion they use all. An unknown flag would abort the process, so it is set
# for the version that it was tried with alone.
_ONE_CORE_CONVOLUTIONS = '0.10.2'
_ALL_CORES_FLAG = '--xla_cpu_experimental_ynn_fusion_type='


def initialize(
  *,
  cpu_devices: int | None = None,
  distributed: bool = False,
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> None:
  """Prepares JAX for a run; call it before anything else uses JAX.

  Turns on the persistent compilation cache (in ~/.cache/dhat_jax/xla, unless
  JAX_COMPILATION_CACHE_DIR names another place), so that a second start
  compiles nothing, lets the CPU use all its cores, and joins the other
  processes of the run, if there are any.

  Args:
    cpu_devices: runs on the CPU, on that many simulated devices; None for what
      the machine has.
    distributed: whether JAX is to find the other processes by itself, as it
      can on TPU pods, under SLURM and under Open MPI.
    coordinator_address: 'host:port' of the first process, where `distributed`
      cannot find it; then also
    num_processes: how many there are, and
    process_id: which one this is.

  Raises:
    ValueError: processes that are described in part only, or cannot be found.
  """
  flags = os.environ.get('XLA_FLAGS', '')
  if (
    jax.lib.__version__ == _ONE_CORE_CONVOLUTIONS
    and _ALL_CORES_FLAG not in flags
  ):
    os.environ['XLA_FLAGS'] = f'{flags} {_ALL_CORES_FLAG}'.strip()
  if not jax.config.jax_compilation_cache_dir:
    cache = os.path.join(os.path.expanduser('~'), '.cache', 'dhat_jax', 'xla')
    jax.config.update('jax_compilation_cache_dir', cache)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  if cpu_devices is not None:
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', cpu_devices)
  explicit = {
    'coordinator_address': coordinator_address,
    'num_processes': num_processes,
    'process_id': process_id,
  }
  given = {key: v for key, v in explicit.items() if v is not None}
  if given and not distributed and len(given) < len(explicit):
    raise ValueError(
      f'several processes: got {given}, expected all of {list(explicit)}, or '
      'distributed'
    )
  if given or distributed:
    _join(given)


def _join(given: dict[str, Any]) -> None:
  """Connects to the other processes; waits until all are there."""
  try:
    jax.distributed.initialize(
      **given, heartbeat_timeout_seconds=HEARTBEAT_SECS
    )
  except (ValueError, TypeError) as error:
    raise ValueError(
      f'several processes: {error} Expected a cluster that JAX knows (TPU pod, '
      'SLURM, Open MPI), or coordinator_address, num_processes and process_id'
    ) from error


def process_count() -> int:
  """Returns how many processes the run has."""
  return jax.process_count()


def is_first() -> bool:
  """Whether this is the process that reports and writes."""
  return jax.process_index() == 0


def wait_for_all(where: str) -> None:
  """Returns when every process has come here; `where` names the place."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(where)


@contextlib.contextmanager
def first_alone(where: str) -> Iterator[None]:
  """Lets the first process do something, then the others, all at once.

  For what one process writes and the others find, such as a cache.
  """
  if not is_first():
    wait_for_all(where)
  try:
    yield
  finally:
    if is_first():
      wait_for_all(where)


def all_agree(flag: bool) -> bool:
  """Whether a flag holds on every process."""
  if jax.process_count() == 1:
    return flag
  return bool(np.all(multihost_utils.process_allgather(np.bool_(flag))))


def stops_at(call: int) -> bool:
  """Whether a signal on any process ends the run at this call.

  JAX's runtime listens for SIGTERM and chooses one call, the same in all
  processes; always False where there is only one process.

  Args:
    call: 1, 2, 3, ... in every process.
  """
  if jax.process_count() == 1:
    return False
  return multihost_utils.reached_preemption_sync_point(call)


def check_batch_size(name: str, batch_size: int) -> None:
  """Raises ValueError unless the global batch divides over all devices."""
  devices = jax.device_count()
  if batch_size < 1 or batch_size % devices:
    lower = max(batch_size, 0) // devices * devices
    nearest = [size for size in (lower, lower + devices) if size > 0]
    raise ValueError(
      f'{name}: got {batch_size}, expected a multiple of the {devices} '
      f'devices; the nearest are {nearest}'
    )


def replicate(tree: Any) -> Any:
  """Copies a tree to every local device: leaves gain a leading axis."""
  # On the axis of the steps: a state laid out otherwise than the one that a
  # step returns would have the step compiled twice.
  return jax_utils.replicate(tree, axis_name=AXIS)


def to_host(tree: Any) -> Any:
  """Takes a replicated tree's first copy to the host, as NumPy arrays.

  Typed keys come back as typed keys.
  """

  def fetch(leaf):
    # Not leaf[0]: indexing would gather the array over all devices.
    leaf = jax_utils.unreplicate(leaf)
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return leaf if is_key else np.asarray(leaf)

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


def mapped_train_step(step: Callable) -> Callable:
  """Maps (state, batch) -> (state, metrics) over all devices.

  The state's buffers are donated.
  """
  return jax.pmap(step, axis_name=AXIS, donate_argnums=0)


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


def pmap_train_step(step: Callable) -> Callable:
  """Maps (state, batch) -> (state, metrics) over all devices, to be called.

  As `mapped_train_step`; but on the CPU with several simulated devices the
  call waits for the step: steps enqueued there without waiting can deadlock
  in their collectives. Under `jax.debug_nans` one device does the work of all.
  """
  if jax.config.jax_debug_nans:
    return _one_device_train_step(step)
  mapped = mapped_train_step(step)
  if jax.default_backend() != 'cpu' or jax.device_count() == 1:
    return mapped

  def waiting(state, batch):
    return jax.block_until_ready(mapped(state, batch))

  return waiting


def pmap_eval_step(step: Callable, in_axes: Any) -> Callable:
  """Maps an evaluation step; arguments with `in_axes` None are replicated."""
  mapped = jax.pmap(step, axis_name=AXIS, in_axes=in_axes)
  return lambda *args: jax.block_until_ready(mapped(*args))


def pmap_hoisted(fn: Callable, in_axes: Sequence[int | None]) -> Callable:
  """Maps fn over all devices, with closed-over arrays as arguments.

  Else a closed-over network's weights would become constants of the program.

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
