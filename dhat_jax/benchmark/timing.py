"""Wall times of functions that take turns, and functions that run apart."""

import concurrent.futures
import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache


def seconds(function: Callable[[], Any]) -> float:
  """Returns the wall time of one call; JAX's results are waited for."""
  started = time.perf_counter()
  jax.block_until_ready(function())
  return time.perf_counter() - started


def alternate(
  functions: Mapping[str, Callable[[], Any]],
  *,
  repeats: int,
  warmup: int = 1,
  calls: int = 1,
) -> dict[str, list[float]]:
  """Times functions in turn, so that a slow minute of the machine hits all.

  Args:
    functions: {name: function without arguments}.
    repeats: turns of each.
    warmup: calls of each before, not timed.
    calls: in one turn. Several of short functions: PyTorch's threads spin
      for some milliseconds after a call, at the next one's cost.

  Returns:
    {name: seconds of a call, the mean over each turn}.
  """
  for _ in range(warmup):
    for function in functions.values():
      jax.block_until_ready(function())
  times = {name: [] for name in functions}
  for _ in range(repeats):
    for name, function in functions.items():
      total = seconds(lambda f=function: [f() for _ in range(calls)])
      times[name].append(total / calls)
  return times


def summary(times: list[float]) -> dict[str, Any]:
  """Returns the median, the extremes and all times, in seconds."""
  return {
    'median': statistics.median(times),
    'min': min(times),
    'max': max(times),
    'all': times,
  }


@contextlib.contextmanager
def no_compilation_cache() -> Iterator[None]:
  """Compiles everything again inside, so that compiling can be timed."""
  before = jax.config.jax_enable_compilation_cache
  try:
    jax.config.update('jax_enable_compilation_cache', False)
    compilation_cache.reset_cache()  # whether it is used is asked only once
    yield
  finally:
    jax.config.update('jax_enable_compilation_cache', before)
    compilation_cache.reset_cache()


def in_new_process(function: Callable[..., Any], *args: Any) -> Any:
  """Returns what a function returns in a new process, which then ends.

  Args:
    function: of a module; what it raises is raised here.
    *args: what can be pickled.

  Raises:
    ValueError: JAX runs on an accelerator, which this process holds.
  """
  if jax.default_backend() != 'cpu':
    raise ValueError(
      f'got {jax.default_backend()!r} devices, which one process alone can '
      "have, expected JAX on the CPU: set JAX_PLATFORMS='cpu'"
    )
  spawn = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
    return pool.submit(function, *args).result()
