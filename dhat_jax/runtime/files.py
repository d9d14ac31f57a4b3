"""Files: the one atomic writer, JSON, and full disks reported in one line."""

import contextlib
import errno
import json
import os
import secrets
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


def read_json(path: str) -> Any:
  """Reads a JSON file.

  Raises:
    ValueError: it is damaged; the error names the file.
  """
  with open(path) as file:
    try:
      return json.load(file)
    except ValueError as error:
      raise ValueError(f'{path}: not readable as JSON: {error}') from error


def read_json_lines(
  path: str, on_damage: Callable[[int], None] | None = None
) -> list[dict]:
  """Reads JSON lines; a last line cut off by a kill is left out.

  Args:
    path: the file.
    on_damage: called with the number, from 1, of every other line that is not
      readable, which is skipped; by default the first one ends the records.
  """
  with open(path) as file:
    lines = file.readlines()
  records = []
  for number, line in enumerate(lines, 1):
    try:
      records.append(json.loads(line))
    except ValueError:
      if on_damage is None:
        break
      if number < len(lines):
        on_damage(number)
  return records


def user_path(path: str | None) -> str | None:
  """Returns a path that a user gave, `~` expanded; '' and None stay."""
  return os.path.expanduser(path) if path else path
