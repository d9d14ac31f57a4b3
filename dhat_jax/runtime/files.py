"""Files: one atomic writer, one door for readers, JSON; errors in one line."""

import contextlib
import errno
import json
import os
import secrets
import stat
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import numpy as np

_REFUSALS = {
  number: os.strerror(number).lower()
  for number in (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EFBIG,
    errno.EIO,
  )
}
_MAX_REASON = 300
# Libraries advise to load pickled objects by these, which runs their code.
_UNSAFE = ('allow_pickle', 'weights_only')
_STARTS = {
  b'version https://git-lfs': (
    'it is a git-lfs pointer; get the file itself with: git lfs pull'
  ),
  b'<!doctype html': 'it is a web page; download the file again',
  b'<html': 'it is a web page; download the file again',
}


class DataError(ValueError):
  """A user's file that is not what it should be: one line that names it."""


class WriteError(OSError):
  """A file that the disk did not take."""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
  """Yields an error and those that led to it."""
  seen = set()
  pending = [error]
  while pending:
    cause = pending.pop(0)
    if cause is not None and id(cause) not in seen:
      seen.add(id(cause))
      yield cause
      pending += [cause.__cause__, cause.__context__]


def refusal(error: BaseException) -> str | None:
  """Returns the system's reason, 'no space left on device', or None.

  Libraries that write in the background wrap the system's error, or keep no
  more of it than its text.
  """
  for cause in _causes(error):
    if isinstance(cause, OSError) and cause.errno in _REFUSALS:
      return _REFUSALS[cause.errno]
    if not isinstance(cause, OSError):
      text = str(cause).lower()
      for reason in _REFUSALS.values():
        if reason in text:
          return reason
  return None


@contextlib.contextmanager
def writing(path: str, intact: str = 'what was saved before') -> Iterator[None]:
  """Turns a refusal of the disk into one line; other errors pass.

  Args:
    path: what is written inside the context.
    intact: what is not lost.

  Raises:
    WriteError: names the path, the reason, what is intact and how to go on.
  """
  try:
    yield
  except WriteError:
    raise
  except Exception as error:
    reason = refusal(error)
    if reason is None:
      raise
    raise WriteError(
      f'{path}: not written: {reason}; {intact} is intact; once the disk takes '
      'files again, resume with the same command'
    ) from error


@contextlib.contextmanager
def replacing(path: str, mode: str) -> Iterator[IO]:
  """Opens a file that takes the place of `path` once it is whole.

  There is never half a file: it is written beside `path`, flushed to the disk,
  then renamed. Several processes may do so at once, the last one wins. If the
  context fails, `path` stays as it was.

  Args:
    path: the file; its folder is created if need be.
    mode: 'w' or 'wb'.

  Raises:
    WriteError: the disk refuses the file.
  """
  folder, name = os.path.split(os.path.abspath(path))
  temporary = os.path.join(folder, f'.{name}.{secrets.token_hex(4)}.tmp')
  with writing(path):
    os.makedirs(folder, exist_ok=True)
    try:
      with open(temporary, mode) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
      os.replace(temporary, path)
    except BaseException:
      with contextlib.suppress(OSError):
        os.remove(temporary)
      raise


def write_json(path: str, value: Any) -> None:
  """Writes a JSON file atomically; its folder is created if need be."""
  with replacing(path, 'w') as file:
    json.dump(value, file, indent=2)
    file.write('\n')


def write_npz(path: str, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes an npz file atomically; its folder is created if need be."""
  with replacing(path, 'wb') as file:
    np.savez(file, **arrays)


def reason(error: BaseException) -> str:
  """Returns what a library raised as one line, shortened: 'OSError: ...'."""
  text = textwrap.shorten(str(error), _MAX_REASON, placeholder=' ...')
  if any(name in text for name in _UNSAFE):
    text = 'it holds pickled objects, which can run code and are not loaded'
  return f'{type(error).__name__}: {text}' if text else type(error).__name__


def what_it_is(path: str) -> str | None:
  """Says what a file is instead of data, where its first bytes tell."""
  if not os.path.isfile(path):  # a pipe would have to be waited for
    return None
  try:
    with open(path, 'rb') as file:
      start = file.read(64).lstrip().lower()
  except OSError:
    return None
  if not start:
    return 'it is empty'
  for known, sentence in _STARTS.items():
    if start.startswith(known):
      return sentence
  return None


@contextlib.contextmanager
def reading(path: str, what: str) -> Iterator[None]:
  """Turns whatever a library raises into one line that names the file.

  TFDS, PIL, NumPy, SciPy and PyTorch raise a great many types, most of which do
  not say which file was read.

  Args:
    path: the file or the folder.
    what: what it should be: 'image'.

  Raises:
    DataError: a `DataError` from inside as it is, else made of the error.
  """
  try:
    yield
  except DataError:
    raise
  except Exception as error:
    raise DataError(
      f'{path}: is not a readable {what} ({what_it_is(path) or reason(error)})'
    ) from error


def read_json(path: str) -> Any:
  """Reads a JSON file.

  Raises:
    ValueError: it is damaged; the error names the file.
    OSError: there is none, or it may not be read.
  """
  with open(path) as file, reading(path, 'JSON file'):
    return json.load(file)


def read_json_lines(
  path: str, on_damage: Callable[[int], None] | None = None
) -> list[dict]:
  """Reads JSON lines; a last line cut off by a kill is left out.

  Args:
    path: the file.
    on_damage: called with the number, from 1, of every other line that is not
      readable, which is skipped; by default the first one ends the records.

  Raises:
    ValueError: it is no text; the error names the file.
    OSError: there is none, or it may not be read.
  """
  with open(path) as file, reading(path, 'text file'):
    lines = file.readlines()
  records = []
  for number, line in enumerate(lines, 1):
    try:
      records.append(json.loads(line))
    except (ValueError, RecursionError):
      if on_damage is None:
        break
      if number < len(lines):
        on_damage(number)
  return records


def user_path(path: str | None) -> str | None:
  """Returns a path that a user gave, `~` expanded; '' and None stay."""
  return os.path.expanduser(path) if path else path


def kind(path: str) -> str | None:
  """Returns 'file' or 'folder'; None: there is nothing.

  Raises:
    DataError: a folder on the way to it may not be entered.
  """
  with reading(path, 'path'):
    try:
      return 'folder' if stat.S_ISDIR(os.stat(path).st_mode) else 'file'
    except (FileNotFoundError, NotADirectoryError):
      return None


def check_folder(where: str, path: str, *, new: bool = False) -> None:
  """Checks that a folder which a user gave can be listed.

  Args:
    where: who gave it: 'config.dataset.data_dir'.
    path: the folder.
    new: whether it need not be there.

  Raises:
    FileNotFoundError: it is not there.
    DataError: it is a file, or may not be read.
  """
  path_kind = kind(path)
  if path_kind == 'file':
    raise DataError(f'{where}: got {path}, which is a file, expected a folder')
  if path_kind is not None:
    with reading(path, 'folder'):
      os.scandir(path).close()
  elif not new:
    raise FileNotFoundError(f'{where}: {path} is not a folder')
