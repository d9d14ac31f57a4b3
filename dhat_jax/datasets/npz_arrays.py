"""Arrays inside npz files: their headers, and memory maps of their content.

An npz file is a zip archive of npy files. `np.savez` stores them uncompressed,
so an array lies in the file byte for byte and can be memory-mapped there.
"""

import os
import struct
import zipfile
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dhat_jax.runtime.files import DataError, reading

# Other names of the same arrays, in files of one split.
IMAGES = ('image', 'images')
LABELS = ('label', 'labels')
_READERS = {
  (1, 0): np.lib.format.read_array_header_1_0,
  (2, 0): np.lib.format.read_array_header_2_0,
}
_MAX_CHANNELS = 4
# Of a zip archive's local header: its length, and the place of the lengths of
# the name and of the extra field that follow it.
_LOCAL_HEADER = 30
_LENGTHS = slice(26, 30)


class Header(NamedTuple):
  """What an array is, as its file describes it.

  Attributes:
    shape: of the array.
    dtype: of the array.
    fortran_order: whether the first axis varies fastest.
    crc: CRC-32 of its bytes, as the archive records it.
    offset: of its first byte in the npz file; None where it is compressed.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  fortran_order: bool
  crc: int
  offset: int | None


def array_names(path: str) -> list[str]:
  """Returns the names of the arrays in an npz file.

  Raises:
    DataError: it is no readable npz file.
  """
  with reading(path, 'npz file'), zipfile.ZipFile(path) as archive:
    return [name.removesuffix('.npy') for name in archive.namelist()]


def choose(path: str, choices: Sequence[str]) -> str:
  """Returns the one of several names under which a file holds an array.

  Raises:
    DataError: the file has none of them, or several.
  """
  names = array_names(path)
  present = [name for name in choices if name in names]
  if len(present) != 1:
    expected = ' or '.join(map(repr, choices))
    raise DataError(f'{path}: holds {names}, expected one array {expected}')
  return present[0]


def read_headers(path: str, names: Sequence[str]) -> dict[str, Header]:
  """Reads the headers of some arrays of an npz file, not the arrays.

  Raises:
    DataError: it is no readable npz file, or lacks an array.
  """
  held = array_names(path)
  missing = [name for name in names if name not in held]
  if missing:
    raise DataError(f'{path}: holds {held}, lacks {missing}')
  with reading(path, 'npz file'), zipfile.ZipFile(path) as archive:
    return {name: _read_header(archive, path, name) for name in names}


def _read_header(archive: zipfile.ZipFile, path: str, name: str) -> Header:
  info = archive.getinfo(f'{name}.npy')
  with archive.open(info) as member:
    read = _READERS[np.lib.format.read_magic(member)]
    shape, fortran_order, dtype = read(member)
    length = member.tell()
  offset = None
  if info.compress_type == zipfile.ZIP_STORED:
    offset = _first_byte(path, info) + length
  return Header(shape, dtype, fortran_order, info.CRC, offset)


def _first_byte(path: str, info: zipfile.ZipInfo) -> int:
  """Returns where a member of an archive begins, behind its local header."""
  with open(path, 'rb') as file:
    file.seek(info.header_offset)
    lengths = struct.unpack('<HH', file.read(_LOCAL_HEADER)[_LENGTHS])
  return info.header_offset + _LOCAL_HEADER + sum(lengths)


def memory_map(path: str, name: str) -> np.memmap:
  """Maps an array of an npz file into memory, read-only.

  Nothing is read before its elements are. The map's `base` is a `mmap.mmap`.

  Args:
    path: of an npz file, as `np.savez` writes it.
    name: of the array.

  Raises:
    DataError: the array is missing, compressed, in Fortran order or empty; or
      the file ends before the array does.
  """
  header = read_headers(path, (name,))[name]
  if header.offset is None:
    raise DataError(
      f'{path}: {name!r} is compressed, so it cannot be memory-mapped; write '
      f'it again: python -c "import numpy as np; '
      f"np.savez('NEW.npz', **np.load('{os.path.basename(path)}'))\""
    )
  if header.fortran_order:
    raise DataError(
      f'{path}: {name!r} is in Fortran order, expected C order; write '
      'np.ascontiguousarray(array)'
    )
  with reading(path, 'npz file'):
    return np.memmap(
      path, header.dtype, 'r', offset=header.offset, shape=header.shape
    )


def check_images(where: str, header: Header) -> None:
  """Raises DataError unless an array can be images of one size."""
  shape, dtype = header.shape, header.dtype
  fits = len(shape) == 3 or (len(shape) == 4 and shape[3] <= _MAX_CHANNELS)
  if dtype != np.uint8 or not fits or 0 in shape:
    raise DataError(
      f'{where}: got {dtype} {shape}, expected uint8 [N, H, W] or [N, H, W, C] '
      f'with at most {_MAX_CHANNELS} channels'
    )


def check_labels(where: str, header: Header) -> None:
  """Raises DataError unless an array can be labels."""
  shape, dtype = header.shape, header.dtype
  if dtype.kind not in 'iu' or shape[1:] not in ((), (1,)) or not shape:
    raise DataError(
      f'{where}: got {dtype} {shape}, expected integers [N] or [N, 1]'
    )


def check_names(where: str, header: Header) -> None:
  """Raises DataError unless an array can be the names of classes."""
  if header.dtype.kind != 'U' or len(header.shape) != 1:
    raise DataError(
      f'{where}: got {header.dtype} {header.shape}, expected strings [K]'
    )


def check_range(where: str, least: int, most: int, num_classes: int) -> None:
  """Raises DataError unless labels from `least` to `most` name classes."""
  if least < 0 or most >= num_classes:
    raise DataError(
      f'{where}: labels from {least} to {most}, expected in [0, {num_classes})'
    )


def check_lengths(
  path: str, names: tuple[str, str], headers: tuple[Header, Header]
) -> None:
  """Raises DataError unless there is a label for each image.

  Args:
    path: of the file.
    names: of (images, labels) in it.
    headers: likewise.
  """
  sizes = [header.shape[0] for header in headers]
  if sizes[0] != sizes[1]:
    raise DataError(
      f'{path}: {names[0]} holds {sizes[0]} images, {names[1]} {sizes[1]} '
      'labels'
    )
