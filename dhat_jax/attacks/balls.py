"""Balls around images, and operations of attacks on each example.

Projection, steepest ascent, random starts; norms, draws and predictions, one
value per example. Everything works on [B, ...] of any rank. The radius may be
a traced number.
"""

import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

NORMS = ('linf', 'l2')
STARTS = ('none', 'uniform', 'gaussian')

# Standard deviation of the start that TRADES and MART publish.
GAUSSIAN_STD = 0.001
# With other generators an example's noise would depend on its batch.
_GENERATOR = 'threefry2x32'


def check_choice(name: str, got: str, choices: tuple[str, ...]) -> None:
  """Raises ValueError unless `got` is one of the choices."""
  if got not in choices:
    raise ValueError(f'{name}: got {got!r}, choices are {choices}')


def spread(values: chex.Array, images: chex.Array) -> chex.Array:
  """Gives one value per example the images' rank: [B] -> [B, 1, ...]."""
  return values.reshape(-1, *[1] * (images.ndim - 1))


def whole_batch(
  images: chex.Array, active: chex.Array | None, indices: chex.Array | None
) -> tuple[chex.Array, chex.Array]:
  """Fills in a batch: all examples are attacked, at places 0 ... B - 1.

  Args:
    images: [B, ...].
    active: bool [B], the examples that are attacked, or None.
    indices: int [B], places in the data set, or None.

  Returns:
    active bool [B], indices int [B].

  Raises:
    ValueError: another shape or dtype.
  """
  count = images.shape[0]
  if active is None:
    active = jnp.ones(count, bool)
  if indices is None:
    indices = jnp.arange(count)
  active, indices = jnp.asarray(active), jnp.asarray(indices)
  if active.shape != (count,) or active.dtype != jnp.bool_:
    raise ValueError(
      f'active: got {active.dtype} {active.shape}, expected bool [{count}]'
    )
  if indices.shape != (count,) or not jnp.issubdtype(
    indices.dtype, jnp.integer
  ):
    raise ValueError(
      f'indices: got {indices.dtype} {indices.shape}, expected int [{count}]'
    )
  return active, indices


def select(
  condition: chex.Array, chosen: chex.Array, other: chex.Array
) -> chex.Array:
  """Takes whole examples: bool [B], [B, ...], [B, ...] -> [B, ...]."""
  return jnp.where(spread(condition, chosen), chosen, other)


def sum_features(values: chex.Array) -> chex.Array:
  """Sums everything but the batch axis: [B, ...] -> [B]."""
  return jnp.sum(values.reshape(values.shape[0], -1), axis=1)


def norms(deltas: chex.Array, norm: str) -> chex.Array:
  """Norm of each perturbation: [B, ...] -> [B]."""
  if norm == 'linf':
    return jnp.max(jnp.abs(deltas.reshape(deltas.shape[0], -1)), axis=1)
  return jnp.sqrt(sum_features(deltas**2))


def normalise(deltas: chex.Array, norm: str) -> chex.Array:
  """Scales each perturbation to norm 1 (0 stays 0): [B, ...] -> same.

  As in the published evaluation attacks: deltas / (norm + 1e-12).
  """
  return deltas / (spread(norms(deltas, norm), deltas) + 1e-12)


