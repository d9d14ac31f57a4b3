"""Augmentations of a box: Cutout, random erasing, CutMix.

A box is (top, left, height, width) in pixels, each int [B], and may reach
beyond the image. Pixels are chosen by their coordinates. XLA for the TPU would
turn slices at places that only the data knows into a loop over the images.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from dhat_jax import arguments
from dhat_jax.training.augment.base import Augmentation, Mixing, register

# Draws of a box until one fits; PyTorch's number.
_ATTEMPTS = 10


@register('cutout')
def cutout(
  *, size: int = 16, fill: str = 'zeros', probability: float = 1.0
) -> Augmentation:
  """Cutout: fills a square (DeVries & Taylor 2017).

  Its centre is anywhere in the image, so that the border may cut it.

  Differs from the published code, where a square of odd size is one pixel
  smaller. Zeros are black here; there they are the data set's mean.

  Args:
    size: side of the square, in pixels. Published: 16 for CIFAR-10, 8 for
      CIFAR-100.
    fill: 'zeros', the image's 'mean' colour, or 'random' pixels from U(0, 1).
    probability: share of the images that are changed.

  Raises:
    ValueError: an argument out of its range; in the augmentation, a square that
      covers the images wherever its centre is.
  """
  arguments.integer('size', size, 1)
  arguments.one_of('fill', fill, tuple(_FILLS))
  arguments.number('probability', probability, 0, 1)

  def augment(rngs, images):
    _check_size('cutout', size, images.shape)
    box_rngs, fill_rngs, chance_rngs = _split(rngs, 3)
    sides = jnp.full((images.shape[0], 2), size)
    inside = _centred(box_rngs, sides, images.shape)
    inside &= _chosen(chance_rngs, probability)
    return jnp.where(inside, _FILLS[fill](fill_rngs, images), images)

  return augment


@register('random_erasing')
def random_erasing(
  *,
  smallest_area: float = 0.02,
  largest_area: float = 0.4,
  smallest_aspect: float = 0.3,
  fill: str = 'random',
  probability: float = 0.5,
) -> Augmentation:
  """Random erasing: fills a rectangle (Zhong et al. 2020).

  Its area is U(smallest_area, largest_area) of the image. Height over width is
  U(smallest_aspect, 1 / smallest_aspect). It lies in the image, anywhere.

  Differs from the published code, which draws up to 100 times until height and
  width are smaller than the image's. Here 10 draws are made at once and the
  first that fits is taken. An image for which none fits stays as it is.

  Args:
    smallest_area: share of the image, in [0, 1].
    largest_area: share of the image, in [smallest_area, 1].
    smallest_aspect: in (0, 1].
    fill: as in `cutout`.
    probability: share of the images that are changed.

  Raises:
    ValueError: an argument out of its range.
  """
  arguments.number('smallest_area', smallest_area, 0, 1)
  arguments.number('largest_area', largest_area, smallest_area, 1)
  arguments.number('smallest_aspect', smallest_aspect, above=0, most=1)
  arguments.one_of('fill', fill, tuple(_FILLS))
  arguments.number('probability', probability, 0, 1)
  most_aspect = 1 / smallest_aspect

  def draw(rng, height, width):
    """Returns one box: four integers. It is empty where none fits."""
    sides_rng, top_rng, left_rng = jax.random.split(rng, 3)
    draws = jax.random.uniform(sides_rng, (2, _ATTEMPTS))
    area = smallest_area + (largest_area - smallest_area) * draws[0]
    aspect = smallest_aspect + (most_aspect - smallest_aspect) * draws[1]
    area *= height * width
    sides = jnp.round(jnp.sqrt(jnp.stack([area * aspect, area / aspect])))
    fits = (sides[0] < height) & (sides[1] < width)  # [10]
    is_first = fits & (jnp.cumsum(fits) == 1)
    sides = jnp.where(is_first[None], sides.astype(jnp.int32), 0).sum(axis=1)
    top = jax.random.randint(top_rng, (), 0, height - sides[0] + 1)
    left = jax.random.randint(left_rng, (), 0, width - sides[1] + 1)
    return top, left, *sides

  def augment(rngs, images):
    box_rngs, fill_rngs, chance_rngs = _split(rngs, 3)
    box = jax.vmap(lambda rng: draw(rng, *images.shape[1:3]))(box_rngs)
    inside = _inside(box, images.shape)
    inside &= _chosen(chance_rngs, probability)
    return jnp.where(inside, _FILLS[fill](fill_rngs, images), images)

  return augment


@register('cutmix')
def cutmix(
  *, alpha: float = 1.0, size: int = 0, probability: float = 1.0
) -> Mixing:
  """CutMix: pastes a box of another image, mixes the labels (Yun et al. 2019).

  The box has height and width sqrt(1 - s) of the image's, rounded down, with s
  from Beta(alpha, alpha), or is a square of a fixed size. Its centre is
  anywhere in the image, so that the border may cut it. The share of the image's
  label is that of the pixels that it keeps. The loss and the attack see both
  labels.

  Differs from the published code, where one box serves a whole batch, partners
  are a permutation of it, and odd sides are one pixel shorter.

  Args:
    alpha: of the Beta distribution. Published: 1, which is U(0, 1).
    size: side of a square of fixed size, in pixels; 0 for one by `alpha`.
    probability: share of the images that are mixed. Published: .5 for CIFAR, 1
      for ImageNet.

  Raises:
    ValueError: an argument out of its range; in the augmentation, a square that
      covers the images wherever its centre is.
  """
  arguments.number('alpha', alpha, above=0)
  arguments.integer('size', size, 0)
  arguments.number('probability', probability, 0, 1)

  def draw_cut(rng):
    """Returns 1 - s, which has the distribution of s."""
    if alpha == 1:
      return jax.random.uniform(rng)
    return jax.random.beta(rng, alpha, alpha)

  def mix(rngs, images, partners):
    box_rngs, size_rngs, chance_rngs = _split(rngs, 3)
    if size:
      _check_size('cutmix', size, images.shape)
      sides = jnp.full((images.shape[0], 2), size)
    else:
      ratio = jnp.sqrt(jax.vmap(draw_cut)(size_rngs))[:, None]  # [B, 1]
      whole = jnp.array([images.shape[1:3]], ratio.dtype)
      sides = jnp.floor(ratio * whole).astype(jnp.int32)  # [B, 2]
    inside = _centred(box_rngs, sides, images.shape)
    inside &= _chosen(chance_rngs, probability)
    pasted = jnp.mean(inside, axis=(1, 2, 3), dtype=images.dtype)
    return jnp.where(inside, partners, images), 1 - pasted

  return Mixing(mix)


def _check_size(name: str, size: int, shape: tuple[int, ...]) -> None:
  """Raises ValueError for a square that always covers whole images."""
  height, width = shape[1:3]
  largest = 2 * max(height, width) - 2
  if size > largest:
    raise ValueError(
      f'{name}: size: got {size}, expected at most {largest}: it would cover '
      f'images of {height} x {width} pixels wherever its centre is'
    )


def _split(rngs: chex.PRNGKey, count: int) -> chex.PRNGKey:
  """Returns `count` arrays of keys: [B] -> [count, B]."""
  return jax.vmap(lambda rng: jax.random.split(rng, count), out_axes=1)(rngs)


def _chosen(rngs: chex.PRNGKey, probability: float) -> chex.Array:
  """Draws which images change: keys [B] -> bool [B, 1, 1, 1]."""
  draw = jax.vmap(lambda rng: jax.random.bernoulli(rng, probability))
  return draw(rngs)[:, None, None, None]


def _centred(
  rngs: chex.PRNGKey, sides: chex.Array, shape: tuple[int, ...]
) -> chex.Array:
  """Draws boxes around a pixel of each image: bool [B, H, W, 1].

  Args:
    rngs: keys [B].
    sides: int [B, 2], height and width.
    shape: of the images.
  """
  whole = jnp.array(shape[1:3])
  centre = jax.vmap(lambda rng: jax.random.randint(rng, (2,), 0, whole))(rngs)
  return _inside((*(centre - sides // 2).T, *sides.T), shape)


def _inside(box: tuple[chex.Array, ...], shape: tuple[int, ...]) -> chex.Array:
  """Returns which pixels a box [B] of each image has: bool [B, H, W, 1]."""
  top, left, height, width = (side[:, None, None, None] for side in box)
  rows = jnp.arange(shape[1])[None, :, None, None]
  columns = jnp.arange(shape[2])[None, None, :, None]
  in_rows = (rows >= top) & (rows < top + height)
  return in_rows & (columns >= left) & (columns < left + width)


def _zeros(rngs: chex.PRNGKey, images: chex.Array) -> chex.Array:
  del rngs
  return jnp.zeros_like(images)


def _mean(rngs: chex.PRNGKey, images: chex.Array) -> chex.Array:
  del rngs
  return images.mean(axis=(1, 2), keepdims=True)


def _random(rngs: chex.PRNGKey, images: chex.Array) -> chex.Array:
  draw = jax.vmap(
    lambda rng: jax.random.uniform(rng, images.shape[1:], images.dtype)
  )
  return draw(rngs)


_FILLS: dict[str, Callable] = {
  'zeros': _zeros,
  'mean': _mean,
  'random': _random,
}
