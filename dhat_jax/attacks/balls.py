"""Balls around images: projection, steepest ascent, random starts.

Everything here works on [B, ...] of any rank, one ball per example. The
radius may be a traced number.
"""

import math

import chex
import jax
import jax.numpy as jnp

NORMS = ('linf', 'l2')
STARTS = ('none', 'uniform', 'gaussian')

# Standard deviation of the start that TRADES and MART publish.
GAUSSIAN_STD = 0.001


def check_choice(name: str, got: str, choices: tuple[str, ...]) -> None:
  """Raises ValueError unless `got` is one of the choices."""
  if got not in choices:
    raise ValueError(f'{name}: got {got!r}, choices are {choices}')


def spread(values: chex.Array, images: chex.Array) -> chex.Array:
  """Gives one value per example the images' rank: [B] -> [B, 1, ...]."""
  return values.reshape(-1, *[1] * (images.ndim - 1))


def _unit(vectors: chex.Array) -> chex.Array:
  """Scales each example to L2 norm 1; zero stays zero: [B, ...] -> same."""
  axes = tuple(range(1, vectors.ndim))
  # Divided by the largest entry first: the squares of a saturated network's
  # gradients, 1e-25 and less, would all underflow to zero.
  largest = jnp.max(jnp.abs(vectors), axis=axes)
  scaled = vectors / spread(jnp.where(largest > 0, largest, 1), vectors)
  norms = jnp.sqrt(jnp.sum(scaled**2, axis=axes))
  return scaled / spread(jnp.where(norms > 0, norms, 1), vectors)


def project(
  images_adv: chex.Array,
  images: chex.Array,
  epsilon: chex.Numeric,
  norm: str,
) -> chex.Array:
  """Projects on the ball around the images, then on [0, 1].

  The result is in both: images are in [0, 1], so clipping to it only moves
  points towards them.

  Args:
    images_adv: float [B, ...].
    images: float [B, ...] in [0, 1], the balls' centres.
    epsilon: radius in [0, 1] units, >= 0.
    norm: 'linf' or 'l2'.

  Returns:
    float [B, ...], inside both up to rounding.

  Raises:
    ValueError: unknown norm.
  """
  check_choice('norm', norm, NORMS)
  epsilon = jnp.asarray(epsilon, images.dtype)
  if norm == 'linf':
    images_adv = jnp.clip(images_adv, images - epsilon, images + epsilon)
    return jnp.clip(images_adv, 0.0, 1.0)
  deltas = images_adv - images
  norms = jnp.sqrt(jnp.sum(deltas**2, axis=tuple(range(1, deltas.ndim))))
  # Exactly 1 inside the ball, and no 0/0 at its centre.
  factors = jnp.where(norms > epsilon, epsilon / jnp.maximum(norms, 1e-12), 1)
  return jnp.clip(images + deltas * spread(factors, images), 0.0, 1.0)


def ascent(gradients: chex.Array, norm: str) -> chex.Array:
  """Returns the direction of steepest ascent, of size 1 in the norm.

  The sign in Linf, the normalised gradient in L2. A zero gradient gives zero;
  any other, however small, gives a full direction.

  Differs from the usual g / (|g| + 1e-12) in L2, which stands still where
  gradients vanish.

  Args:
    gradients: float [B, ...].
    norm: 'linf' or 'l2'.

  Returns:
    float [B, ...].

  Raises:
    ValueError: unknown norm.
  """
  check_choice('norm', norm, NORMS)
  return jnp.sign(gradients) if norm == 'linf' else _unit(gradients)


def per_example_keys(rng: chex.PRNGKey, batch_size: int) -> chex.PRNGKey:
  """Returns one typed key per example.

  Args:
    rng: one typed key, which is folded with 0 ... B - 1, or already one typed
      key per example [B], returned as it is.
    batch_size: B.

  Returns:
    Typed keys [B].

  Raises:
    ValueError: not a typed key, or of another shape.
  """
  if not jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
    raise ValueError(
      f'rng: got {rng.dtype} {rng.shape}, expected a typed key, as from '
      'jax.random.key'
    )
  if rng.shape == ():
    return jax.vmap(jax.random.fold_in, (None, 0))(rng, jnp.arange(batch_size))
  if rng.shape != (batch_size,):
    raise ValueError(
      f'rng: got keys of shape {rng.shape}, expected () or ({batch_size},)'
    )
  return rng


def _draw(sample, rngs: chex.PRNGKey, images: chex.Array) -> chex.Array:
  """Draws each example's noise from its own key: [B] -> [B, ...]."""
  # The same numbers as drawn in the image's shape, but XLA's CPU compiler
  # takes several times as long for random bits of that shape.
  size = math.prod(images.shape[1:])
  flat = jax.vmap(lambda rng: sample(rng, (size,), images.dtype))(rngs)
  return flat.reshape(images.shape)


def _uniform(rngs, images, norm):
  """Draws uniformly from the unit balls: -> [B, ...]."""
  if norm == 'linf':
    return 2 * _draw(jax.random.uniform, rngs, images) - 1
  directions = _unit(_draw(jax.random.normal, rngs, images))
  radius_rngs = jax.vmap(lambda rng: jax.random.fold_in(rng, 1))(rngs)
  fractions = jax.vmap(jax.random.uniform)(radius_rngs).astype(images.dtype)
  # The volume inside radius r grows as r to the number of dimensions.
  radii = fractions ** (1 / max(images[0].size, 1))
  return directions * spread(radii, images)


def random_start(
  rngs: chex.PRNGKey,
  images: chex.Array,
  epsilon: chex.Numeric,
  norm: str,
  start: str,
) -> chex.Array:
  """Returns where an attack starts.

  Each example's noise depends on its own key alone, not on the batch.

  Args:
    rngs: typed keys [B], see `per_example_keys`.
    images: float [B, ...] in [0, 1].
    epsilon: radius of the ball in [0, 1] units.
    norm: 'linf' or 'l2'.
    start: 'none': the images. 'uniform': uniform in the ball (U(-eps, eps) per
      value in Linf, as Madry et al.; in L2 uniform in the solid ball), clipped
      to [0, 1]. 'gaussian': images + .001 N(0, 1), as TRADES and MART publish
      it: it is *not* projected, since there too only the iterates are. Project
      it where it is used as a result.

  Returns:
    float [B, ...], the images' dtype.

  Raises:
    ValueError: unknown norm or start.
  """
  check_choice('norm', norm, NORMS)
  check_choice('start', start, STARTS)
  if start == 'none':
    return images
  if start == 'gaussian':
    return images + GAUSSIAN_STD * _draw(jax.random.normal, rngs, images)
  epsilon = jnp.asarray(epsilon, images.dtype)
  return jnp.clip(images + epsilon * _uniform(rngs, images, norm), 0.0, 1.0)