def is_right(logits: chex.Array, labels: chex.Array) -> chex.Array:
  """Whether each prediction is correct; the only definition of it.

  The first of the largest logits is the prediction. Logits with NaN or infinity
  predict nothing, and are wrong for any label.

  Args:
    logits: float [B, K], a JAX or a NumPy array.
    labels: int [B].

  Returns:
    bool [B], a NumPy array for NumPy logits.
  """
  xp = np if isinstance(logits, np.ndarray) else jnp
  finite = xp.isfinite(logits).all(axis=-1)  # [B]
  return finite & (logits.argmax(axis=-1) == labels)


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

  The result is in both: images are in [0, 1], so clipping moves points only
  towards them.

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
  """Direction of steepest ascent, of size 1 in the norm.

  The sign in Linf, the normalised gradient in L2. A zero gradient gives zero;
  any other, however small, gives a full direction.

  Differs from the usual g / (|g| + 1e-12) in L2, which stops where gradients
  vanish.

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


def check_keys(name: str, rng: chex.PRNGKey, *, one: bool = False) -> None:
  """Raises ValueError for anything but typed threefry keys.

  Args:
    name: of the argument.
    rng: one key, or several.
    one: whether exactly one is required.
  """
  dtype, shape = getattr(rng, 'dtype', None), getattr(rng, 'shape', None)
  advice = f'as from jax.random.key(seed, impl={_GENERATOR!r})'
  if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
    got = type(rng).__name__ if dtype is None else f'{dtype} {shape}'
    raise ValueError(f'{name}: got {got}, expected a typed key, {advice}')
  if str(jax.random.key_impl(rng)) != _GENERATOR:
    raise ValueError(f'{name}: got {dtype}, expected a threefry key, {advice}')
  if one and shape != ():
    raise ValueError(f'{name}: got keys of shape {shape}, expected one key')


def per_example_keys(rng: chex.PRNGKey, batch_size: int) -> chex.PRNGKey:
  """One typed key per example.

  Args:
    rng: one typed key, which is folded with 0 ... B - 1; or one typed key per
      example [B], which is returned unchanged.
    batch_size: B.

  Returns:
    Typed keys [B].

  Raises:
    ValueError: not a typed threefry key, or another shape.
  """
  check_keys('rng', rng)
  if rng.shape == ():
    return jax.vmap(jax.random.fold_in, (None, 0))(rng, jnp.arange(batch_size))
  if rng.shape != (batch_size,):
    raise ValueError(
      f'rng: got keys of shape {rng.shape}, expected () or ({batch_size},)'
    )
  return rng


def _draw(
  sample: Callable, rngs: chex.PRNGKey, shape: tuple[int, ...]
) -> chex.Array:
  """Draws from each example's key: (key, shape) -> array, keys [B], shape.

  Returns:
    [B, *shape].
  """
  # The same numbers as drawn in the image's shape, but XLA's CPU compiler
  # takes several times as long for random bits of that shape.
  flat = jax.vmap(lambda rng: sample(rng, (math.prod(shape),)))(rngs)
  return flat.reshape(*rngs.shape, *shape)


def draw_each(
  sample: Callable,
  rng: chex.PRNGKey,
  indices: chex.Array,
  shape: tuple[int, ...],
) -> chex.Array:
  """Draws noise for each example by its place in the data set.

  Args:
    sample: (key, shape) -> array, as in `jax.random`.
    rng: typed key shared by all examples, or one per example [B].
    indices: int [B], each example's place in the data set. Draws depend on this
      and rng only, so any batches give the same.
    shape: of one example's draw.

  Returns:
    [B, *shape].
  """
  axes = (None if rng.ndim == 0 else 0, 0)
  return _draw(sample, jax.vmap(jax.random.fold_in, axes)(rng, indices), shape)


def draw_perturbations(
  rng: chex.PRNGKey, indices: chex.Array, images: chex.Array, norm: str
) -> chex.Array:
  """Draws U(-1, 1) per value in Linf, N(0, 1) in L2, to be scaled.

  Args:
    rng: typed key shared by all examples, or one per example [B].
    indices: int [B], see `draw_each`.
    images: float [B, ...], whose shape and dtype the draws have.
    norm: 'linf' or 'l2'.

  Returns:
    float [B, ...].
  """

  def sample(key, shape):
    if norm == 'linf':
      return jax.random.uniform(key, shape, images.dtype, -1.0, 1.0)
    return jax.random.normal(key, shape, images.dtype)

  return draw_each(sample, rng, indices, images.shape[1:])


def _draw_like(
  sample: Callable, rngs: chex.PRNGKey, images: chex.Array
) -> chex.Array:
  """Draws noise of the images' shape and dtype: keys [B] -> [B, ...]."""
  return _draw(
    lambda rng, shape: sample(rng, shape, images.dtype), rngs, images.shape[1:]
  )


def _uniform(rngs: chex.PRNGKey, images: chex.Array, norm: str) -> chex.Array:
  """Draws uniformly from the unit balls: keys [B] -> [B, ...]."""
  if norm == 'linf':
    return 2 * _draw_like(jax.random.uniform, rngs, images) - 1
  directions = _unit(_draw_like(jax.random.normal, rngs, images))
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
  """Draws the starting points of an attack.

  Each example's noise depends on its own key alone, not on the batch.

  Args:
    rngs: typed keys [B], see `per_example_keys`.
    images: float [B, ...] in [0, 1].
    epsilon: radius of the ball in [0, 1] units.
    norm: 'linf' or 'l2'.
    start: 'none': the images. 'uniform': uniform in the ball, clipped to [0,
      1]. In Linf this is U(-eps, eps) per value, as in Madry et al.; in L2 it
      is uniform in the solid ball. 'gaussian': images + .001 N(0, 1), as TRADES
      and MART publish it. It is *not* projected, as in their code; project it
      where it is a result.

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
    return images + GAUSSIAN_STD * _draw_like(jax.random.normal, rngs, images)
  epsilon = jnp.asarray(epsilon, images.dtype)
  return jnp.clip(images + epsilon * _uniform(rngs, images, norm), 0.0, 1.0)
