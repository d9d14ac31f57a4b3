"""Data sets: two splits in memory, and the sources that load them."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable

import numpy as np

ImageShape = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Split:
  """Images and labels, in a fixed order.

  Attributes:
    images: uint8 [N, H, W, C].
    labels: int32 [N] in [0, K).
  """

  images: np.ndarray
  labels: np.ndarray

  def digest(self) -> str:
    """Returns 32 hex digits of the content: BLAKE2b of images and labels."""
    digest = hashlib.blake2b(digest_size=16)
    for array in (self.images, self.labels):
      digest.update(f'{array.shape} {array.dtype}'.encode())
      digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A training and a test split.

  Attributes:
    train: the training images; a validation split is held out of them.
    test: the images on which results are reported.
    class_names: K names, in the order of the labels.
    source: one sentence about the origin of the data.
  """

  train: Split
  test: Split
  class_names: tuple[str, ...]
  source: str

  def digests(self) -> dict[str, str]:
    """Returns {'train': ..., 'test': ...}, the digests of the splits."""
    return {name: getattr(self, name).digest() for name in ('train', 'test')}


@dataclasses.dataclass(frozen=True)
class Source:
  """A data set that is loaded when it is first needed.

  Attributes:
    load: returns the data set; `dataset` is its result, validated.
    image_shape: (H, W, C); or a function that finds it without reading all
      images, and returns None if it cannot. None: it is known once the data is
      loaded.
    make_batches: (training split, *, batch_size, seed, process_index,
      process_count) -> `batches.BatchSource`; None: shuffled, with every image
      once per epoch.
  """

  load: Callable[[], Dataset]
  image_shape: ImageShape | Callable[[], ImageShape | None] | None = None
  make_batches: Callable | None = None

  @functools.cached_property
  def dataset(self) -> Dataset:
    """The data set: loaded and validated at the first access, once.

    Raises:
      ValueError: broken data, or images of a shape that differs from the
        description.
    """
    dataset = self.load()
    validate(dataset)
    shape = dataset.train.images.shape[1:]
    if self.described_shape not in (None, shape):
      raise ValueError(
        f'{dataset.source}: got images of shape {shape}, expected '
        f'{self.described_shape} as the data set is described'
      )
    return dataset

  @functools.cached_property
  def described_shape(self) -> ImageShape | None:
    """(H, W, C) as far as it is known without loading the data."""
    shape = self.image_shape
    shape = shape() if callable(shape) else shape
    return None if shape is None else tuple(shape)

  def shape(self) -> ImageShape:
    """Returns (H, W, C) of the images; loads the data only if necessary."""
    return self.described_shape or self.dataset.train.images.shape[1:]


def validate(dataset: Dataset) -> None:
  """Raises ValueError for invalid data, naming split and source.

  It checks shapes, dtypes, lengths, empty splits and labels out of range.
  """
  for name in ('train', 'test'):
    _validate_split(
      getattr(dataset, name),
      f'{dataset.source}, {name} split',
      len(dataset.class_names),
    )
  shapes = [split.images.shape[1:] for split in (dataset.train, dataset.test)]
  if shapes[0] != shapes[1]:
    raise ValueError(
      f'{dataset.source}: train images are {shapes[0]}, test images {shapes[1]}'
    )


def _validate_split(split: Split, where: str, num_classes: int) -> None:
  images, labels = split.images, split.labels
  if images.ndim != 4 or images.dtype != np.uint8:
    raise ValueError(
      f'{where}: images are {images.dtype} {images.shape}, expected uint8 '
      '[N, H, W, C]'
    )
  if labels.ndim != 1 or labels.dtype != np.int32:
    raise ValueError(
      f'{where}: labels are {labels.dtype} {labels.shape}, expected int32 [N]'
    )
  if not len(images):
    raise ValueError(f'{where}: holds no images')
  if len(images) != len(labels):
    raise ValueError(f'{where}: {len(images)} images, but {len(labels)} labels')
  if labels.min() < 0 or labels.max() >= num_classes:
    raise ValueError(
      f'{where}: labels from {labels.min()} to {labels.max()}, expected in '
      f'[0, {num_classes})'
    )
