"""Files: atomic writes, guarded reads, JSON; errors in one line."""

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
  """A user's file with wrong content, as one line that names it."""


class WriteError(OSError):
  """A file that could not be written."""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
  """Yields an error and its causes."""
  seen = set()
  pending = [error]
  while pending:
    cause = pending.pop(0)
    if cause is not None and id(cause) not in seen:
      seen.add(id(cause))
      yield cause
      pending += [cause.__cause__, cause.__context__]


def refusal(error: BaseException) -> str | None:
  """Returns the system's reason, as 'no space left on device', or None.

  Libraries that write in the background wrap the system's error, or keep only
  its text.
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
    path: the file that is written inside the context.
    intact: the data that is not lost.

  Raises:
    WriteError: names the path, the reason, the intact data and how to resume.
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
  """Opens a file that replaces `path` once it is complete.

  There is never half a file. It is written beside `path`, flushed to the disk,
  and then renamed. Several processes may do so at once; the last one wins. If
  the context fails, `path` is unchanged.

  Args:
    path: the file; its folder is created if necessary.
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
  """Writes a JSON file atomically; creates its folder if necessary."""
  with replacing(path, 'w') as file:
    json.dump(value, file, indent=2)
    file.write('\n')


def write_npz(path: str, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes an npz file atomically; creates its folder if necessary."""
  with replacing(path, 'wb') as file:
    np.savez(file, **arrays)


def reason(error: BaseException) -> str:
  """Returns an error of a library as one short line: 'OSError: ...'."""
  text = textwrap.shorten(str(error), _MAX_REASON, placeholder=' ...')
  if any(name in text for name in _UNSAFE):
    text = 'it holds pickled objects, which can run code and are not loaded'
  return f'{type(error).__name__}: {text}' if text else type(error).__name__


def what_it_is(path: str) -> str | None:
  """Says what a file is instead of data, if its first bytes tell."""
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
  """Turns any error of a library into one line that names the file.

  TFDS, PIL, NumPy, SciPy and PyTorch raise many types of errors, and most do
  not name the file.

  Args:
    path: the file or the folder.
    what: what the file should be: 'image'.

  Raises:
    DataError: a `DataError` from inside, unchanged, or one with the error.
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
  """Reads JSON lines; skips a last line that a kill cut off.

  Args:
    path: the file.
    on_damage: called with the number, from 1, of every other unreadable line,
      which is skipped. By default the first one ends the records.

  Raises:
    ValueError: it is not text; the error names the file.
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
  """Returns a user's path with `~` expanded; '' and None are unchanged."""
  return os.path.expanduser(path) if path else path


def kind(path: str) -> str | None:
  """Returns 'file' or 'folder', or None if nothing exists.

  Raises:
    DataError: a folder on its path may not be entered.
  """
  with reading(path, 'path'):
    try:
      return 'folder' if stat.S_ISDIR(os.stat(path).st_mode) else 'file'
    except (FileNotFoundError, NotADirectoryError):
      return None


def check_folder(where: str, path: str, *, new: bool = False) -> None:
  """Checks that a user's folder can be listed.

  Args:
    where: where it is given: 'config.dataset.data_dir'.
    path: the folder.
    new: whether it may be missing.

  Raises:
    FileNotFoundError: it is missing.
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
