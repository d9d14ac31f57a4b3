"""Versions, code and machine, on which a result depends."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

PACKAGES = (
  'dhat_jax',
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'numpy',
)
# Flags of the CPU, the widest vectors first.
_VECTORS = {'avx512f': 'AVX-512', 'avx2': 'AVX2'}
# Of the comparisons with PyTorch: they count once they are imported.
_PEERS = ('torch', 'pyautoattack')


def version(package: str) -> str | None:
  """Returns an installed package's version, or None."""
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def versions() -> dict[str, str]:
  """Returns the versions of Python and of the packages that matter."""
  installed = {'python': platform.python_version()}
  for package in PACKAGES:
    installed[package] = version(package) or 'not installed as a package'
  return installed


def utc_now() -> str:
  """Returns the time, '2026-01-31T12:00:00+00:00'."""
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def _git(*arguments: str) -> str | None:
  """Returns the output of git on this code's repository, or None."""
  try:
    process = subprocess.run(
      ['git', '-C', os.path.dirname(__file__), *arguments],
      capture_output=True,
      text=True,
      check=False,
    )
  except OSError:  # no git
    return None
  return process.stdout.strip() if process.returncode == 0 else None


def git_state() -> dict[str, Any]:
  """Returns the commit, and whether tracked files differ from it; or None."""
  changes = _git('status', '--porcelain', '--untracked-files=no')
  return {
    'git_commit': _git('rev-parse', 'HEAD') or 'unknown',
    'git_changed': None if changes is None else bool(changes),
  }


def environment() -> dict[str, Any]:
  """Returns what a repetition of a run needs: versions, commit, devices."""
  import jax  # not at the top: whoever reads documents needs none

  return {
    'versions': versions(),
    **git_state(),
    'processor': processor(),
    'devices': [str(device) for device in jax.devices()],
    'device_kind': jax.devices()[0].device_kind,
    'platform': platform.platform(),
  }


def processor(path: str = '/proc/cpuinfo') -> str:
  """Returns the CPU's name and vector instructions, if the system knows them.

  Virtual machines give one name to CPUs that differ in these, and so in speed
  and in rounding.

  Args:
    path: the system's description, as of Linux on x86.

  Returns:
    For example 'AMD EPYC, AVX-512'.
  """
  try:
    with open(path, encoding='utf-8', errors='replace') as file:
      lines = file.readlines()
  except OSError:
    lines = []
  found: dict[str, str] = {}
  for key, _, value in (line.partition(':') for line in lines):
    found.setdefault(key.strip(), value.strip())  # of the first core
  name = found.get('model name') or platform.processor() or platform.machine()
  flags = found.get('flags', '').split()
  vectors = [label for flag, label in _VECTORS.items() if flag in flags]
  return ', '.join([name, *vectors[:1]])


def cores() -> int:
  """Returns how many cores this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def machine() -> dict[str, Any]:
  """Returns what timings depend on: devices, cores, versions, XLA's flags.

  If PyTorch is imported, its version and threads are added.
  """
  import jax

  description = {
    'device': jax.devices()[0].device_kind,
    'devices': jax.device_count(),
    'processor': processor(),
    'cores': cores(),
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
    'versions': versions(),
  }
  description['versions'] |= {
    package: importlib.metadata.version(package)
    for package in _PEERS
    if package in sys.modules
  }
  if 'torch' in sys.modules:
    description['torch_threads'] = sys.modules['torch'].get_num_threads()
  return description


def describe(
  machine: Mapping[str, Any], packages: Sequence[str] = ('jax',)
) -> str:
  """Returns '2 cores of AMD EPYC, jax 0.10.2' of a `machine()`.

  Args:
    machine: of a result.
    packages: packages whose versions are listed, if known.
  """
  device = machine['device']
  if device == 'cpu':
    device = f'{machine["cores"]} cores of {machine["processor"]}'
  versions = (
    f'{package} {machine["versions"][package]}'
    for package in packages
    if package in machine['versions']
  )
  return ', '.join([device, *versions])
