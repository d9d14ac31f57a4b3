"""Reads folders that TFDS has prepared, without TensorFlow.

TFDS reads ArrayRecord itself. For TFRecord, its default format, it needs
TensorFlow. So the framing of TFRecord is read here, and TFDS decodes the
examples as for ArrayRecord.
"""

import importlib.util
import os
import re
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from dhat_jax.datasets import cache
from dhat_jax.datasets.base import Dataset, ImageShape, Split
from dhat_jax.datasets.tfds import INFO_FILE
from dhat_jax.runtime import files
from dhat_jax.runtime.files import DataError, reading

# Length, its checksum; data; the data's checksum.
_HEADER, _FOOTER = struct.Struct('<QI'), struct.Struct('<I')


def has_tensorflow() -> bool:
  """Returns whether TensorFlow is installed."""
  return importlib.util.find_spec('tensorflow') is not None


def default_root() -> str:
  """Returns TFDS's own folder: $TFDS_DATA_DIR or ~/tensorflow_datasets."""
  default = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  return files.user_path(default)


def find(name: str, root: str) -> str | None:
  """Finds a prepared data set.

  Args:
    name: of the data set.
    root: TFDS's folder, the data set's folder in it, or that of a version.

  Returns:
    The folder of the newest version, or None.
  """
  for parent in (os.path.join(root, name), root):
    if os.path.isdir(parent):
      versions = [
        folder
        for folder in _names(parent)
        if re.fullmatch(r'\d+\.\d+\.\d+', folder)
        and os.path.exists(os.path.join(parent, folder, INFO_FILE))
      ]
      if versions:
        newest = max(versions, key=lambda v: tuple(map(int, v.split('.'))))
        return os.path.join(parent, newest)
  return root if os.path.exists(os.path.join(root, INFO_FILE)) else None


def fingerprint(folder: str) -> str:
  """Returns 16 hex digits that change when a file of the folder does."""
  return cache.fingerprint(folder, _names(folder))


def _names(folder: str) -> list[str]:
  """Returns the names in a folder, sorted."""
  with reading(folder, 'folder'):
    return sorted(os.listdir(folder))


def _describe(folder: str) -> tuple[Any, str, str]:
  """Returns (TFDS's builder, key of the images, key of the labels)."""
  import tensorflow_datasets as tfds

  with reading(folder, 'data set prepared by TFDS'):
    builder = tfds.builder_from_directory(folder)
    image_key, label_key = builder.info.supervised_keys or ('image', 'label')
    features = dict(builder.info.features.items())
    missing = {image_key, label_key} - features.keys()
    if missing:
      raise DataError(
        f'{folder}: has the features {sorted(features)}, lacks '
        f'{sorted(missing)}'
      )
    if not isinstance(features[label_key], tfds.features.ClassLabel):
      kind = type(features[label_key]).__name__
      raise DataError(
        f'{folder}: feature {label_key!r} is {kind}, expected ClassLabel'
      )
  return builder, image_key, label_key


def image_shape(folder: str) -> ImageShape | None:
  """Returns (H, W, C) from a prepared folder's description.

  It is None if the description leaves the shape open.
  """
  builder, image_key, _ = _describe(folder)
  shape = builder.info.features[image_key].shape
  return None if None in shape else shape


def read(name: str, folder: str) -> Dataset:
  """Reads the training and the test split of a prepared data set.

  Args:
    name: the data set that the folder should hold.
    folder: as from `find`.

  Returns:
    The images in the order in which TFDS stores them.

  Raises:
    ValueError: another data set, missing splits, damaged files, or a file
      format that needs TensorFlow, which is not installed.
  """
  builder, image_key, label_key = _describe(folder)
  info = builder.info
  if info.name != name.partition('/')[0]:
    raise DataError(f'{folder}: holds {info.name!r}, expected {name!r}')
  missing = {'train', 'test'} - set(info.splits)
  if missing:
    raise DataError(
      f'{folder}: has the splits {sorted(info.splits)}, expected train and test'
    )
  classes = info.features[label_key]
  splits = {
    split: _collect(
      _examples(builder, split),
      (image_key, label_key),
      f'{folder}, {split} split',
      info.splits[split].num_examples,
    )
    for split in ('train', 'test')
  }
  return Dataset(
    **splits,
    class_names=tuple(
      classes.names or (str(label) for label in range(classes.num_classes))
    ),
    source=f'tfds {info.full_name.replace("/", ":")} from {folder}',
  )


def _examples(builder: Any, split: str) -> Iterator[dict]:
  """Yields the decoded examples of a split in their stored order."""
  file_format = builder.info.file_format.value
  if file_format == 'array_record':
    yield from builder.as_data_source(split=split)
  elif file_format == 'tfrecord':
    decode = builder.info.features.deserialize_example_np
    for path in builder.info.splits[split].filepaths:
      yield from _decode_records(os.fspath(path), decode)
  elif has_tensorflow():
    import tensorflow_datasets as tfds

    yield from tfds.as_numpy(builder.as_dataset(split=split))
  else:
    raise DataError(
      f'{builder.data_path}: is in the file format {file_format!r}; choices '
      "without TensorFlow are 'array_record' and 'tfrecord', with it "
      "(pip install 'dhat_jax[tf]') all that TFDS has"
    )


def _decode_records(path: str, decode: Any) -> Iterator[dict]:
  for index, record in enumerate(tfrecords(path)):
    with reading(f'{path}, record {index}', 'example'):
      example = decode(record)
    yield example


def tfrecords(path: str) -> Iterator[bytes]:
  """Yields the records of a TFRecord file.

  A record is its length (8 bytes, little endian), a checksum of the length (4
  bytes), the data and a checksum of the data (4 bytes). The checksums are not
  verified: CRC-32C in Python is slow, and the images in the records have their
  own checksums.

  Raises:
    ValueError: the file ends within a record; it names the file.
  """
  left = os.path.getsize(path)
  with open(path, 'rb') as file:
    while left:
      header = file.read(_HEADER.size)
      complete = len(header) == _HEADER.size
      length = _HEADER.unpack(header)[0] if complete else 0
      left -= _HEADER.size + length + _FOOTER.size
      if left < 0 or not complete:
        raise DataError(
          f'{path}: is damaged or truncated; it ends within a record'
        )
      yield file.read(length)
      file.read(_FOOTER.size)


def _collect(
  examples: Iterable[dict],
  keys: tuple[str, str],
  where: str,
  num_examples: int,
) -> Split:
  images, labels = [], []
  iterator = iter(examples)
  while True:
    with reading(f'{where}, example {len(images)}', 'image with its label'):
      example = next(iterator, None)
      if example is None:
        break
      image, label = example[keys[0]], int(example[keys[1]])
    if images and image.shape != images[0].shape:
      raise DataError(
        f'{where}: image {len(images)} has the shape {image.shape}, expected '
        f'{images[0].shape} as the first'
      )
    images.append(image)
    labels.append(label)
  if len(images) != num_examples or not images:
    raise DataError(
      f'{where}: holds {len(images)} examples, expected '
      f'{num_examples or "at least one"}'
    )
  return Split(np.stack(images), np.array(labels, np.int32))
