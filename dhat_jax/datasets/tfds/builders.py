"""Prepares TFDS's data sets without TensorFlow.

TFDS's own builders read the original archives through TensorFlow. These
subclasses have the same archives, checksums, images, labels, identifiers and
order. They read with Python and write ArrayRecord, which TFDS can read
anywhere.

Differs from TFDS's svhn_cropped: the split `extra` (1.3 GB) is left out.
"""

import functools
import os
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from dhat_jax.datasets.tfds import archives, prepared
from dhat_jax.runtime.files import DataError, reading

# What can be prepared without TensorFlow, in the version it is prepared in.
VERSIONS = {'cifar10': '3.0.2', 'cifar100': '3.0.2', 'svhn_cropped': '3.1.0'}
# (H, W, C) of the images of each of them.
IMAGE_SHAPES = dict.fromkeys(VERSIONS, (32, 32, 3))
_CIFAR_PIXELS = 32 * 32 * 3


def prepare(
  name: str, *, root: str, manual_dir: str | None, download: bool
) -> str:
  """Prepares a data set from its original archives.

  Args:
    name: key of `VERSIONS`; with TensorFlow, any other name of TFDS.
    root: TFDS's folder, for the result.
    manual_dir: folder of archives that were downloaded by hand, or None.
    download: whether to download the other archives.

  Returns:
    The prepared folder.

  Raises:
    DataNotFoundError: no archive and no way to download it.
    ValueError: unknown name, or an archive with the wrong content.
  """
  import tensorflow_datasets as tfds

  if name in VERSIONS:
    builder = builder_class(name)(data_dir=root, file_format='array_record')
    archives.require(builder, root, manual_dir, download)
  else:
    builder = _official_builder(name, root)
  with archives.tidy_downloads(root), archives.clear_errors(name, root):
    builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(
        manual_dir=manual_dir, try_download_gcs=False
      )
    )
  return os.fspath(builder.data_path)


def _official_builder(name: str, root: str) -> Any:
  """Returns TFDS's own builder, which needs TensorFlow."""
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder(name, data_dir=root, file_format='array_record')
  except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
    raise ValueError(
      f'config.dataset.name: TFDS has no {name!r}; choices are '
      f'{tuple(VERSIONS)}, and with TensorFlow any other of its data sets'
    ) from error
  if not prepared.has_tensorflow():
    raise ValueError(
      f'config.dataset.name: {name!r} is not prepared in {root}, and only '
      f'{tuple(VERSIONS)} can be prepared without TensorFlow '
      "(pip install 'dhat_jax[tf]')"
    )
  return builder


@functools.cache
def builder_class(name: str) -> type:
  """Returns the builder of a key of `VERSIONS`, a subclass of TFDS's."""
  import tensorflow_datasets as tfds

  official = tfds.builder_cls(name)
  if name == 'svhn_cropped':
    return _svhn_class(official)
  return _cifar_class(official, name)


def _cifar_class(official: Any, dataset_name: str) -> type:
  """Returns TFDS's builder of CIFAR-10 or CIFAR-100, without TensorFlow."""

  class Cifar(official, skip_registration=True):
    name = dataset_name
    # A subclass outside of TFDS has no checksums of its own.
    url_infos = official.url_infos

    @property
    def archive_urls(self) -> list[str]:
      return [self._cifar_info.url]

    def _split_generators(self, dl_manager):
      spec = self._cifar_info
      path = os.fspath(dl_manager.download(spec.url))
      texts = _members(path, [spec.prefix + file for file in spec.label_files])
      for key, text in zip(spec.label_keys, texts, strict=True):
        self.info.features[key].names = text.decode().split()
      return {
        'train': self._generate_examples('train_', path, spec.train_files),
        'test': self._generate_examples('test_', path, spec.test_files),
      }

    def _generate_examples(self, prefix, path, files):
      spec = self._cifar_info
      index = 0
      keys = spec.label_keys
      contents = _members(path, [spec.prefix + file for file in files])
      for file, data in zip(files, contents, strict=True):
        for labels, image in _cifar_rows(data, len(keys), f'{path}, {file}'):
          yield (
            index,
            {
              **_in_range(self, dict(zip(keys, labels, strict=True)), path),
              'id': f'{prefix}{index:05d}',
              'image': image,
            },
          )
          index += 1

  return Cifar


