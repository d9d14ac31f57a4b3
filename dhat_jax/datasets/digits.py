"""Scikit-learn's handwritten digits: 1,797 grey images of 8 x 8, offline.

They come with scikit-learn (the test set of UCI's optical recognition of
handwritten digits), so a real run needs no download.
"""

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
  from sklearn import datasets, model_selection

  raw = datasets.load_digits()
  images = np.rint(raw.images * (255 / 16)).astype(np.uint8)[..., None]
  labels = raw.target.astype(np.int32)
  train, test = model_selection.train_test_split(
    np.arange(len(labels)),
    test_size=TEST_SIZE,
    random_state=SPLIT_SEED,
    stratify=labels,
  )
  return Dataset(
    train=Split(images[train], labels[train]),
    test=Split(images[test], labels[test]),
    class_names=tuple(str(name) for name in raw.target_names),
    source='scikit-learn digits',
  )
