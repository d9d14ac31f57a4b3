"""A run's folder: which config it belongs to, and what made it.

Everything here is written atomically (a temporary file, then a rename), so
that a run killed at any moment leaves a folder that it can resume from.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from typing import Any

import jax
import ml_collections

from dhat_jax.runtime import devices, files

PACKAGES = (
  'dhat_jax',
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'numpy',
)

write_json = files.write_json
write_npz = files.write_npz


def read_json(path: str) -> Any:
  """Reads a JSON file; an unreadable one is named in the error."""
  with open(path) as file:
    try:
      return json.load(file)
    except ValueError as error:
      raise ValueError(f'{path}: not readable as JSON: {error}') from error


def as_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns a config as plain JSON values (tuples become lists)."""
  return json.loads(config.to_json())


def flat_config(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns {'dotted.key': value} with values as JSON gives them back."""
  flat = {}

  def visit(prefix, value):
    if isinstance(value, dict):
      for key, item in value.items():
        visit(f'{prefix}.{key}' if prefix else key, item)
    else:
      flat[prefix] = value

  visit('', as_json(config))
  return flat


# What may be in a folder that belongs to no run yet.
_NO_RUN = ('environment.json', 'report.html', 'report')

# Where data is found on a machine says nothing about the run, and a run that
# made a NaN is looked into from its last checkpoint.
_MAY_DIFFER = ('dataset.manual_dir', 'dataset.cache_dir', 'debug_nans')


def check(
  path: str,
  config: ml_collections.ConfigDict,
  *,
  may_differ: tuple[str, ...] = (),
) -> None:
  """Checks that a folder can hold a run of a config; writes nothing.

  Args:
    path: the folder; it need not exist.
    config: the run's config.
    may_differ: prefixes of dotted keys that need not agree with the folder's.

  Raises:
    ValueError: the folder belongs to another config (the differing keys are
      listed), or holds files but no config.
  """
  if not os.path.exists(path):
    return
  config_path = os.path.join(path, 'config.json')
  if os.path.exists(config_path):
    stored = read_json(config_path)
    _check_same_config(path, stored, config, may_differ + _MAY_DIFFER)
    return
  # A run killed before it wrote its config leaves environment.json alone; a
  # report may have been made of an empty folder.
  foreign = sorted(
    name
    for name in os.listdir(path)
    if not name.startswith('.') and name not in _NO_RUN
  )
  if foreign:
    raise ValueError(
      f'workdir {path}: holds {foreign[:5]} but no config.json, so it is no '
      'run of this program; choose an empty or a new folder'
    )


def prepare(
  path: str,
  config: ml_collections.ConfigDict,
  *,
  may_differ: tuple[str, ...] = (),
) -> None:
  """Takes a folder for a config, after `check`: writes what the run is.

  Args and errors as in `check`; the folder is created if need be.
  """
  if devices.is_first():
    check(path, config, may_differ=may_differ)
    config_path = os.path.join(path, 'config.json')
    begun = os.path.exists(config_path)
    with files.writing(path):
      os.makedirs(path, exist_ok=True)
    record_environment(path, begun=begun)
    if not begun:
      write_json(config_path, as_json(config))
  _check_shared(path)


def record_environment(path: str, *, begun: bool) -> None:
  """Writes what a run begins on, or adds what it goes on on, if that differs.

  Args:
    path: the workdir.
    begun: whether the run has begun already.
  """
  path = os.path.join(path, 'environment.json')
  now = environment()
  if not begun:
    write_json(path, now)
    return
  try:
    first = read_json(path)
    history = [first, *first.setdefault('resumed_on', [])]
  except (OSError, ValueError, AttributeError):
    # Lost or damaged: the run can go on without.
    first, history = {'resumed_on': []}, [{}]
  # The newest that the history knows of, and only what is compared.
  if any(history[-1].get(key) != value for key, value in now.items()):
    first['resumed_on'].append({**now, 'time': _utc_now()})
    write_json(path, first)


def _check_shared(path: str) -> None:
  """Checks that all processes see the folder which the first one made."""
  devices.wait_for_all('workdir prepared')
  seen = os.path.exists(os.path.join(path, 'config.json'))
  if not devices.all_agree(seen):
    raise ValueError(
      f'workdir {path}: the processes of this run do not see the same folder; '
      'choose one on a file system that all hosts share'
    )


def _check_same_config(path, stored, config, may_differ):
  if not isinstance(stored, dict):
    raise ValueError(
      f'{path}/config.json: not readable as JSON: got {stored!r:.50}, expected '
      'an object'
    )
  stored = flat_config(ml_collections.ConfigDict(stored))
  current = flat_config(config)
  missing = '(no such key)'
  differing = [
    f'  {key}: workdir has {stored.get(key, missing)!r}, '
    f'this run has {current.get(key, missing)!r}'
    for key in sorted(stored.keys() | current.keys())
    if stored.get(key, missing) != current.get(key, missing)
    and not key.startswith(may_differ)
  ]
  if differing:
    raise ValueError(
      f'workdir {path}: belongs to another config; choose another --workdir, '
      'or give the same config to resume. Differing keys:\n'
      + '\n'.join(differing)
    )


def versions() -> dict[str, str]:
  """Returns the versions of Python and of the packages that matter."""
  found = {'python': platform.python_version()}
  for package in PACKAGES:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      found[package] = 'not installed as a package'
  return found


def _utc_now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def _git(*arguments: str) -> str | None:
  """Returns what git says of this code's repository, None without one."""
  try:
    done = subprocess.run(
      ['git', '-C', os.path.dirname(__file__), *arguments],
      capture_output=True,
      text=True,
      check=False,
    )
  except OSError:  # no git
    return None
  return done.stdout.strip() if done.returncode == 0 else None


def environment() -> dict[str, Any]:
  """Returns versions, git commit and devices.

  `git_changed` tells whether tracked files differ from the commit; None where
  that is not known.
  """
  changes = _git('status', '--porcelain', '--untracked-files=no')
  return {
    'versions': versions(),
    'git_commit': _git('rev-parse', 'HEAD') or 'unknown',
    'git_changed': None if changes is None else bool(changes),
    'devices': [str(device) for device in jax.devices()],
    'device_kind': jax.devices()[0].device_kind,
    'platform': platform.platform(),
  }