def _svhn_class(official: Any) -> type:
  """Returns TFDS's builder of SVHN, without TensorFlow and without `extra`."""
  import tensorflow_datasets as tfds

  files = {'train': 'train_32x32.mat', 'test': 'test_32x32.mat'}

  class SvhnCropped(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    name = 'svhn_cropped'
    VERSION = official.VERSION
    url_infos = official.url_infos

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        description='Street View House Numbers, cropped to 32 x 32.',
        features=tfds.features.FeaturesDict(
          {
            'image': tfds.features.Image(shape=(32, 32, 3)),
            'label': tfds.features.ClassLabel(num_classes=10),
            'id': tfds.features.Text(),
          }
        ),
        supervised_keys=('image', 'label'),
      )

    @property
    def _urls(self) -> dict[str, str]:
      return {
        split: next(url for url in self.url_infos if url.endswith(f'/{file}'))
        for split, file in files.items()
      }

    @property
    def archive_urls(self) -> list[str]:
      return list(self._urls.values())

    def _split_generators(self, dl_manager):
      paths = dl_manager.download(self._urls)
      return {
        split: self._generate_examples(f'{split}_', os.fspath(path))
        for split, path in paths.items()
      }

    def _generate_examples(self, prefix, path):
      for index, (label, image) in enumerate(_svhn_rows(path)):
        yield (
          index,
          {
            **_in_range(self, {'label': label}, path),
            'id': f'{prefix}{index:06d}',
            'image': image,
          },
        )

  return SvhnCropped


def _in_range(builder: Any, labels: dict[str, int], path: str) -> dict:
  for key, label in labels.items():
    num_classes = builder.info.features[key].num_classes
    if not 0 <= label < num_classes:
      raise DataError(f'{path}: {key} {label}, expected in [0, {num_classes})')
  return labels


def _members(path: str, names: list[str]) -> list[bytes]:
  """Returns the contents of files in a tar archive, read in one pass."""
  contents = {}
  with reading(path, 'tar archive'), tarfile.open(path, 'r|*') as archive:
    for member in archive:
      if member.name in names and member.isfile():
        contents[member.name] = archive.extractfile(member).read()
  missing = [name for name in names if name not in contents]
  if missing:
    raise DataError(f'{path}: the archive does not hold {missing}')
  return [contents[name] for name in names]


def _cifar_rows(
  data: bytes, num_labels: int, where: str
) -> Iterator[tuple[list[int], Image.Image]]:
  """Yields (labels, image) of CIFAR's binary format.

  A row has the labels, one byte each, then the red, green and blue planes of 32
  x 32 bytes.
  """
  row_size = num_labels + _CIFAR_PIXELS
  if not data or len(data) % row_size:
    raise DataError(
      f'{where}: got {len(data)} bytes, expected rows of {row_size}'
    )
  for row in np.frombuffer(data, np.uint8).reshape(-1, row_size):
    planes = row[num_labels:].reshape(3, 32, 32)
    # TFDS encodes a PIL image without TensorFlow, but not an array.
    image = Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))
    yield row[:num_labels].tolist(), image


def _svhn_rows(path: str) -> Iterator[tuple[int, Image.Image]]:
  """Yields (label, image) of a MATLAB file; the digit 0 is stored as 10."""
  from scipy import io

  with reading(path, 'MATLAB file with X and y'):
    content = io.loadmat(path)
    images = content['X']  # [32, 32, 3, N]
    labels = content['y'].reshape(-1)
  expected = (32, 32, 3, len(labels))
  if images.shape != expected or images.dtype != np.uint8:
    raise DataError(
      f'{path}: X is {images.dtype} {images.shape}, expected uint8 {expected}'
    )
  if len(labels) and not 1 <= labels.min() <= labels.max() <= 10:
    raise DataError(
      f'{path}: labels from {labels.min()} to {labels.max()}, expected 1 to 10'
    )
  for label, image in zip(labels, np.moveaxis(images, -1, 0), strict=True):
    yield int(label) % 10, Image.fromarray(np.ascontiguousarray(image))
