"""JAX's own settings that a run must not depend on."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def standard() -> Iterator[None]:
  """Runs its body under the settings that a run's numbers are defined by.

  Whatever the environment says: how threefry draws is what random numbers are
  (`JAX_THREEFRY_PARTITIONABLE`), and Optax needs the usual promotion of dtypes,
  so that `JAX_NUMPY_DTYPE_PROMOTION=strict` is not heard. Also a decorator. It
  does not hold in other threads.
  """
  with (
    jax.threefry_partitionable(True),
    jax.numpy_dtype_promotion('standard'),
  ):
    yield
