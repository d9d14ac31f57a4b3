"""One npz file with the arrays of Keras: `x_train, y_train, x_test, y_test`.

    np.savez('mine.npz', x_train=..., y_train=..., x_test=..., y_test=...)

Images are uint8 [N, H, W, C], or [N, H, W] (grey: a channel is added); labels
are integers [N] or [N, 1]. An array `class_names` of K strings is optional.
"""

import zipfile

import numpy as np

from dhat_jax.datasets.base import Dataset, ImageShape, Split
from dhat_jax.runtime import files
from dhat_jax.runtime.files import DataError, reading

_KEYS = ('x_train', 'y_train', 'x_test', 'y_test')
_NAMES = 'class_names'
_READERS = {
  (1, 0): np.lib.format.read_array_header_1_0,
  (2, 0): np.lib.format.read_array_header_2_0,
}
_MAX_CHANNELS = 4

Header = tuple[tuple[int, ...], np.dtype]


def check_path(path: str | None) -> str:
  """Returns a path, ~ expanded.

  Raises:
    ValueError: no path, or a folder.
    FileNotFoundError: there is no such file.
  """
  if not path:
    raise ValueError(
      'config.dataset.data_dir: got nothing, expected the path of an npz file '
      f'with the arrays {_KEYS}'
    )
  path = files.user_path(path)
  path_kind = files.kind(path)
  if path_kind == 'folder':
    raise DataError(
      f'config.dataset.data_dir: got {path}, which is a folder, expected an '
      'npz file'
    )
  if path_kind is None:
    raise FileNotFoundError(f'config.dataset.data_dir: {path} is not a file')
  return path


def image_shape(path: str) -> ImageShape:
  """Returns (H, W, C) from the headers of the arrays, and checks them all.

  Raises:
    ValueError: missing arrays, wrong dtypes or shapes.
  """
  headers = _headers(path)
  for split in ('train', 'test'):
    _check_images(f'{path}, x_{split}', headers[f'x_{split}'])
    _check_labels(f'{path}, y_{split}', headers[f'y_{split}'])
    sizes = [headers[f'{key}_{split}'][0][0] for key in 'xy']
    if sizes[0] != sizes[1]:
      raise DataError(
        f'{path}: x_{split} holds {sizes[0]} images, y_{split} {sizes[1]} '
        'labels'
      )
  train, test = (headers[key][0][1:] for key in ('x_train', 'x_test'))
  if train != test:
    raise DataError(f'{path}: train images are {train}, test images {test}')
  if _NAMES in headers:
    _check_names(f'{path}, {_NAMES}', headers[_NAMES])
  return (*train, 1)[:3]


def load(path: str, *, num_classes: int | None = None) -> Dataset:
  """Loads an npz file.

  Args:
    path: of the file.
    num_classes: K if the file has no `class_names`; the classes are then '0'
      ... 'K-1'. Default: the largest label plus 1.

  Returns:
    uint8 [N, H, W, C] and int32 [N].

  Raises:
    ValueError: missing arrays, wrong dtypes or shapes, labels out of range or
      a damaged file.
  """
  shape = image_shape(path)
  with reading(path, 'npz file'), np.load(path) as arrays:
    images = [arrays[key].reshape(-1, *shape) for key in ('x_train', 'x_test')]
    labels = [arrays[key].reshape(-1) for key in ('y_train', 'y_test')]
    names = arrays[_NAMES].tolist() if _NAMES in arrays.files else None
  if names is None:
    largest = max(int(part.max()) for part in labels)
    names = range(num_classes or largest + 1)
  for key, part in zip(('y_train', 'y_test'), labels, strict=True):
    # Before the conversion, in which large numbers would wrap around.
    if part.min() < 0 or part.max() >= len(names):
      raise DataError(
        f'{path}, {key}: labels from {part.min()} to {part.max()}, expected in '
        f'[0, {len(names)})'
      )
  train, test = (
    Split(*arrays)
    for arrays in zip(
      images, [part.astype(np.int32) for part in labels], strict=True
    )
  )
  return Dataset(
    train=train,
    test=test,
    class_names=tuple(str(name) for name in names),
    source=f'npz {path}',
  )


def _headers(path: str) -> dict[str, Header]:
  """Returns {array: (shape, dtype)} without reading the arrays."""
  with reading(path, 'npz file'), zipfile.ZipFile(path) as archive:
    names = [name.removesuffix('.npy') for name in archive.namelist()]
    missing = [key for key in _KEYS if key not in names]
    if missing:
      raise DataError(f'{path}: holds {names}, lacks {missing}')
    return {
      key: _header(archive, key) for key in (*_KEYS, _NAMES) if key in names
    }


def _header(archive: zipfile.ZipFile, key: str) -> Header:
  with archive.open(f'{key}.npy') as member:
    read = _READERS[np.lib.format.read_magic(member)]
    shape, _, dtype = read(member)
  return shape, dtype


def _check_images(where: str, header: Header) -> None:
  shape, dtype = header
  fits = len(shape) == 3 or (len(shape) == 4 and shape[3] <= _MAX_CHANNELS)
  if dtype != np.uint8 or not fits or 0 in shape:
    raise DataError(
      f'{where}: got {dtype} {shape}, expected uint8 [N, H, W] or [N, H, W, C] '
      f'with at most {_MAX_CHANNELS} channels'
    )


def _check_labels(where: str, header: Header) -> None:
  shape, dtype = header
  if dtype.kind not in 'iu' or shape[1:] not in ((), (1,)) or not shape:
    raise DataError(
      f'{where}: got {dtype} {shape}, expected integers [N] or [N, 1]'
    )


def _check_names(where: str, header: Header) -> None:
  shape, dtype = header
  if dtype.kind != 'U' or len(shape) != 1:
    raise DataError(f'{where}: got {dtype} {shape}, expected strings [K]')
