"""What is measured of the memory of generated images, and that it is flat."""

import os

import numpy as np
import pytest

from dhat_jax.datasets.extra import ExtraImages
from experiments import extra_memory

COUNT = extra_memory.CHUNK + 3  # 31 MB


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  path = str(tmp_path_factory.mktemp('generated') / 'images.npz')
  extra_memory.write(path, COUNT)
  return path


def test_what_is_written(path):
  with np.load(path) as arrays:
    images, labels = arrays['image'], arrays['label']
  assert images.shape == (COUNT, 32, 32, 3)
  assert images.dtype == np.uint8
  assert labels.shape == (COUNT,)
  np.testing.assert_array_equal(images[-3:], images[:3])


@pytest.mark.skipif(
  not os.path.exists('/proc/self/status'), reason='needs Linux'
)
def test_reading_all_images_maps_none_for_good(path):
  images = ExtraImages(path, num_classes=extra_memory.CLASSES)
  before = extra_memory.memory()['file']
  for start in range(0, COUNT, 100):
    images.take(np.arange(start, min(start + 100, COUNT)))
  assert extra_memory.memory()['file'] - before < 10
