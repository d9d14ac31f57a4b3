"""Arrays in npz files, as one file or as one file for each split.

One file with the arrays of Keras:

    np.savez('mine.npz', x_train=..., y_train=..., x_test=..., y_test=...)

or a folder with two files:

    np.savez('mine/train.npz', images=..., labels=...)
    np.savez('mine/test.npz', images=..., labels=...)

Images are uint8 [N, H, W, C], or [N, H, W] (grey: a channel is added); labels
are integers [N] or [N, 1]. `image` and `label` are good names too. An array
`class_names` of K strings is optional; in a folder it stands in `train.npz`.
"""

import os
from typing import NamedTuple

import numpy as np

from dhat_jax.datasets import npz_arrays
from dhat_jax.datasets.base import Dataset, ImageShape, Split
from dhat_jax.datasets.npz_arrays import Header
from dhat_jax.runtime import files
from dhat_jax.runtime.files import DataError, reading

SPLITS = ('train', 'test')
_NAMES = 'class_names'
_LAYOUT = (
  "an npz file with the arrays 'x_train', 'y_train', 'x_test', 'y_test', or a "
  'folder with train.npz and test.npz'
)


class _Arrays(NamedTuple):
  """Where the arrays of a split are: a file, and their names in it."""

  path: str
  images: str
  labels: str


def check_path(path: str | None) -> str:
  """Returns a path, ~ expanded.

  Raises:
    ValueError: no path, or a folder without the files of both splits.
    FileNotFoundError: there is no such file.
  """
  where = 'config.dataset.data_dir'
  if not path:
    raise ValueError(f'{where}: got nothing, expected the path of {_LAYOUT}')
  path = files.user_path(path)
  path_kind = files.kind(path)
  if path_kind is None:
    raise FileNotFoundError(f'{where}: {path} is not a file')
  if path_kind == 'folder':
    missing = [
      f'{split}.npz'
      for split in SPLITS
      if files.kind(os.path.join(path, f'{split}.npz')) != 'file'
    ]
    if missing:
      raise DataError(
        f'{where}: got {path}, a folder without {" and ".join(missing)}, '
        f'expected {_LAYOUT}'
      )
  return path


def _locate(path: str) -> dict[str, _Arrays]:
  """Returns where the arrays of each split are."""
  if files.kind(path) == 'folder':
    parts = {split: os.path.join(path, f'{split}.npz') for split in SPLITS}
    return {
      split: _Arrays(
        part,
        npz_arrays.choose(part, npz_arrays.IMAGES),
        npz_arrays.choose(part, npz_arrays.LABELS),
      )
      for split, part in parts.items()
    }
  names = npz_arrays.array_names(path)
  keys = [f'{kind}_{split}' for split in SPLITS for kind in 'xy']
  missing = [key for key in keys if key not in names]
  if missing:
    raise DataError(
      f'{path}: holds {names}, lacks {missing}; expected {_LAYOUT}'
    )
  return {split: _Arrays(path, f'x_{split}', f'y_{split}') for split in SPLITS}


def image_shape(path: str) -> ImageShape:
  """Returns (H, W, C) from the headers of the arrays, and checks them all.

  Raises:
    ValueError: missing arrays, wrong dtypes or shapes.
  """
  return _checked_shape(path, _locate(path))


def _checked_shape(path: str, places: dict[str, _Arrays]) -> ImageShape:
  shapes = {split: _split_shape(*place) for split, place in places.items()}
  if shapes['train'] != shapes['test']:
    raise DataError(
      f'{path}: train images are {shapes["train"]}, test images '
      f'{shapes["test"]}'
    )
  first = places['train'].path
  if _NAMES in npz_arrays.array_names(first):
    header = npz_arrays.read_headers(first, (_NAMES,))[_NAMES]
    npz_arrays.check_names(f'{first}, {_NAMES}', header)
  return (*shapes['train'], 1)[:3]


def _split_shape(path: str, images: str, labels: str) -> tuple[int, ...]:
  """Returns the shape of a split's images, after checking its headers."""
  headers: dict[str, Header] = npz_arrays.read_headers(path, (images, labels))
  npz_arrays.check_images(f'{path}, {images}', headers[images])
  npz_arrays.check_labels(f'{path}, {labels}', headers[labels])
  npz_arrays.check_lengths(
    path, (images, labels), (headers[images], headers[labels])
  )
  return headers[images].shape[1:]


def load(path: str, *, num_classes: int | None = None) -> Dataset:
  """Loads an npz file, or a folder of two.

  Args:
    path: of the file or the folder.
    num_classes: K if there is no `class_names`; the classes are then '0' ...
      'K-1'. Default: the largest label plus 1.

  Returns:
    uint8 [N, H, W, C] and int32 [N].

  Raises:
    ValueError: missing arrays, wrong dtypes or shapes, labels out of range or
      a damaged file.
  """
  places = _locate(path)
  shape = _checked_shape(path, places)
  images, labels = {}, {}
  for split, place in places.items():
    with reading(place.path, 'npz file'), np.load(place.path) as arrays:
      images[split] = arrays[place.images].reshape(-1, *shape)
      labels[split] = arrays[place.labels].reshape(-1)
      if split == 'train':
        names = arrays[_NAMES].tolist() if _NAMES in arrays.files else None
  if names is None:
    largest = max(int(part.max()) for part in labels.values())
    names = range(num_classes or largest + 1)
  for split, part in labels.items():
    # Before the conversion, in which large numbers would wrap around.
    where = f'{places[split].path}, {places[split].labels}'
    npz_arrays.check_range(where, part.min(), part.max(), len(names))
  return Dataset(
    **{
      split: Split(images[split], labels[split].astype(np.int32))
      for split in SPLITS
    },
    class_names=tuple(str(name) for name in names),
    source=f'npz {path}',
  )
