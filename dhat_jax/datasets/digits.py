"""Scikit-learn's handwritten digits: 1,797 grey images of 8 x 8, offline.

They come with scikit-learn (the test set of UCI's optical recognition of
handwritten digits), so a real run needs no download.
"""

import functools
from typing import Any

import numpy as np

from dhat_jax.datasets.base import Dataset, Split

IMAGE_SHAPE = (8, 8, 1)
TEST_SIZE = 360
SPLIT_SEED = 0


def load() -> Dataset:
  """Loads the digits with a fixed, stratified test split.

  Returns:
    1,437 training and 360 test images, uint8 [N, 8, 8, 1]; the original 17
    grey levels are scaled to 0 ... 255.
  """
  raw, train, test = _read()
  images = np.rint(raw.images * (255 / 16)).astype(np.uint8)[..., None]
  labels = raw.target.astype(np.int32)
  return Dataset(
    train=Split(images[train], labels[train]),
    test=Split(images[test], labels[test]),
    class_names=tuple(str(name) for name in raw.target_names),
    source='scikit-learn digits',
  )


@functools.cache
def _read() -> tuple[Any, np.ndarray, np.ndarray]:
  """Returns scikit-learn's digits, and the places of either split in them.

  Once in a process: it parses text.
  """
  from sklearn import datasets, model_selection

  raw = datasets.load_digits()
  train, test = model_selection.train_test_split(
    np.arange(len(raw.target)),
    test_size=TEST_SIZE,
    random_state=SPLIT_SEED,
    stratify=raw.target.astype(np.int32),
  )
  return raw, train, test
