"""What a run of AutoAttack leaves on disk, so that a killed run can go on."""

import hashlib
import json
import os
import pathlib
import zipfile
from typing import Any

import numpy as np


def digest(*arrays: Any) -> str:
  """SHA-256 over the arrays' shapes, dtypes and bytes."""
  sha = hashlib.sha256()
  for array in arrays:
    array = np.ascontiguousarray(array)
    sha.update(f'{array.shape} {array.dtype}'.encode())
    sha.update(array.tobytes())
  return sha.hexdigest()


def _write(path, write):
  """Writes next to the file, then renames: there is never half a file."""
  scratch = path.with_name(f'{path.name}.{os.getpid()}.tmp')
  with open(scratch, 'wb') as file:
    write(file)
    file.flush()
    os.fsync(file.fileno())
  os.replace(scratch, path)


class Journal:
  """One file per finished batch in a directory; nothing without one.

  A piece is a dictionary of arrays: `indices`, the examples' places in the
  data set; `robust`, whether they withstood; `points`, those worth keeping;
  `rows`, whose points these are.
  """

  def __init__(self, directory: str | os.PathLike | None, problem: dict):
    """Opens a directory, or starts it.

    Args:
      directory: where the files are; None keeps nothing.
      problem: plain data that names what is being solved.

    Raises:
      ValueError: the directory belongs to another problem.
    """
    self._directory = None if directory is None else pathlib.Path(directory)
    if self._directory is None:
      return
    self._directory.mkdir(parents=True, exist_ok=True)
    # As it comes back from a file: tuples become lists.
    problem = json.loads(json.dumps(problem))
    path = self._directory / 'problem.json'
    if not path.exists():
      text = json.dumps(problem, indent=2, sort_keys=True).encode()
      _write(path, lambda file: file.write(text))
      return
    stored = json.loads(path.read_text())
    keys = sorted(stored.keys() | problem.keys())
    wrong = [key for key in keys if stored.get(key) != problem.get(key)]
    if wrong:
      lines = [
        f'{key}: got {problem.get(key)!r}, stored {stored.get(key)!r}'
        for key in wrong
      ]
      raise ValueError(
        f'{self._directory} holds another evaluation, which differs in '
        + '; '.join(lines)
        + '. Use another directory or delete it.'
      )

  def load(self, name: str, indices: np.ndarray) -> dict | None:
    """Returns the piece of that name, or None if it is not there.

    Raises:
      ValueError: the file is damaged, or is about other examples.
    """
    if self._directory is None:
      return None
    path = self._directory / f'{name}.npz'
    if not path.exists():
      return None
    try:
      with np.load(path) as file:
        piece = dict(file)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
      raise ValueError(f'{path} is damaged; delete it: {error}') from error
    if not np.array_equal(piece['indices'], indices):
      raise ValueError(f'{path} is about other examples than expected')
    return piece

  def save(self, name: str, piece: dict[str, np.ndarray]) -> None:
    """Stores a finished batch, or any other arrays, as npz."""
    if self._directory is not None:
      path = self._directory / f'{name}.npz'
      _write(path, lambda file: np.savez(file, **piece))

  def strip(self, name: str, indices: np.ndarray) -> None:
    """Drops the points of robust examples, which a later piece holds."""
    piece = self.load(name, indices)
    if piece is None:
      return
    kept = ~piece['robust'][piece['rows']]
    piece['rows'] = piece['rows'][kept]
    piece['points'] = piece['points'][kept]
    self.save(name, piece)
