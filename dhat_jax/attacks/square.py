"""Square Attack: random search with square patches (ECCV 2020).

Follows the reference implementation within AutoAttack: margin loss, schedule
of window sizes not rescaled to the number of queries. No gradients.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from dhat_jax import divergences
from dhat_jax.arguments import integer
from dhat_jax.attacks import arguments, balls, logits
from dhat_jax.attacks.square_windows import (
  Draws,
  QueryDraw,
  StartDraw,
  corner,
  make_draws,
  make_stamp,
  stamp_table,
  tile_grid,
  window_mask,
  window_sizes,
)


def _sign(uniform: chex.Array) -> chex.Array:
  """Maps [0, 1) to -1 and 1 (and .5 to 0)."""
  return jnp.sign(2 * uniform - 1)


def start_linf(
  images: chex.Array, epsilon: chex.Numeric, draw: StartDraw
) -> chex.Array:
  """Vertical stripes of +-epsilon, one per column and channel."""
  return jnp.clip(images + epsilon * _sign(draw.stripes), 0.0, 1.0)


def start_l2(
  images: chex.Array, epsilon: chex.Numeric, draw: StartDraw
) -> chex.Array:
  """A grid of stamps with random signs, scaled to norm epsilon."""
  batch, height, width, channels = images.shape
  tile, first, rows, columns = tile_grid(height, width)
  stamp = jnp.asarray(make_stamp(tile), images.dtype)
  flips = draw.flips[:, None, None] > 0.5
  stamps = jnp.where(flips, stamp.T[None], stamp[None])  # [T, t, t]
  signs = _sign(draw.signs)[:, :, None, None, :]  # [B, T, 1, 1, C]
  tiles = stamps[None, :, :, :, None] * signs
  tiles = tiles.reshape(batch, rows, columns, tile, tile, channels)
  deltas = tiles.transpose(0, 1, 3, 2, 4, 5).reshape(
    batch, rows * tile, columns * tile, channels
  )
  margins = [
    # Without tiles there is nothing to pad: rows or columns of zeros.
    (first, length - first - count * tile) if count else (0, length)
    for length, count in [(height, rows), (width, columns)]
  ]
  deltas = jnp.pad(deltas, [(0, 0), *margins, (0, 0)])
  deltas = balls.normalise(deltas, 'l2')
  return jnp.clip(images + deltas * epsilon, 0.0, 1.0)


def propose_linf(
  best: chex.Array,
  images: chex.Array,
  epsilon: chex.Numeric,
  size: chex.Numeric,
  draw: QueryDraw,
) -> chex.Array:
  """Adds +-2 epsilon in one window, one sign per channel; clips."""
  _, height, width, _ = images.shape
  top = corner(draw.windows[0], height, size)
  left = corner(draw.windows[1], width, size)
  window = window_mask(top, left, size, height, width)
  colours = 2.0 * epsilon * _sign(draw.signs)[:, None, None, :]
  points = best + jnp.where(window, colours, 0.0)
  points = jnp.clip(points, images - epsilon, images + epsilon)
  return jnp.clip(points, 0.0, 1.0)


def _channel_norms(deltas: chex.Array) -> chex.Array:
  """L2 norm of each channel: [B, H, W, C] -> [B, 1, 1, C]."""
  return jnp.sqrt(jnp.sum(deltas**2, axis=(1, 2), keepdims=True))


def propose_l2(
  best: chex.Array,
  images: chex.Array,
  epsilon: chex.Numeric,
  size: chex.Numeric,
  draw: QueryDraw,
  stamps: chex.Array,
) -> chex.Array:
  """Moves the perturbation of a second window into a first one.

  The first window gets new content: its old direction plus a signed stamp. Its
  norm is that of both windows, and what is missing to epsilon.
  """
  _, height, width, channels = images.shape
  top, left, top2, left2 = (
    corner(draw.windows[n], length, size)
    for n, length in enumerate([height, width, height, width])
  )
  window = window_mask(top, left, size, height, width)
  second = window_mask(top2, left2, size, height, width)
  stamp = jnp.where(draw.flip > 0.5, stamps[1, size], stamps[0, size])
  stamp = jnp.roll(stamp, (top, left), (0, 1))[None, :, :, None]

  deltas = best - images
  spare = epsilon**2 - balls.sum_features(deltas**2)
  spare = balls.spread(jnp.maximum(spare, 0.0), images)
  held = _channel_norms(jnp.where(window | second, deltas, 0.0))
  old = jnp.where(window, deltas, 0.0)
  new = stamp * _sign(draw.signs)[:, None, None, :]
  new = new + old / (1e-12 + _channel_norms(old))
  new = new / (1e-12 + _channel_norms(new))
  new = new * jnp.sqrt(spare / channels + held**2)
  deltas = jnp.where(window, new, jnp.where(second, 0.0, deltas))
  deltas = balls.normalise(deltas, 'l2')
  return jnp.clip(images + deltas * epsilon, 0.0, 1.0)


def _make_propose(
  images: chex.Array,
  epsilon: chex.Numeric,
  *,
  norm: str,
  n_queries: int,
  p_init: float,
) -> Callable:
  """Creates the proposal of points: (best, query, draw) -> [B, H, W, C]."""
  _, height, width, _ = images.shape
  sizes = window_sizes(n_queries, height, width, p_init, norm)  # [n_queries]
  if norm == 'linf':
    sizes = jnp.asarray(sizes)
    return lambda best, query, draw: propose_linf(
      best, images, epsilon, sizes[query], draw
    )
  stamps = stamp_table(sizes, height, width)  # [2, max + 1, H, W]
  stamps, sizes = jnp.asarray(stamps, images.dtype), jnp.asarray(sizes)
  return lambda best, query, draw: propose_l2(
    best, images, epsilon, sizes[query], draw, stamps
  )


def square_points(
  logits_fn: Callable,
  images: chex.Array,
  labels: chex.Array,
  rng: chex.PRNGKey,
  *,
  epsilon: chex.Numeric,
  norm: str = 'linf',
  n_queries: int = 5000,
  first: chex.Numeric = 0,
  last: chex.Numeric | None = None,
  points: chex.Array | None = None,
  p_init: float = 0.8,
  active: chex.Array | None = None,
  indices: chex.Array | None = None,
  draws: Draws | None = None,
) -> chex.Array:
  """Runs queries first ... last - 1 of Square and returns its best points.

  A query needs only the best points of those before it. So a run may be cut
  into pieces, and the next piece may leave out broken examples.

  Args:
    logits_fn: images -> logits [B, K].
    images: float [B, H, W, C] in [0, 1].
    labels: int [B].
    rng: typed key.
    epsilon: radius of the ball, in [0, 1] units.
    norm: 'linf' or 'l2'.
    n_queries: of the whole run; the start is not counted.
    first: first query; 0 begins with a random start. May be traced.
    last: end of this piece; default n_queries. May be traced.
    points: [B, H, W, C], the best points after `first` queries.
    p_init: share of the image that the first windows cover.
    active: bool [B], the examples that are attacked; default all.
    indices: int [B], places in the data set.
    draws: source of randomness, instead of rng.

  Returns:
    float [B, H, W, C], points of lowest margin z_y - max other. The loop ends
    early once no active example has a positive margin. Logits that are not
    finite have the margin -infinity.

  Raises:
    ValueError: see `arguments` and `logits.problem`.
  """
  balls.check_choice('norm', norm, balls.NORMS)
  arguments.length('epsilon', epsilon, norm)
  integer('n_queries', n_queries, least=1)
  last = n_queries if last is None else last
  integer('first', first, least=0, most=n_queries)
  integer('last', last, least=0, most=n_queries)
  arguments.share('p_init', p_init)
  logits_fn, images, labels = logits.problem(logits_fn, images, labels, rank=4)
  epsilon = arguments.like(epsilon, images)
  active, indices = balls.whole_batch(images, active, indices)
  if draws is None:
    balls.check_keys('rng', rng, one=True)
    draws = make_draws(rng, indices, images.shape, norm, images.dtype)
  propose = _make_propose(
    images, epsilon, norm=norm, n_queries=n_queries, p_init=p_init
  )

  def margins_of(points):
    # The reference writes -inf into the logits; nothing is overwritten here.
    predicted = logits_fn(points)
    margins = -divergences.margin(predicted, labels)
    finite = jnp.all(jnp.isfinite(predicted), axis=1)
    return jnp.where(finite, margins, -jnp.inf)

  def unfinished(carry):
    query, _, margins = carry
    return (query < last) & jnp.any(active & (margins > 0))

  def ask(carry):
    query, best, margins = carry
    # The start is evaluated here too: the program holds the network once.
    begins = query < first
    number = jnp.maximum(query, 0)
    proposed = propose(best, number, draws.query(number))
    proposed = jnp.where(begins, best, proposed)
    new = margins_of(proposed)
    better = (margins > 0) & ((new < margins) | (new <= 0)) | begins
    return (
      query + 1,
      balls.select(better, proposed, best),
      jnp.where(better, new, margins),
    )

  start = start_linf if norm == 'linf' else start_l2
  begin = start(images, epsilon, draws.start())  # [B, H, W, C]
  if points is not None:
    begin = jnp.where(jnp.equal(first, 0), begin, points)
  unknown = jnp.full(len(images), jnp.inf, images.dtype)
  carry = jnp.asarray(first, jnp.int32) - 1, begin, unknown
  return jax.lax.while_loop(unfinished, ask, carry)[1]


def square(
  logits_fn: Callable,
  images: chex.Array,
  labels: chex.Array,
  rng: chex.PRNGKey,
  *,
  active: chex.Array | None = None,
  **options,
) -> tuple[chex.Array, chex.Array]:
  """Square Attack from one random start.

  Args:
    logits_fn: images -> logits [B, K].
    images: float [B, H, W, C] in [0, 1].
    labels: int [B].
    rng: typed key.
    active: bool [B], the examples that are attacked; default all.
    **options: of `square_points`.

  Returns:
    robust bool [B]: still predicted correctly, or not active.
    images_adv [B, H, W, C]: best points, or the image itself where robust.
  """
  points = square_points(
    logits_fn, images, labels, rng, active=active, **options
  )
  logits_fn, images = logits.checked(logits_fn), arguments.float_images(images)
  labels = arguments.classes('labels', labels, len(images))
  active, _ = balls.whole_batch(images, active, None)
  robust = balls.is_right(logits_fn(points), labels) | ~active
  return robust, balls.select(robust, images, points)
