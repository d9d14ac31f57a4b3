"""Reads PyTorch files without running code, and diagnoses broken ones.

Tensors, plain containers and a few harmless classes are unpickled
(`torch.load(..., weights_only=True)`); a file with any other class is refused.
"""

import argparse
import collections
import datetime
import logging
import pathlib
import re
import types
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dhat_jax.pytorch import jax_module
from dhat_jax.runtime.files import DataError, reading, reason, what_it_is

_logger = logging.getLogger(__name__)

_ADVICE = (
  'save the weights alone where the file was made: '
  'torch.save(model.state_dict(), PATH)'
)
_AGAIN = 'download or copy it again'
# What keeps state dicts, the likeliest first.
_ENTRIES = (
  'state_dict',
  'model',
  'model_state_dict',
  'net',
  'network',
  'params',
  'weights',
  'ema',
  'model_ema',
  'ema_state_dict',
  'state_dict_ema',
)
_MAX_DEPTH = 3
_MAX_NAMED = 5
_UNKNOWN_CLASS = re.compile(
  r"GLOBAL (\S+) was not an allowed global|but got <class '([\w.]+)'>"
)
# Those of fixed size: NumPy trusts what a file says of the others.
_DTYPES = '?bhilqBHILQefdFDO'


def _plain_dict(*_: Any) -> dict:
  """Replaces a defaultdict, which PyTorch does not unpickle."""
  return {}


def _harmless() -> list[Any]:
  """Returns the classes that may be unpickled, some under several names."""
  multiarray = np._core.multiarray
  functions = [
    (getattr(multiarray, name), f'numpy.{core}.multiarray.{name}')
    for name in ('scalar', '_reconstruct')
    for core in ('core', '_core')
  ]
  # What a path of another system is, without its file system.
  paths = [
    (getattr(pathlib, pure), f'{module}.{name}')
    for module in ('pathlib', 'pathlib._local')
    for pure, name in (
      ('PurePosixPath', 'PurePosixPath'),
      ('PurePosixPath', 'PosixPath'),
      ('PureWindowsPath', 'PureWindowsPath'),
      ('PureWindowsPath', 'WindowsPath'),
    )
  ]
  return [
    argparse.Namespace,
    types.SimpleNamespace,
    collections.OrderedDict,
    (_plain_dict, 'collections.defaultdict'),
    list,
    dict,
    datetime.date,
    datetime.time,
    datetime.datetime,
    datetime.timedelta,
    datetime.timezone,
    np.dtype,
    np.ndarray,
    *{type(np.dtype(code)) for code in _DTYPES},
    *functions,
    *paths,
  ]


def load(path: str) -> Any:
  """Loads a PyTorch file onto the CPU.

  Raises:
    ValueError: it is not such a file, or has classes that are not known to be
      harmless. The line names the file and says what to do.
    ImportError: PyTorch is not installed.
  """
  torch = jax_module.import_torch()
  with reading(path, 'file of PyTorch'):
    _check_sums(path)
    try:
      with (
        warnings.catch_warnings(action='ignore'),
        torch.serialization.safe_globals(_harmless()),
      ):
        return torch.load(path, map_location='cpu', weights_only=True)
    except OSError:
      raise
    except Exception as error:
      raise DataError(
        f'{path}: is not a readable file of PyTorch ({_diagnosis(path, error)})'
      ) from error


def _check_sums(path: str) -> None:
  """Raises DataError for a zip file whose checksums do not match.

  PyTorch writes them but does not check: a flipped bit would become a weight.
  """
  if zipfile.is_zipfile(path):
    with zipfile.ZipFile(path) as archive:
      # All are zero where `torch.serialization.set_crc32_options(False)` was.
      written = any(member.CRC for member in archive.infolist())
      damaged = archive.testzip() if written else None
    if damaged is not None:
      raise DataError(
        f'{path}: is damaged, the checksum of {damaged!r} does not fit; '
        f'{_AGAIN}'
      )


