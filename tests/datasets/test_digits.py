import numpy as np
from sklearn import datasets

from dhat_jax.datasets import digits
from dhat_jax.datasets.base import validate


def test_every_digit_is_in_one_split():
  dataset = digits.load()
  validate(dataset)
  assert dataset.train.images.shape == (1437, 8, 8, 1)
  assert dataset.test.images.shape == (360, 8, 8, 1)
  assert dataset.class_names == tuple('0123456789')
  raw = datasets.load_digits()
  images = np.concatenate([dataset.train.images, dataset.test.images])
  labels = np.concatenate([dataset.train.labels, dataset.test.labels])
  # The 17 grey levels, scaled: 16 is white, 8 is 127.5 rounded to even.
  assert sorted(np.unique(images))[:2] == [0, 16]
  assert images.max() == 255
  assert 128 in images
  levels = np.rint(images[..., 0] * (16 / 255)).reshape(-1, 64)
  labels = labels[:, None]
  got = np.hstack([levels, labels]).tolist()
  expected = np.hstack([raw.data, raw.target[:, None]]).tolist()
  assert sorted(got) == sorted(expected)


def test_split_is_stratified_and_fixed():
  first = digits.load()
  np.random.seed(5)
  second = digits.load()
  np.testing.assert_array_equal(first.test.images, second.test.images)
  counts = np.bincount(first.test.labels)
  totals = counts + np.bincount(first.train.labels)
  assert np.abs(counts - totals * 360 / 1797).max() < 1


def test_a_changed_split_changes_nothing_of_the_next():
  expected = digits.load()
  for split in (digits.load().train, digits.load().test):
    split.images[:] = 7
    split.labels[:] = 7
  found = digits.load()
  for name in ('train', 'test'):
    one, other = getattr(expected, name), getattr(found, name)
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(one.labels, other.labels)
