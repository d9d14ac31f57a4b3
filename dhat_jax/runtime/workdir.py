"""A run's folder: which config it belongs to, and what the run was made on.

A run killed at any moment leaves a folder that it can resume from. Configs are
plain nested dictionaries of JSON values here.
"""

import datetime
import fnmatch
import os
from collections.abc import Mapping
from typing import Any

from dhat_jax.runtime import files, processes, provenance

# What may be in a folder that belongs to no run yet: a run killed before it
# wrote its config leaves environment.json alone, and a report may have been
# made of an empty folder.
_NO_RUN = ('environment.json', 'report.html', 'report')

# Where data is found on a machine says nothing about the run, and a run that
# made a NaN is looked into from its last checkpoint.
_MAY_DIFFER = ('dataset.manual_dir', 'dataset.cache_dir', 'debug_nans')

_MISSING = '(no such key)'


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
  """Returns {'dotted.key': value} of nested dictionaries."""
  items = {}

  def visit(prefix: str, value: Any) -> None:
    if isinstance(value, Mapping):
      for key, item in value.items():
        visit(f'{prefix}.{key}' if prefix else key, item)
    else:
      items[prefix] = value

  visit('', values)
  return items


def check(
  path: str,
  values: Mapping[str, Any],
  *,
  may_differ: tuple[str, ...] = (),
  defaults: Mapping[str, Any] | None = None,
) -> None:
  """Checks that a folder can hold a run of a config; writes nothing.

  Args:
    path: the folder; it need not exist.
    values: the run's config, as JSON would give it back.
    may_differ: prefixes of dotted keys that need not agree with the folder's.
    defaults: {dotted key, or a pattern of it such as '*.momentum': value} of
      keys that a config may lack: a folder from before there was such a key
      holds a run with this value, and the other way round.

  Raises:
    ValueError: the folder belongs to another config (the differing keys are
      listed), or holds files but no config.
  """
  if not os.path.exists(path):
    return
  config_path = os.path.join(path, 'config.json')
  if os.path.exists(config_path):
    stored = files.read_json(config_path)
    if not isinstance(stored, dict):
      raise ValueError(
        f'{config_path}: not readable as JSON: got {stored!r:.50}, expected an '
        'object'
      )
    _check_same_config(
      path,
      flat(stored),
      flat(values),
      may_differ=may_differ + _MAY_DIFFER,
      defaults=flat(defaults or {}),
    )
    return
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


def _check_same_config(
  path: str,
  stored: Mapping[str, Any],
  current: Mapping[str, Any],
  *,
  may_differ: tuple[str, ...],
  defaults: Mapping[str, Any],
) -> None:
  """Raises ValueError if two flat configs differ, listing the keys."""
  differing = []
  for key in sorted(stored.keys() | current.keys()):
    default = _default(key, defaults)
    here, there = current.get(key, default), stored.get(key, default)
    if here != there and not key.startswith(may_differ):
      differing.append(f'  {key}: workdir has {there!r}, this run has {here!r}')
  if differing:
    raise ValueError(
      f'workdir {path}: belongs to another config; choose another --workdir, '
      'or give the same config to resume. Differing keys:\n'
      + '\n'.join(differing)
    )


def _default(key: str, defaults: Mapping[str, Any]) -> Any:
  """Returns the value of a key that a config lacks."""
  for pattern, value in defaults.items():
    if fnmatch.fnmatchcase(key, pattern):
      return value
  return _MISSING


def prepare(
  path: str,
  values: Mapping[str, Any],
  *,
  may_differ: tuple[str, ...] = (),
  defaults: Mapping[str, Any] | None = None,
) -> None:
  """Takes a folder for a config, after `check`: writes what the run is.

  Args and errors as in `check`; the folder is created if need be.
  """
  if processes.is_first():
    check(path, values, may_differ=may_differ, defaults=defaults)
    config_path = os.path.join(path, 'config.json')
    resumed = os.path.exists(config_path)
    _record_environment(path, resumed=resumed)
    if not resumed:
      files.write_json(config_path, values)
  _check_shared(path)


def _record_environment(path: str, *, resumed: bool) -> None:
  """Writes what a run starts on, or adds what it is resumed on, if new."""
  path = os.path.join(path, 'environment.json')
  now = provenance.environment()
  if not resumed:
    files.write_json(path, now)
    return
  try:
    first = files.read_json(path)
    history = [first, *first.setdefault('resumed_on', [])]
  except (OSError, ValueError, AttributeError):
    # Lost or damaged: the run can go on without.
    first, history = {'resumed_on': []}, [{}]
  # The newest that the history knows of, and only what is compared.
  if any(history[-1].get(key) != value for key, value in now.items()):
    first['resumed_on'].append({**now, 'time': _utc_now()})
    files.write_json(path, first)


def _utc_now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def _check_shared(path: str) -> None:
  """Checks that all processes see the folder which the first one wrote."""
  processes.wait_for_all('workdir prepared')
  visible = os.path.exists(os.path.join(path, 'config.json'))
  if not processes.all_agree(visible):
    raise ValueError(
      f'workdir {path}: the processes of this run do not see the same folder; '
      'choose one on a file system that all hosts share'
    )
