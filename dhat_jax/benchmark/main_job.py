"""A whole run by its command, started twice: time, compilations, memory."""

import collections
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections

from dhat_jax import main
from dhat_jax.benchmark import timing
from dhat_jax.runtime import documents, memory

_TRACED = '/jax/core/compile/jaxpr_trace_duration'
_LOWERED = '/jax/core/compile/jaxpr_to_mlir_module_duration'
_COMPILED = '/jax/core/compile/backend_compile_duration'
_HITS = '/jax/compilation_cache/cache_hits'


def _run(
  config: ml_collections.ConfigDict, directory: str, cache: str
) -> dict[str, Any]:
  """Runs a config in this new process; returns what JAX compiled."""
  seconds, counts = collections.Counter(), collections.Counter()

  def add(name: str, duration: float, **_) -> None:
    seconds[name] += duration
    counts[name] += 1

  jax.monitoring.register_event_duration_secs_listener(add)
  jax.monitoring.register_event_listener(
    lambda name, **_: counts.update([name])
  )
  jax.config.update('jax_compilation_cache_dir', cache)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  main.run(config, directory, 'train')
  return {
    'trace_seconds': seconds[_TRACED],
    'compile_seconds': seconds[_LOWERED] + seconds[_COMPILED],
    'programs': counts[_COMPILED],
    'compiled': counts[_COMPILED] - counts[_HITS],
    'peak_mib': memory.peak_mib(),
  }


def measure(
  config: ml_collections.ConfigDict, directory: str, cache: str
) -> dict[str, Any]:
  """Runs a config in a process of its own.

  Args:
    config: the run's config; its parts are the package's.
    directory: a new workdir.
    cache: folder of the compilation cache.

  Returns:
    `seconds` from the start of Python to its end, `cpu_seconds` of all
    cores outside the system, and `peak_mib` of memory (Linux). What JAX did:
    `programs` that it asked for, how many it `compiled`, the seconds of tracing
    and of compiling. Of results.json: the seconds of stages, evaluation and the
    natural twin.

  Raises:
    ValueError: the run failed; it said why.
  """
  before = os.times().children_user
  started = time.perf_counter()
  try:
    row = timing.in_new_process(_run, config, directory, cache)
  except SystemExit as stop:
    raise ValueError(f'the run ended with exit code {stop.code}') from stop
  seconds = time.perf_counter() - started
  cpu_seconds = os.times().children_user - before
  results = documents.read(os.path.join(directory, 'results.json'))
  by_part = dict(results['seconds'])
  return {
    'seconds': seconds,
    'cpu_seconds': cpu_seconds,
    **row,
    'evaluation_seconds': by_part.pop('evaluation'),
    'stages_seconds': sum(by_part.values()),
    'natural_seconds': sum(
      results.get('natural', {}).get('seconds', {}).values()
    ),
  }


def run(
  config: ml_collections.ConfigDict, *, report: Callable[[str], None] = print
) -> dict[str, Any]:
  """Measures a first start, and a second one in a new workdir.

  The second one has the compilation cache of the first.

  Args:
    config: the run's config.
    report: called with a line after each.

  Returns:
    {'rows': those of `measure`, with `start`}.
  """
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    cache = os.path.join(folder, 'cache')
    for start in ('first', 'second'):
      row = measure(config, os.path.join(folder, start), cache)
      rows.append({'start': start, **row})
      report(f'{start} start: {row["seconds"]:.1f} s')
  return {'rows': rows}


def table(measured: Mapping[str, Any]) -> str:
  """Returns the Markdown table of what `run` returns."""
  columns = {
    'all, s': 'seconds',
    'stages, s': 'stages_seconds',
    'evaluation, s': 'evaluation_seconds',
    'natural twin, s': 'natural_seconds',
    'tracing, s': 'trace_seconds',
    'compiling, s': 'compile_seconds',
    'CPU, s': 'cpu_seconds',
  }
  rows = [
    (
      row['start'],
      *(f'{row[key]:.1f}' for key in columns.values()),
      f'{row["compiled"]} of {row["programs"]}',
      '' if row['peak_mib'] is None else f'{row["peak_mib"]:,.0f}',
    )
    for row in measured['rows']
  ]
  headers = ('start', *columns, 'programs compiled', 'peak memory, MiB')
  return documents.markdown_table(headers, rows)
