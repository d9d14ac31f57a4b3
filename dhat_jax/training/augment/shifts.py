"""Augmentations that move an image: random crop and flip."""

import chex
import jax
import jax.numpy as jnp

from dhat_jax import arguments
from dhat_jax.training.augment.base import STANDARD, Augmentation, register


@register(STANDARD)
def crop_flip(*, crop_padding: int, flip: bool) -> Augmentation | None:
  """Random crop after zero padding, and random horizontal flip.

  It takes floats or uint8.

  Args:
    crop_padding: pixels of zeros on each side; a window of H x W is cut out. 0
      does not crop.
    flip: whether to flip with probability 1/2.

  Returns:
    The augmentation, or None where nothing changes.

  Raises:
    ValueError: negative padding; in the augmentation, padding larger than the
      images.
  """
  arguments.integer('crop_padding', crop_padding, 0)
  arguments.flag('flip', flip)
  if not crop_padding and not flip:
    return None

  def augment(rngs, images):
    height, width = images.shape[1:3]
    arguments.integer('crop_padding', crop_padding, 0, max(height, width))
    pad = (crop_padding, crop_padding)
    images = jnp.pad(images, ((0, 0), pad, pad, (0, 0)))

    def draw(rng):
      crop_rng, flip_rng = jax.random.split(rng)
      first = jax.random.randint(crop_rng, (2,), 0, 2 * crop_padding + 1)
      return first, jax.random.bernoulli(flip_rng) & flip

    first, flips = jax.vmap(draw)(rngs)  # [B, 2], [B]
    images = window(images, first[:, 0], height, axis=1)
    images = window(images, first[:, 1], width, axis=2)
    return jnp.where(flips[:, None, None, None], images[:, :, ::-1], images)

  return augment


def window(
  images: chex.Array, first: chex.Array, size: int, *, axis: int
) -> chex.Array:
  """Cuts a window of its own out of each image, along one axis.

  By a selection for each binary digit of `first`. XLA for the TPU would turn
  slices at places that only the data knows into a loop over the images.

  Args:
    images: [B, H, W, C].
    first: int [B], the window's first place, 0 to images.shape[axis] - size.
    size: of the window.
    axis: 1 or 2.
  """
  digits = (images.shape[axis] - size).bit_length()
  pad = [(0, 0)] * images.ndim
  pad[axis] = (0, size + 2**digits - 1 - images.shape[axis])
  images = jnp.pad(images, pad)
  for digit in reversed(range(digits)):
    step = 2**digit
    length = size + step - 1  # what the smaller digits can still reach
    moves = (first & step > 0).reshape(-1, 1, 1, 1)
    images = jnp.where(
      moves,
      jax.lax.slice_in_dim(images, step, step + length, axis=axis),
      jax.lax.slice_in_dim(images, 0, length, axis=axis),
    )
  return images
