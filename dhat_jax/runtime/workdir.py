"""A run's folder: its config, its data and its environment.

A run that is killed at any moment leaves a folder from which it can resume.
Configs are plain nested dictionaries of JSON values here. The data is
identified by its content: `data.json` holds a digest of each split. So changed
data is refused, and a copy elsewhere may be used.
"""

import contextlib
import fnmatch
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dhat_jax.runtime import files, lock, processes, provenance

# What may be in a folder that belongs to no run yet: a run killed before it
# wrote its config leaves the first two alone, and a report may have been
# made of an empty folder.
_NO_RUN = ('environment.json', 'data.json', 'report.html', 'report')

# Where data is found on a machine says nothing about the run, and a run that
# made a NaN is looked into from its last checkpoint.
_MAY_DIFFER = ('dataset.manual_dir', 'dataset.cache_dir', 'debug_nans')
# Where the folder knows its data by their content.
_MAY_DIFFER_BY_CONTENT = ('dataset.data_dir', 'dataset.extra.files')

_MISSING = '(no such key)'

_logger = logging.getLogger(__name__)


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
    may_differ: prefixes of dotted keys that may differ from the folder's.
    defaults: {dotted key, or a pattern such as '*.momentum': value} of keys
      that a config may lack. A folder that is older than a key has a run with
      this value, and vice versa.

  Raises:
    ValueError: the folder belongs to another config, whose differing keys are
      listed; or it holds files but no config; or it is a file.
  """
  if not os.path.exists(path):
    return
  if not os.path.isdir(path):
    raise ValueError(f'workdir: got {path}, which is a file, expected a folder')
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
      may_differ=may_differ
      + _MAY_DIFFER
      + (_MAY_DIFFER_BY_CONTENT if digests(path) else ()),
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


def digests(path: str) -> dict[str, str]:
  """Returns {split: digest} of the data of a folder's run, or {}."""
  try:
    stored = files.read_json(os.path.join(path, 'data.json'))
    return dict(stored['digests'])
  except FileNotFoundError:
    return {}
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f'{path}/data.json: not readable ({error}); remove it, and the data of '
      'the next run is taken for the right one'
    ) from error


def check_data(
  path: str, data: Mapping[str, str], splits: Sequence[str] | None = None
) -> None:
  """Checks that the data is that of a folder's run; writes nothing.

  Args:
    path: the folder; without digests it accepts any data.
    data: {split: digest}.
    splits: the splits to check; default: all, and neither may have another one.

  Raises:
    ValueError: the data changed; names the split.
  """
  expected = digests(path)
  if not expected or not os.path.exists(os.path.join(path, 'config.json')):
    return
  if splits is None:
    names = [*expected, *(split for split in data if split not in expected)]
  else:
    names = [split for split in splits if split in expected]
  for split in names:
    now, before = data.get(split), expected.get(split)
    if now != before:
      raise ValueError(
        f'workdir {path}: the data changed: the digest of its {split!r} is '
        f'{now}, expected {before}; give the data that the run began with, or '
        'choose another --workdir'
      )


def data_moved(path: str, values: Mapping[str, Any]) -> bool:
  """Returns whether a config has another data folder than a folder's run."""
  stored = flat(files.read_json(os.path.join(path, 'config.json')))
  current = flat(values)
  # An older config lacks keys; nothing else is an empty path.
  return any(
    (stored.get(key) or None) != (current.get(key) or None)
    for key in _MAY_DIFFER_BY_CONTENT
  )


@contextlib.contextmanager
def exclusive(path: str) -> Iterator[None]:
  """Uses a folder exclusively; the first of several processes holds its lock.

  Args and errors as of `lock.held`.
  """
  with contextlib.ExitStack() as stack:
    error = None
    if processes.is_first():
      try:
        stack.enter_context(lock.held(path))
      except (lock.InUseError, OSError) as found:
        error = found
    if not processes.all_agree(error is None):
      raise error or lock.InUseError(
        f'workdir {path}: in use, as the first process says'
      )
    yield


def prepare(
  path: str,
  values: Mapping[str, Any],
  *,
  data: Mapping[str, str] | None = None,
  splits: Sequence[str] | None = None,
  may_differ: tuple[str, ...] = (),
  defaults: Mapping[str, Any] | None = None,
) -> None:
  """Prepares a folder for a config, after `check`: describes the run in it.

  Args:
    path: the folder; it is created if necessary.
    values: as in `check`.
    data: {split: digest} of the run's data, as in `check_data`; None: unknown.
    splits: the splits that must agree; default: all.
    may_differ: as in `check`.
    defaults: as in `check`.

  Raises:
    ValueError: as `check` and `check_data` do.
  """
  if processes.is_first():
    check(path, values, may_differ=may_differ, defaults=defaults)
    check_data(path, data or {}, splits if data else ())
    config_path = os.path.join(path, 'config.json')
    resumed = os.path.exists(config_path)
    _record_environment(path, resumed=resumed)
    if data:
      _record_data(path, data, resumed=resumed)
    if not resumed:
      files.write_json(config_path, values)
  _check_shared(path)
  _check_same_data(path, data or {}, splits if data else ())


def _record_data(path: str, data: Mapping[str, str], *, resumed: bool) -> None:
  """Writes the digests of a run's data, unless they exist."""
  if resumed and digests(path):
    return
  if os.path.exists(os.path.join(path, 'checkpoints')):
    _logger.info(
      'workdir %s: from before runs kept a digest of their data; that of this '
      "run's data is its digest from now on",
      path,
    )
  files.write_json(os.path.join(path, 'data.json'), {'digests': dict(data)})


def _check_same_data(
  path: str, data: Mapping[str, str], splits: Sequence[str] | None
) -> None:
  """Checks that every process has the data which the first one recorded."""
  error = None
  try:
    check_data(path, data, splits)
  except ValueError as found:
    error = found
  if not processes.all_agree(error is None):
    raise error or ValueError(
      f'workdir {path}: another process of this run has other data'
    )


def _record_environment(path: str, *, resumed: bool) -> None:
  """Writes the environment of a run, or adds a new one at a resume."""
  path = os.path.join(path, 'environment.json')
  now = provenance.environment()
  if not resumed:
    files.write_json(path, now)
    return
  try:
    first = files.read_json(path)
    history = [first, *first.setdefault('resumed_on', [])]
  except (OSError, ValueError, AttributeError):
    # Lost or damaged: the run does not need it.
    first, history = {'resumed_on': []}, [{}]
  # The newest that the history knows of, and only what is compared.
  if any(history[-1].get(key) != value for key, value in now.items()):
    first['resumed_on'].append({**now, 'time': provenance.utc_now()})
    files.write_json(path, first)


def _check_shared(path: str) -> None:
  """Checks that all processes see the folder that the first one wrote."""
  processes.wait_for_all('workdir prepared')
  visible = os.path.exists(os.path.join(path, 'config.json'))
  if not processes.all_agree(visible):
    raise ValueError(
      f'workdir {path}: the processes of this run do not see the same folder; '
      'choose one on a file system that all hosts share'
    )
