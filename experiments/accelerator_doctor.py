"""Whether an accelerator computes what the CPU does: steps and attacks.

A second process computes the CPU's values meanwhile, on the same inputs.
"""

import concurrent.futures
import functools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from dhat_jax.runtime import config_file, documents, files, provenance
from experiments import accelerator_budget, accelerator_identity
from experiments.accelerator_cases import (
  Case,
  Observed,
  Problem,
  cases,
  inputs_case,
)


def distance(got: np.ndarray, expected: np.ndarray) -> float:
  """Returns the share of flags that differ, or |got - expected| / |expected|.

  What is not finite is infinitely far away.
  """
  if expected.dtype == bool:
    return float(np.mean(got != expected))
  got, expected = got.astype(np.float64), expected.astype(np.float64)
  gap = np.linalg.norm(got - expected) / max(np.linalg.norm(expected), 1e-30)
  return float(gap) if np.isfinite(gap) else float('inf')


class Reference:
  """What the CPU computes, in a process of its own, kept in a folder."""

  def __init__(self, folder: str, config_path: str, workers: int):
    """Starts the process, if something of its values is missing.

    Args:
      folder: of the values; those of other code or versions are removed.
      config_path: as `--config` gives it.
      workers: threads that compute at the same time.
    """
    self._folder, self._workers = folder, workers
    made_of = {
      'config': config_path,
      'versions': provenance.versions(),
      'code': accelerator_identity.code(),
      'values': accelerator_identity.config_digest(
        config_file.read(config_path)
      ),
    }
    path = os.path.join(folder, 'made_of.json')
    if not os.path.exists(path) or files.read_json(path) != made_of:
      shutil.rmtree(folder, ignore_errors=True)
      files.write_json(path, made_of)
    self._log = os.path.join(folder, 'log.txt')
    self._process = None
    if not os.path.exists(os.path.join(folder, 'complete.npz')):
      self._start(config_path)

  def _start(self, config_path: str) -> None:
    command = [
      *(sys.executable, '-m', 'experiments.accelerator', 'reference'),
      *(f'--config={config_path}', f'--workdir={self._folder}'),
      f'--workers={self._workers}',
    ]
    environment = {
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'CUDA_VISIBLE_DEVICES': '',
    }
    with open(self._log, 'w') as log:
      self._process = subprocess.Popen(
        command, env=environment, stdout=log, stderr=log
      )

  def read(self, name: str) -> Observed:
    """Returns the CPU's values of a case; waits for them.

    Raises:
      RuntimeError: the process ended without.
    """
    path = value_path(self._folder, name)
    while not os.path.exists(path):
      ended = self._process is None or self._process.poll() is not None
      if ended and not os.path.exists(path):
        with open(self._log) as file:
          raise RuntimeError(f'no value of {name}: {file.read()[-500:]}')
      time.sleep(0.05)
    with np.load(path) as arrays:
      return dict(arrays)

  def close(self) -> None:
    """Ends the process if it runs."""
    if self._process is not None and self._process.poll() is None:
      self._process.kill()
      self._process.wait()


def value_path(folder: str, name: str) -> str:
  """Returns where a case's values are."""
  return os.path.join(folder, f'{name.replace("/", "-")}.npz')


def write_reference(
  config: ml_collections.ConfigDict, folder: str, *, workers: int
) -> None:
  """Computes what is missing of the CPU's values; see `Reference`."""

  def inputs() -> Observed:
    with np.load(value_path(folder, 'inputs')) as arrays:
      return dict(arrays)

  problem = Problem(config, inputs)

  def write(case: Case) -> None:
    path = value_path(folder, case.name)
    if not os.path.exists(path):
      started = time.monotonic()
      values = case.observe()
      if values.get('robust', np.zeros(1)).all():
        raise RuntimeError(f'{case.name}: all images resist')
      files.write_npz(path, values)
      print(f'{case.name}: {time.monotonic() - started:.1f} s', flush=True)

  write(inputs_case(problem))
  wanted = [c for c in cases(problem) if c.name == c.reference]
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    list(pool.map(write, wanted))
  files.write_npz(os.path.join(folder, 'complete.npz'), {})


def compare(case: Case, read: Callable[[str], Observed]) -> dict[str, Any]:
  """Returns the row of a case.

  Args:
    case: what is computed here.
    read: name of a case -> the CPU's values.
  """
  got = case.observe()
  expected = read(case.reference)
  gaps = {name: distance(got[name], expected[name]) for name in expected}
  limits = {name: case.tolerance(name) for name in gaps}
  agrees = all(gap <= limits[name] for name, gap in gaps.items())
  said = ', '.join(
    f'{name} {gap:.2g} (at most {limits[name]:.2g})'
    for name, gap in gaps.items()
  )
  return {
    'distances': gaps,
    'tolerances': limits,
    'agrees': agrees,
    # As many as break tell most.
    'resist': float(got['robust'].mean()) if 'robust' in got else None,
    'line': f'{"OK" if agrees else "DIFFERS"}: {said}',
  }


def _driver() -> str | None:
  """Returns what nvidia-smi says of the GPUs, or None."""
  try:
    answer = subprocess.run(
      [
        'nvidia-smi',
        '--query-gpu=name,driver_version,memory.total',
        '--format=csv,noheader',
      ],
      capture_output=True,
      text=True,
      timeout=20,
      check=True,
    )
  except (OSError, subprocess.SubprocessError):
    return None
  return answer.stdout.strip()


def describe() -> dict[str, Any]:
  """Returns the row of the machine."""
  device = jax.local_devices()[0]
  driver, flags = _driver(), os.environ.get('XLA_FLAGS', '')
  return {
    'environment': provenance.environment(),
    'platform_version': device.client.platform_version,
    'driver': driver,
    'memory': (device.memory_stats() or {}).get('bytes_limit'),
    'xla_flags': flags,
    'line': f'{jax.device_count()} x {device.device_kind}, {driver}, jax '
    f'{jax.__version__}; XLA_FLAGS: {flags or "none"}',
  }


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """Returns the lines of a table of the rows that `run` measures."""
  cells = [
    (
      row['item'],
      ', '.join(
        f'{name} {gap:.2g} (≤ {row["tolerances"][name]:.2g})'
        for name, gap in row['distances'].items()
      ),
      'OK' if row['agrees'] else 'DIFFERS',
    )
    for row in rows
    if 'distances' in row
  ]
  headers = 'what', "distance from the CPU's values, relative", ''
  return [documents.markdown_table(headers, cells)]


def run(
  part: accelerator_budget.Slice,
  config: ml_collections.ConfigDict,
  *,
  config_path: str,
  workdir: str,
  workers: int,
) -> None:
  """Compares an accelerator with the CPU.

  Args:
    part: takes the rows.
    config: its network and stages are tried.
    config_path: where it comes from.
    workdir: takes the CPU's values.
    workers: threads that compile at the same time.
  """
  reference = Reference(
    os.path.join(workdir, 'reference'), config_path, workers
  )
  try:
    part.spend([accelerator_budget.Item('machine', 1, describe)])
    problem = Problem(config, lambda: reference.read('inputs'))
    items = [
      accelerator_budget.Item(
        case.name,
        case.estimate_seconds,
        functools.partial(compare, case, reference.read),
      )
      for case in cases(problem)
    ]
    part.spend(items, workers=workers)
  finally:
    reference.close()
