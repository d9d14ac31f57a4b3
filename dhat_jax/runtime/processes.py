"""The processes of a run: start-up, barriers, agreement."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dhat_jax.runtime import backend

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

  It turns on the persistent compilation cache, so a second start compiles
  nothing. The cache is in ~/.cache/dhat_jax/xla unless
  JAX_COMPILATION_CACHE_DIR names another folder. It lets the CPU use all its
  cores, and joins the other processes of the run, if any.

  Args:
    cpu_devices: number of simulated devices on the CPU; None: the devices of
      the machine.
    distributed: whether JAX finds the other processes itself, as it can on TPU
      pods, under SLURM and under Open MPI.
    coordinator_address: 'host:port' of the first process, if `distributed`
      cannot find it. It needs the next two.
    num_processes: number of processes.
    process_id: number of this process, from 0.

  Raises:
    ValueError: processes that are described incompletely or cannot be found; a
      platform that JAX cannot start here; unknown XLA flags.
  """
  backend.check_xla_flags()
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
    backend.use_cpu(cpu_devices)
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
  backend.start()


def _join(given: dict[str, Any]) -> None:
  """Connects to the other processes, and waits for all of them."""
  try:
    jax.distributed.initialize(
      **given, heartbeat_timeout_seconds=HEARTBEAT_SECS
    )
  except (IndexError, RuntimeError, TypeError, ValueError) as error:
    reason = str(error).splitlines()[0]
    if isinstance(error, IndexError):  # JAX looks for the port
      reason = f'got {given}, expected coordinator_address=HOST:PORT.'
    raise ValueError(
      f'several processes: {reason} Expected a cluster that JAX knows (TPU '
      'pod, SLURM, Open MPI), or coordinator_address, num_processes and '
      'process_id'
    ) from error


def process_count() -> int:
  """Returns how many processes the run has."""
  return jax.process_count()


def is_first() -> bool:
  """Whether this is the process that reports and writes."""
  return jax.process_index() == 0


def wait_for_all(where: str) -> None:
  """Returns when every process is here; `where` names the place."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(where)


@contextlib.contextmanager
def first_alone(where: str) -> Iterator[None]:
  """Lets the first process do something, and then all others at once.

  It is for files that one process writes and the others read, as a cache.
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

  JAX's runtime handles SIGTERM and chooses one call, the same in all processes.
  It is always False with only one process.

  Args:
    call: 1, 2, 3, ... in every process.
  """
  if jax.process_count() == 1:
    return False
  return multihost_utils.reached_preemption_sync_point(call)
