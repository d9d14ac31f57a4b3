import dataclasses

import numpy as np
import pytest

from dhat_jax.datasets import base


def make(num_train=4, num_test=2, shape=(3, 5, 1), num_classes=2):
  splits = [
    base.Split(
      np.zeros((count, *shape), np.uint8),
      (np.arange(count) % num_classes).astype(np.int32),
    )
    for count in (num_train, num_test)
  ]
  names = tuple(f'class {index}' for index in range(num_classes))
  return base.Dataset(*splits, class_names=names, source='some folder')


def test_accepts_what_is_right():
  base.validate(make())


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'images': np.zeros((2, 3, 5, 1))}, 'images are float64'),
    ({'images': np.zeros((2, 3, 5), np.uint8)}, r'uint8 \(2, 3, 5\), expected'),
    ({'images': np.zeros((0, 3, 5, 1), np.uint8)}, 'holds no images'),
    ({'images': np.zeros((3, 3, 5, 1), np.uint8)}, '3 images, but 2 labels'),
    ({'labels': np.zeros(2)}, r'labels are float64 \(2,\), expected int32'),
    ({'labels': np.zeros((2, 1), np.int32)}, r'labels are int32 \(2, 1\)'),
    ({'labels': np.array([0, 2], np.int32)}, r'from 0 to 2, .* \[0, 2\)'),
    ({'labels': np.array([-1, 1], np.int32)}, r'from -1 to 1, .* \[0, 2\)'),
  ],
)
@pytest.mark.parametrize('split', ['train', 'test'])
def test_names_split_and_mistake(split, change, message):
  dataset = make(num_train=2)
  broken = dataclasses.replace(getattr(dataset, split), **change)
  with pytest.raises(
    ValueError, match=f'some folder, {split} split: .*{message}'
  ):
    base.validate(dataclasses.replace(dataset, **{split: broken}))


@pytest.mark.parametrize('shape', [(3, 4, 1), (3, 5, 3)])
def test_splits_of_different_image_shape(shape):
  dataset = dataclasses.replace(make(), test=make(shape=shape).test)
  with pytest.raises(ValueError, match=r'train images are \(3, 5, 1\), test'):
    base.validate(dataset)


def make_source(image_shape, **options):
  """Returns (source, list of an entry per call of its `load`)."""
  calls = []

  def load():
    calls.append(1)
    return make(**options)

  return base.Source(load, image_shape), calls


@pytest.mark.parametrize('shape', [(3, 5, 1), [3, 5, 1], lambda: (3, 5, 1)])
def test_shape_is_described_before_anything_is_loaded(shape):
  source, calls = make_source(shape)
  assert source.shape() == (3, 5, 1)
  assert not calls
  assert source.dataset is source.dataset
  assert len(calls) == 1


@pytest.mark.parametrize('shape', [None, lambda: None])
def test_shape_that_only_the_data_tells(shape):
  source, calls = make_source(shape)
  assert source.shape() == source.shape() == (3, 5, 1)
  assert len(source.dataset.train.labels) == 4
  assert len(calls) == 1


def test_data_that_is_not_as_described():
  source, _ = make_source((3, 5, 3))
  with pytest.raises(
    ValueError,
    match=r'some folder: got images of shape \(3, 5, 1\), expected \(3, 5, 3\)',
  ):
    _ = source.dataset


def test_source_validates():
  source, _ = make_source(None, num_train=0)
  with pytest.raises(ValueError, match='train split: holds no images'):
    source.shape()
