import numpy as np
import pytest

from dhat_jax.runtime import pictures


@pytest.mark.parametrize('channels', [1, 2, 4, 7])
def test_any_number_of_channels_is_gray(channels):
  images = np.random.default_rng(0).uniform(size=(2, 5, 6, channels))
  shown = pictures.rgb(images)
  assert shown.shape == (2, 5, 6, 3)
  for colour in range(3):
    np.testing.assert_allclose(shown[..., colour], images.mean(axis=-1))


def test_colours_stay():
  images = np.random.default_rng(0).uniform(size=(5, 6, 3))
  assert pictures.rgb(images) is images
