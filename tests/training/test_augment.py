import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.datasets.batches import to_float
from dhat_jax.training import augment


def test_to_float_divides_by_255():
  images = np.array([0, 51, 255], np.uint8).reshape(1, 1, 3, 1)
  floats = to_float(images)
  assert floats.dtype == jnp.float32
  np.testing.assert_allclose(floats.ravel(), [0, 0.2, 1], rtol=1e-7)


PADDING = 2


@functools.cache
def augmenter(crop_padding, flip):
  return jax.jit(augment.crop_flip(crop_padding=crop_padding, flip=flip))


def make_images(num_images):
  """Uint8 [N, 5, 4, 2] without zeros: those come from padding alone."""
  generator = np.random.default_rng(0)
  return generator.integers(1, 256, (num_images, 5, 4, 2), np.uint8)


def keys(num_images, seed=0):
  return jax.random.split(jax.random.key(seed), num_images)


def shifted(image, top, left, flip):
  """What a crop at (top, left) of the padded image holds, pixel by pixel."""
  height, width, _ = image.shape
  result = np.zeros_like(image)
  for row, column in itertools.product(range(height), range(width)):
    y, x = row + top - PADDING, column + left - PADDING
    if 0 <= y < height and 0 <= x < width:
      result[row, column] = image[y, x]
  return result[:, ::-1] if flip else result


def places(images, augmented, flips=(False, True)):
  """Returns the (top, left, flip) that explains each augmented image."""
  offsets = range(2 * PADDING + 1)
  found = []
  for image, result in zip(images, augmented, strict=True):
    matches = [
      place
      for place in itertools.product(offsets, offsets, flips)
      if np.array_equal(shifted(image, *place), result)
    ]
    assert len(matches) == 1
    found += matches
  return found


def test_augmented_images_are_shifted_flipped_copies():
  images = make_images(200)
  augmented = augmenter(PADDING, True)(keys(200), images)
  assert augmented.dtype == jnp.uint8
  found = places(images, np.asarray(augmented))
  # Every offset and both directions come up; 200 draws of 5 x 5 x 2.
  for coordinate in range(2):
    assert {place[coordinate] for place in found} == set(range(5))
  assert len(set(found)) > 35
  # Independent: about as many flips at either end of the shifts.
  flips = np.array([place[2] for place in found])
  upper = np.array([place[0] < PADDING for place in found])
  assert 0.3 < flips[upper].mean() < 0.7
  assert 0.3 < flips[~upper].mean() < 0.7


def test_crop_alone_never_flips():
  images = make_images(40)
  augmented = augmenter(PADDING, False)(keys(40), images)
  places(images, np.asarray(augmented), flips=(False,))


def test_flip_alone_flips_half():
  images = make_images(1000)
  augmented = np.asarray(augmenter(0, True)(keys(1000), images))
  same = (augmented == images).all(axis=(1, 2, 3))
  mirrored = (augmented == images[:, :, ::-1]).all(axis=(1, 2, 3))
  assert (same ^ mirrored).all()
  # Five standard deviations.
  assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / 1000**0.5


def test_neither_crop_nor_flip_changes_nothing():
  assert augment.crop_flip(crop_padding=0, flip=False) is None


def test_augmentation_does_not_depend_on_the_rest_of_the_batch():
  images, rngs = make_images(8), keys(8)
  whole = augmenter(PADDING, True)(rngs, images)
  halves = [
    augmenter(PADDING, True)(rngs[half], images[half])
    for half in (slice(0, 4), slice(4, 8))
  ]
  np.testing.assert_array_equal(whole, np.concatenate(halves))


def test_augmentation_follows_its_key():
  images = np.repeat(make_images(1), 8, axis=0)
  augmented = augmenter(PADDING, True)
  first = augmented(keys(8), images)
  np.testing.assert_array_equal(first, augmented(keys(8), images))
  assert (np.asarray(first) != augmented(keys(8, seed=1), images)).any()
  assert len({image.tobytes() for image in np.asarray(first)}) > 1


def test_floats_and_eager_calls_give_the_same():
  images, rngs = make_images(8), keys(8)
  expected = np.asarray(augmenter(PADDING, True)(rngs, images))
  floats = augmenter(PADDING, True)(rngs, images.astype(np.float32))
  assert floats.dtype == jnp.float32
  np.testing.assert_array_equal(floats, expected.astype(np.float32))
  eager = augment.crop_flip(crop_padding=PADDING, flip=True)(
    rngs, jnp.asarray(images)
  )
  np.testing.assert_array_equal(eager, expected)


def test_negative_padding():
  with pytest.raises(ValueError, match='crop_padding: got -1'):
    augment.crop_flip(crop_padding=-1, flip=True)


@augment.register('darker')
def darker(*, most=0.5):
  """Subtracts U(0, most) from each image."""

  def change(rngs, images):
    draws = jax.vmap(lambda rng: jax.random.uniform(rng, (), maxval=most))(rngs)
    return images - draws[:, None, None, None]

  return change


def test_chain_in_order_each_with_a_stream_of_its_name():
  images = jnp.asarray(make_images(4), jnp.float32) / 255
  rngs = keys(4)
  crop = {'crop_padding': PADDING, 'flip': True}
  both = augment.make_augmentation(('crop_flip', 'darker'), **crop)
  first = augment.make_augmentation(('crop_flip',), **crop)(rngs, images)
  # What runs before or behind it does not change what one draws.
  dark = augment.make_augmentation(('darker',))(rngs, images)
  change = (images - dark)[:, :1, :1, :1]
  np.testing.assert_allclose(both(rngs, images), first - change, atol=1e-6)
  np.testing.assert_array_equal(first, augmenter(PADDING, True)(rngs, images))


def test_options_and_names():
  weak = augment.make_augmentation(({'name': 'darker', 'most': 0.0},))
  images = jnp.asarray(make_images(2), jnp.float32)
  np.testing.assert_array_equal(weak(keys(2), images), images)
  assert augment.make_augmentation(('crop_flip',)) is None
  assert augment.make_augmentation(()) is None
  with pytest.raises(
    ValueError, match=r"augmentations: got 'cut', choices are"
  ):
    augment.make_augmentation(('cut',))
  with pytest.raises(ValueError, match=r"got \('least',\), choices for 'dark"):
    augment.make_augmentation(({'name': 'darker', 'least': 0},))


@pytest.mark.parametrize('axis', [1, 2])
@pytest.mark.parametrize('size', [1, 3, 7, 10])
def test_window_of_each_image(axis, size):
  images = np.arange(11 * 10 * 10 * 2).reshape(11, 10, 10, 2)
  first = np.arange(11) % (11 - size)
  windows = augment.window(images, jnp.asarray(first), size, axis=axis)
  for image, start, actual in zip(images, first, windows, strict=True):
    places = np.arange(start, start + size)
    np.testing.assert_array_equal(actual, image.take(places, axis=axis - 1))


def test_crop_has_no_loop_over_the_images():
  crop = augment.crop_flip(crop_padding=4, flip=True)
  rngs = jax.random.split(jax.random.key(0), 4)
  text = str(jax.make_jaxpr(crop)(rngs, jnp.zeros((4, 8, 8, 3))))
  assert 'gather' not in text
  assert 'dynamic_slice' not in text
  assert 'select_n' in text
