"""Caches decoded data sets as npz files.

A cache file is written atomically, so a reader never sees half of one. The
members of npz files have checksums, so a damaged file is detected and written
again.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable

import numpy as np
from absl import logging

from dhat_jax.datasets.base import Dataset, Split, validate
from dhat_jax.runtime import files
from dhat_jax.runtime.files import reading


def folder(cache_dir: str | None) -> str:
  """Returns `cache_dir`, else $DHAT_JAX_CACHE, else ~/.cache/dhat_jax."""
  default = os.environ.get('DHAT_JAX_CACHE') or '~/.cache/dhat_jax'
  return files.user_path(cache_dir or default)


def fingerprint(root: str, names: Iterable[str]) -> str:
  """Returns 16 hex digits that change when a listing of files does.

  Args:
    root: the folder; its absolute path counts.
    names: paths relative to it; their order, sizes and modification times
      count, but not their content.

  Raises:
    ValueError: no such file.
  """
  digest = hashlib.sha256(os.fsencode(os.path.abspath(root)))
  for name in names:
    path = os.path.join(root, name)
    with reading(path, 'file'):
      stat = os.stat(path)
    entry = f'\0{name}\0{stat.st_size}\0{stat.st_mtime_ns}'
    digest.update(os.fsencode(entry))
  return digest.hexdigest()[:16]


def read(path: str) -> Dataset | None:
  """Returns the data set of a cache file; None if it is missing or damaged."""
  if not os.path.exists(path):
    return None
  try:
    with np.load(path, allow_pickle=False) as arrays:
      dataset = Dataset(
        train=Split(arrays['train_images'], arrays['train_labels']),
        test=Split(arrays['test_images'], arrays['test_labels']),
        class_names=tuple(arrays['class_names'].tolist()),
        source=f'{arrays["source"].item()}, cached in {path}',
      )
    validate(dataset)
  except Exception as error:  # Whatever it is: the data can be decoded again.
    logging.warning(
      'The cache file %s is damaged (%s: %s); it is written again.',
      path,
      type(error).__name__,
      error,
    )
    return None
  return dataset


def write(path: str, dataset: Dataset) -> None:
  """Writes a cache file, whole or not at all.

  A folder that cannot be written to only costs time in the next run, so it is a
  warning.
  """
  try:
    with files.replacing(path, 'wb') as file:
      np.savez(
        file,
        train_images=dataset.train.images,
        train_labels=dataset.train.labels,
        test_images=dataset.test.images,
        test_labels=dataset.test.labels,
        class_names=np.array(dataset.class_names),
        source=np.array(dataset.source),
      )
  except OSError as error:
    logging.warning(
      'The cache file %s cannot be written: %s',
      path,
      files.refusal(error) or error,
    )


def read_or_make(path: str, make: Callable[[], Dataset]) -> Dataset:
  """Returns the data set of a cache file, or `make()`, which is then cached.

  Raises:
    ValueError: `make` returned data that `validate` refuses; nothing is cached.
  """
  dataset = read(path)
  if dataset is None:
    dataset = make()
    validate(dataset)
    write(path, dataset)
    dataset = dataclasses.replace(
      dataset, source=f'{dataset.source}, cached in {path}'
    )
  return dataset