def _diagnosis(path: str, error: Exception) -> str:
  """Says what is wrong with a file that PyTorch does not load, and what to do.

  PyTorch's own message advises to load it unsafely.
  """
  known = what_it_is(path)
  if known is not None:
    return known
  with open(path, 'rb') as file:
    is_zip = file.read(2) == b'PK'
  if is_zip and not zipfile.is_zipfile(path):
    return f'it is cut off or damaged; {_AGAIN}'
  if is_zip:
    with zipfile.ZipFile(path) as archive:
      members = archive.namelist()
    ends = {member.rpartition('/')[2] for member in members}
    if 'constants.pkl' in ends:
      return f'it is a TorchScript archive; {_ADVICE}'
    if not {'data.pkl', 'version'} <= ends:
      return (
        f'it is a zip file that torch.save did not write, with '
        f'{members[:_MAX_NAMED]}'
      )
  classes = _unknown_classes(path, error)
  if classes:
    return (
      f'it holds objects of {_some(classes)}, a pickled network or settings, '
      f'which could run code and are not loaded; {_ADVICE}'
    )
  if 'weights_only' in str(error) or not str(error):
    return f'torch.save did not write it, or it is cut off or damaged; {_AGAIN}'
  return f'{reason(error)}; {_AGAIN}'


def _unknown_classes(path: str, error: Exception) -> list[str]:
  """Returns the classes that keep a file from being loaded."""
  torch = jax_module.import_torch()
  try:
    with torch.serialization.safe_globals(_harmless()):
      names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
  except Exception:  # in the format of before there were zip files
    names = []
  return names or [
    one or other for one, other in _UNKNOWN_CLASS.findall(str(error))
  ]


def _some(names: list[str]) -> str:
  listed = ', '.join(str(name) for name in names[:_MAX_NAMED])
  more = len(names) - _MAX_NAMED
  return f'{listed} and {more} more' if more > 0 else listed


def find_state_dict(
  path: str, loaded: Any, entry: str | None = None
) -> dict[str, Any]:
  """Finds the state dict in the content of a file, and logs which.

  Args:
    path: of the file, for messages.
    loaded: its content.
    entry: its place, as 'ema' or 'models.ema'; default: the top, else the
      likeliest entry by name, else the only one.

  Raises:
    ValueError: there is none, or several without a telling name.
  """
  if _is_state_dict(loaded) and entry is None:
    return dict(loaded)
  candidates = dict(_candidates(loaded))
  names = list(candidates)
  if entry is not None:
    if entry not in candidates:
      raise DataError(
        f'{path}: got entry {entry!r}, choices are {tuple(names)}'
      )
    chosen = entry
  elif names:
    ranked = sorted(names, key=_rank)
    if len(names) > 1 and _rank(ranked[0]) == _rank(ranked[1]):
      raise DataError(
        f'{path}: holds several state dicts, {_some(ranked)}; choose one by '
        '--entry'
      )
    chosen = ranked[0]
  else:
    return _mixed(path, loaded)
  others = [name for name in names if name != chosen]
  _logger.info(
    '%s: took the entry %r%s',
    path,
    chosen,
    f'; --entry takes another: {_some(others)}' if others else '',
  )
  return dict(candidates[chosen])


def _rank(name: str) -> int:
  """Returns the place of an entry in the order of likeliness."""
  places = [
    _ENTRIES.index(part) if part in _ENTRIES else len(_ENTRIES)
    for part in name.split('.')
  ]
  return max(places)


def _candidates(value: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
  """Yields (dotted place, state dict) of all state dicts in a value."""
  if not isinstance(value, Mapping) or prefix.count('.') >= _MAX_DEPTH:
    return
  for key, item in value.items():
    if not isinstance(key, str):  # as the state of an optimiser
      continue
    if _is_state_dict(item):
      yield f'{prefix}{key}', item
    else:
      yield from _candidates(item, f'{prefix}{key}.')


def _is_array(value: Any) -> bool:
  return isinstance(value, np.ndarray) or hasattr(value, 'detach')


def _is_state_dict(value: Any) -> bool:
  return (
    isinstance(value, Mapping)
    and len(value) > 0
    and all(isinstance(key, str) for key in value)
    and all(_is_array(item) for item in value.values())
  )


def _mixed(path: str, loaded: Any) -> dict[str, Any]:
  """Returns the arrays among other entries, if there are any."""
  if isinstance(loaded, Mapping):
    arrays = {
      key: value
      for key, value in loaded.items()
      if isinstance(key, str) and _is_array(value)
    }
    others = [str(key) for key in loaded if key not in arrays]
    if arrays:
      _logger.info('%s: left out what is no array: %s', path, _some(others))
      return arrays
    there = f'a dict of {_some(others)}' if others else 'an empty dict'
  else:
    there = f'a {type(loaded).__name__}'
  raise DataError(
    f'{path}: holds no state dict (no {{name: tensor}}), but {there}; {_ADVICE}'
  )
