"""JAX's settings that a run must not depend on."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def standard() -> Iterator[None]:
  """Runs its body under the settings that define a run's numbers.

  It overrides the environment. `JAX_THREEFRY_PARTITIONABLE` would change the
  random numbers. Optax needs the usual promotion of dtypes, so
  `JAX_NUMPY_DTYPE_PROMOTION=strict` is ignored. It is also a decorator, and
  does not affect other threads.
  """
  with (
    jax.threefry_partitionable(True),
    jax.numpy_dtype_promotion('standard'),
  ):
    yield
