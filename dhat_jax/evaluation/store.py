"""The store of an evaluation, from which a killed one resumes.

It has one npz file per finished record, written atomically. Each has a digest
of everything that it depends on. A file of another network, data set or setting
counts as missing.
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dhat_jax.evaluation.records import Arrays
from dhat_jax.runtime import files, processes

# Of the files that an attack stores in its own folder. A folder of another
# version is emptied: its attack starts anew.
FOLDER_VERSION = 2


def digest(value: Any) -> str:
  """SHA-256 of a tree of arrays, numbers and names."""
  sha = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(value):
    sha.update(jax.tree_util.keystr(path).encode())
    if isinstance(leaf, np.ndarray | jax.Array):
      array = np.ascontiguousarray(leaf)
      sha.update(f'{array.shape} {array.dtype}'.encode())
      sha.update(array.tobytes())
    else:
      sha.update(repr(leaf).encode())
  return sha.hexdigest()


class Store:
  """Named groups of arrays on disk; without a folder nothing is stored.

  Attributes:
    directory: where the files are, or None.
  """

  def __init__(self, directory: str | None, identity: str):
    """Creates the store; nothing is read or written yet.

    Args:
      directory: where the files are, or None.
      identity: digest of everything that all its files depend on.
    """
    self.directory = directory
    self._identity = identity

  def _digest(self, settings: Any) -> str:
    return digest([self._identity, settings])

  def get(
    self,
    name: str,
    settings: Any,
    make: Callable[[], Arrays],
    *,
    again: bool = False,
  ) -> Arrays:
    """Returns a group of arrays; computes and stores it if it is missing.

    Args:
      name: of the file, below the folder, without suffix.
      settings: a tree of everything else that the arrays depend on.
      make: computes them.
      again: whether to compute them even if they are stored.
    """
    owner = self._digest(settings)
    arrays = None if again else self._load(name, owner)
    if arrays is None:
      arrays = make()
      self._save(name, owner, arrays)
    return arrays

  def _path(self, name: str) -> str:
    return os.path.join(self.directory, f'{name}.npz')

  def _load(self, name: str, owner: str) -> Arrays | None:
    if self.directory is None:
      return None
    try:
      with np.load(self._path(name)) as file:
        arrays = dict(file)
    except Exception:  # NumPy and zipfile raise a great many types
      return None  # missing or damaged: computed again
    return arrays if str(arrays.pop('digest', '')) == owner else None

  def _save(self, name: str, owner: str, arrays: Arrays) -> None:
    if self.directory is not None and processes.is_first():
      files.write_npz(self._path(name), {**arrays, 'digest': np.array(owner)})

  def folder(self, name: str, settings: Any) -> str | None:
    """Returns a folder for an attack that stores its own files.

    A folder that belongs to something else, or that another version of this
    code began, is emptied first.
    """
    if self.directory is None:
      return None
    path = os.path.join(self.directory, name)
    if processes.is_first():
      owner = {'digest': self._digest(settings), 'version': FOLDER_VERSION}
      self._claim(path, owner)
    processes.wait_for_all('folder claimed')
    return path

  def _claim(self, path: str, owner: dict[str, Any]) -> None:
    """Empties a folder unless it belongs to the owner already."""
    label = os.path.join(path, 'evaluation.json')
    try:
      if files.read_json(label) == owner:
        return
    except (OSError, ValueError):
      pass
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    files.write_json(label, owner)
