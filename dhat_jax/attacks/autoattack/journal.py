"""Journal of AutoAttack on disk: a killed run resumes after its last batch."""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dhat_jax.runtime import files, hoisting
from dhat_jax.runtime.files import DataError, reason


def digest(*arrays: Any) -> str:
  """SHA-256 over the arrays' shapes, dtypes and bytes."""
  sha = hashlib.sha256()
  for array in arrays:
    array = np.ascontiguousarray(array)
    sha.update(f'{array.shape} {array.dtype}'.encode())
    sha.update(array.tobytes())
  return sha.hexdigest()


def network_digest(
  logits_fn: Callable, images: Any, keys: Sequence[Any] = ()
) -> str:
  """SHA-256 of the arrays that a network closes over: its weights.

  Arrays inside a function that is itself jitted are not seen.

  Args:
    logits_fn: (images, *keys) -> logits.
    images: float [B, ...], of which only shape and dtype matter.
    keys: typed keys of the network's noise.
  """
  _, consts = hoisting.hoist(logits_fn, images, *keys)
  return digest(
    *(
      jax.random.key_data(const)
      if jnp.issubdtype(const.dtype, jax.dtypes.prng_key)
      else const
      for const in consts
    )
  )


class Journal:
  """One file per finished batch in a directory; without one, nothing.

  A piece is a dictionary of arrays, about n items. `indices` [n] has the places
  of their images in the data set, `passes` [n] the passes over them. `robust`
  bool [n] says whether they withstood. `predictions` int [n], `margins` [n],
  `correct` bool [n, m] and `shares` [n] are those on the pass's points, see
  `evaluation.Evaluation`. `points` [m, ...] are the points that are
  still needed, and `rows` [m] says whose they are. `zero_gradients` and
  `broken_gradients` bool [n] say where there were any.
  """

  def __init__(self, directory: str | os.PathLike | None, problem: dict):
    """Opens or creates a directory.

    Args:
      directory: the folder of the files; None stores nothing.
      problem: plain data that describes the problem.

    Raises:
      ValueError: the directory belongs to another problem.
    """
    self._directory = None if directory is None else pathlib.Path(directory)
    if self._directory is None:
      return
    # As it comes back from a file: tuples become lists.
    problem = json.loads(json.dumps(problem, sort_keys=True))
    path = self._directory / 'problem.json'
    if path.exists():
      stored = files.read_json(str(path))
      if not isinstance(stored, dict):
        raise DataError(
          f'{path}: got {type(stored).__name__}, expected a JSON object'
        )
      self._check_same(stored, problem)
    else:
      files.write_json(str(path), problem)

  def _check_same(self, stored: dict, problem: dict) -> None:
    """Raises ValueError with the differences if the problem is another one."""
    lines = [
      f'{key}: got {problem.get(key)!r}, stored {stored.get(key)!r}'
      for key in sorted(stored.keys() | problem.keys())
      if stored.get(key) != problem.get(key)
    ]
    if lines:
      raise ValueError(
        f'{self._directory} holds another evaluation, which differs in '
        + '; '.join(lines)
        + '. Use another directory or delete it.'
      )

  def check_close(
    self, name: str, arrays: dict[str, np.ndarray], tolerance: float = 1e-3
  ) -> None:
    """Compares arrays with the stored ones, or stores them.

    Args:
      name: of the arrays, for the file and the error.
      arrays: {name: array}.
      tolerance: in units of each array's largest value; another machine rounds
        differently.

    Raises:
      ValueError: the directory belongs to another problem.
    """
    if self._directory is None:
      return
    path = self._directory / f'{name}.npz'
    if not path.exists():
      self.save(name, arrays)
      return
    stored = self._read(path)
    for key, array in arrays.items():
      before = stored.get(key)
      same = before is not None and before.shape == array.shape
      if same:
        # Only of the probe: logits of clean images are finite.
        before, array = np.nan_to_num(before), np.nan_to_num(array)
        largest = max(float(np.max(np.abs(array))), 1e-10)
        same = bool(np.all(np.abs(before - array) <= tolerance * largest))
      if not same:
        raise ValueError(
          f'{self._directory} holds another evaluation, which differs in '
          f'{name}: its {key} are others. Use another directory or delete it.'
        )

  def load(
    self, name: str, key: dict[str, np.ndarray]
  ) -> dict[str, np.ndarray] | None:
    """Returns the piece with that name, or None.

    Args:
      name: of the piece.
      key: those of its arrays that must be the same.

    Raises:
      ValueError: the file is damaged, or is about other examples or passes.
    """
    if self._directory is None:
      return None
    path = self._directory / f'{name}.npz'
    if not path.exists():
      return None
    piece = self._read(path)
    for array, expected in key.items():
      if not np.array_equal(piece.get(array), expected):
        raise ValueError(f'{path} is about other {array} than expected')
    return piece

  def _read(self, path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
      with np.load(path) as file:
        return dict(file)
    except Exception as error:  # NumPy and zipfile raise a great many types
      raise DataError(
        f'{path} is damaged; delete it: {reason(error)}'
      ) from error

  def save(self, name: str, piece: dict[str, np.ndarray]) -> None:
    """Stores a finished batch, or any other arrays, as npz."""
    if self._directory is not None:
      files.write_npz(str(self._directory / f'{name}.npz'), piece)

  def strip(self, name: str, key: dict[str, np.ndarray]) -> None:
    """Drops the points of robust examples; a later piece has them.

    Of a randomised network, any point may be the one that is kept.
    """
    piece = self.load(name, key)
    if piece is None or piece['correct'].shape[1] > 1:
      return
    broken = ~piece['robust'][piece['rows']]
    if broken.all():
      return
    piece['rows'] = piece['rows'][broken]
    piece['points'] = piece['points'][broken]
    self.save(name, piece)
