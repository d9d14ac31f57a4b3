"""Exclusive use of a folder: one run at a time writes to a workdir.

The kernel holds the lock (flock) and releases it when its owner dies in any
way. The file names the owner. On a shared file system the lock works between
hosts if that file system supports flock (NFS version 4 and Lustre with `-o
flock` do). Without flock nothing is locked, and a warning says so.
"""

import contextlib
import errno
import json
import logging
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from typing import Any

from dhat_jax.runtime import files, provenance

try:
  import fcntl
except ImportError:  # no POSIX
  fcntl = None

NAME = '.lock'
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)

_logger = logging.getLogger(__name__)


class InUseError(ValueError):
  """Another process uses the folder."""


@contextlib.contextmanager
def held(folder: str) -> Iterator[None]:
  """Holds a folder's lock inside the context.

  Args:
    folder: it is created if necessary. If the context fails and leaves a new
      folder empty, it is removed.

  Raises:
    InUseError: another process holds it; names the process and the time.
    files.WriteError: the disk refuses the file.
  """
  fresh = not os.path.exists(folder)
  path = os.path.join(folder, NAME)
  with files.writing(path):
    os.makedirs(folder, exist_ok=True)
    descriptor = _take(path, folder)
  try:
    yield
  finally:
    # Before the lock is given up: who waits for it finds another file.
    with contextlib.suppress(OSError):
      os.remove(path)
    os.close(descriptor)
    if fresh:
      with contextlib.suppress(OSError):
        os.rmdir(folder)  # if it is empty


def _take(path: str, folder: str) -> int:
  """Locks the file and returns its descriptor."""
  while True:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
      _lock(descriptor, folder)
      if _is_at(descriptor, path):
        _sign(descriptor, folder)
        return descriptor
    except BaseException:
      os.close(descriptor)
      raise
    os.close(descriptor)  # its owner removed it meanwhile


def _lock(descriptor: int, folder: str) -> None:
  try:
    if fcntl is None:
      raise OSError(errno.ENOSYS, 'no flock')
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    raise InUseError(
      f'workdir {folder}: in use by {_describe(_read(descriptor))}; wait for '
      'it or stop it, or choose another --workdir'
    ) from None
  except OSError as error:
    if error.errno not in _NO_LOCKS:
      raise
    _logger.warning(
      'workdir %s: this file system cannot lock files (%s); see to it that no '
      'other run uses the folder',
      folder,
      error.strerror,
    )


def _is_at(descriptor: int, path: str) -> bool:
  """Returns whether a file is still the one at its path."""
  try:
    return os.path.samestat(os.fstat(descriptor), os.stat(path))
  except FileNotFoundError:
    return False


def _sign(descriptor: int, folder: str) -> None:
  """Writes the owner of the lock, and logs a dead former owner."""
  before = _read(descriptor)
  if before:
    _logger.warning(
      'workdir %s: taken over from %s, which is gone',
      folder,
      _describe(before),
    )
  owner = {
    'host': socket.gethostname(),
    'pid': os.getpid(),
    'since': provenance.utc_now(),
    'command': shlex.join(sys.argv),
  }
  with contextlib.suppress(OSError):  # a full disk: it is locked all the same
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(owner).encode(), 0)


def _read(descriptor: int) -> dict[str, Any]:
  try:
    owner = json.loads(os.pread(descriptor, 1 << 16, 0))
  except ValueError:
    return {}
  return owner if isinstance(owner, dict) else {}


def _describe(owner: dict[str, Any]) -> str:
  if not owner:
    return 'another process'
  return (
    f'process {owner.get("pid")} on {owner.get("host")} since '
    f'{owner.get("since")} ({owner.get("command")})'
  )
