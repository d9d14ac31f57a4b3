"""What every data set is: two splits in memory."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Split:
  """Images and labels, in a fixed order.

  Attributes:
    images: uint8 [N, H, W, C].
    labels: int32 [N] in [0, K).
  """

  images: np.ndarray
  labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A training and a test split.

  Attributes:
    train: what is trained on; a validation split is held out of it.
    test: what is reported.
    class_names: K names, in the order of the labels.
    source: one sentence that says where the data came from.
  """

  train: Split
  test: Split
  class_names: tuple[str, ...]
  source: str


def validate(dataset: Dataset) -> None:
  """Raises ValueError, naming split and source, for data that cannot be.

  Checks shapes, dtypes, lengths, empty splits and labels out of range.
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
