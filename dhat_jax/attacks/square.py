"""Square Attack: random search with square patches (ECCV 2020).

Follows the reference implementation within AutoAttack: margin loss, schedule
of window sizes not rescaled to the number of queries. No gradients.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dhat_jax import divergences
from dhat_jax.attacks import balls, per_example

# Windows shrink after these queries: the area halves each time.
SCHEDULE = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


class StartDraw(NamedTuple):
  """Uniform draws in [0, 1) behind the start; T tiles of the L2 start."""

  stripes: chex.Array  # Linf: [B, 1, W, C]
  flips: chex.Array  # L2: [T]
  signs: chex.Array  # L2: [B, T, C]


class QueryDraw(NamedTuple):
  """Uniform draws in [0, 1) behind one query; windows serve all examples."""

  windows: chex.Array  # [4]: top, left, and for L2 those of a second window
  flip: chex.Array  # L2: [], transposes the stamp
  signs: chex.Array  # Linf: [1, C]; L2: [B, C]


class Draws(NamedTuple):
  """Where randomness comes from: replaceable by recorded draws."""

  start: Callable  # () -> StartDraw
  query: Callable  # (query) -> QueryDraw


def tile_grid(height: int, width: int) -> tuple[int, int, int, int]:
  """Where the L2 start's tiles lie, all within the image.

  Tiles that would stick out of the image are left out; the reference fails on
  them unless they are of side 1.

  Returns:
    side of a tile (a fifth of the height), first row and column, numbers of
    rows and of columns of tiles.
  """
  tile = max(height // 5, 1)
  first = max((height - tile * 5) // 2, 0)
  rows, columns = ((length - first) // tile for length in (height, width))
  return tile, first, rows, columns


def make_draws(
  rng: chex.PRNGKey, indices: chex.Array, shape: tuple, norm: str, dtype
) -> Draws:
  """Returns the usual source of randomness.

  Windows depend on the key and the query alone, what belongs to an example
  also on its place in the data set.

  Differs from the reference: there windows are shared within a batch, and all
  draws depend on which examples the batch still holds.

  Args:
    rng: typed key.
    indices: int [B].
    shape: (B, H, W, C).
    norm: 'linf' or 'l2'.
    dtype: of the draws.
  """
  _, height, width, channels = shape
  _, _, rows, columns = tile_grid(height, width)
  tiles = rows * columns
  start_rng, flip_rng, query_rng = jax.random.split(rng, 3)

  def uniform(key, shape):
    return jax.random.uniform(key, shape, dtype)

  def start():
    return StartDraw(
      per_example.draw_each(uniform, start_rng, indices, (1, width, channels)),
      uniform(flip_rng, (tiles,)),
      per_example.draw_each(uniform, start_rng, indices, (tiles, channels)),
    )

  def query(i):
    shared_rng, own_rng = jax.random.split(jax.random.fold_in(query_rng, i))
    shared = uniform(shared_rng, (5 + channels,))
    signs = shared[None, 5:]
    if norm == 'l2':
      signs = per_example.draw_each(uniform, own_rng, indices, (channels,))
    return QueryDraw(shared[:4], shared[4], signs)

  return Draws(start, query)


def window_sizes(
  n_queries: int, height: int, width: int, p_init: float, norm: str
) -> np.ndarray:
  """Side of the window at each query: int [n_queries].

  round(sqrt(p H W)) with halves to even, p = p_init halved along `SCHEDULE`;
  in L2 odd and at least 3.
  """
  sizes = np.zeros(n_queries, np.int32)
  for query in range(n_queries):
    p = p_init / 2 ** sum(query > end for end in SCHEDULE)
    size = round(math.sqrt(p * height * width))
    size = max(size, 1) if norm == 'linf' else max(size, 3) // 2 * 2 + 1
    sizes[query] = min(size, height, width)
  return sizes


def _pyramid(rows: int, columns: int) -> np.ndarray:
  """Concentric squares that grow towards the middle: [rows, columns].

  A cell r squares away from the middle is the sum of 1/n^2 for n > r.
  """
  middle_row, middle_column = rows // 2, columns // 2
  squares = max(middle_row, middle_column) + 1
  heights = np.array([1.0 / (n + 1) ** 2 for n in range(squares)])
  sums = np.cumsum(heights[::-1])[::-1]
  ring = np.maximum(
    abs(np.arange(rows)[:, None] - middle_row),
    abs(np.arange(columns)[None, :] - middle_column),
  )
  stamp = sums[ring]
  return stamp / max(np.sqrt(np.sum(stamp**2)), 1e-30)


def make_stamp(size: int) -> np.ndarray:
  """The L2 perturbation of one window, of norm 1: [size, size].

  Positive in the upper half, negative in the lower one.
  """
  upper = _pyramid(size // 2, size)
  lower = _pyramid(size - size // 2, size)
  stamp = np.concatenate([upper, -lower])
  return stamp / np.sqrt(np.sum(stamp**2))


def _stamp_table(sizes, height, width):
  """Stamps by size in the upper left corner: [max + 1, H, W]."""
  table = np.zeros((max(sizes) + 1, height, width))
  for size in set(sizes.tolist()):
    table[size, :size, :size] = make_stamp(size)
  return table


def _sign(uniform):
  return jnp.sign(2 * uniform - 1)


def _corner(uniform, length, size):
  # A window at length - size is never drawn: the reference's off-by-one.
  return jnp.floor(uniform * (length - size)).astype(jnp.int32)


def _window(top, left, size, height, width):
  """Ones in the window: bool [1, H, W, 1]."""
  rows, columns = jnp.arange(height), jnp.arange(width)
  rows = (rows >= top) & (rows < top + size)
  columns = (columns >= left) & (columns < left + size)
  return (rows[:, None] & columns[None, :])[None, :, :, None]


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
    (first, length - first - count * tile)
    for length, count in [(height, rows), (width, columns)]
  ]
  deltas = jnp.pad(deltas, [(0, 0), *margins, (0, 0)])
  deltas = per_example.normalise(deltas, 'l2')
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
  top = _corner(draw.windows[0], height, size)
  left = _corner(draw.windows[1], width, size)
  window = _window(top, left, size, height, width)
  colours = 2.0 * epsilon * _sign(draw.signs)[:, None, None, :]
  points = best + jnp.where(window, colours, 0.0)
  points = jnp.clip(points, images - epsilon, images + epsilon)
  return jnp.clip(points, 0.0, 1.0)


def _channel_norms(deltas):
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

  What both windows hold, and what is missing to epsilon, becomes the norm of
  the first window's new content: its old direction plus a signed stamp.
  """
  _, height, width, channels = images.shape
  top, left, top2, left2 = (
    _corner(draw.windows[n], length, size)
    for n, length in enumerate([height, width, height, width])
  )
  window = _window(top, left, size, height, width)
  second = _window(top2, left2, size, height, width)
  stamp = jnp.where(draw.flip > 0.5, stamps[size].T, stamps[size])
  stamp = jnp.roll(stamp, (top, left), (0, 1))[None, :, :, None]

  deltas = best - images
  spare = epsilon**2 - per_example.sum_features(deltas**2)
  spare = balls.spread(jnp.maximum(spare, 0.0), images)
  held = _channel_norms(jnp.where(window | second, deltas, 0.0))
  old = jnp.where(window, deltas, 0.0)
  new = stamp * _sign(draw.signs)[:, None, None, :]
  new = new + old / (1e-12 + _channel_norms(old))
  new = new / (1e-12 + _channel_norms(new))
  new = new * jnp.sqrt(spare / channels + held**2)
  deltas = jnp.where(window, new, jnp.where(second, 0.0, deltas))
  deltas = per_example.normalise(deltas, 'l2')
  return jnp.clip(images + deltas * epsilon, 0.0, 1.0)


def _check(images, norm):
  balls.check_choice('norm', norm, balls.NORMS)
  if images.ndim != 4:
    raise ValueError(
      f'Square: got images of shape {images.shape}, expected [B, H, W, C]'
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

  The best points are all that a query needs of those before it, so that a run
  may be cut into pieces and broken examples be left out of the next one.

  Args:
    logits_fn: images -> logits [B, K].
    images: float [B, H, W, C] in [0, 1].
    labels: int [B].
    rng: typed key.
    epsilon: radius of the ball, in [0, 1] units.
    norm: 'linf' or 'l2'.
    n_queries: of the whole run; the start is not counted.
    first: query to begin with; 0 begins with a random start. May be traced.
    last: end of this piece; default n_queries. May be traced.
    points: [B, H, W, C], the best points after `first` queries.
    p_init: share of the image that the first windows cover.
    active: bool [B], the examples that are attacked; default all.
    indices: int [B], places in the data set.
    draws: source of randomness, instead of rng.

  Returns:
    float [B, H, W, C], points of lowest margin z_y - max other; the loop ends
    early once no active example has a positive margin.
  """
  _check(images, norm)
  if active is None:
    active = jnp.ones(images.shape[0], bool)
  if indices is None:
    indices = jnp.arange(images.shape[0])
  if last is None:
    last = n_queries
  if draws is None:
    draws = make_draws(rng, indices, images.shape, norm, images.dtype)
  _, height, width, _ = images.shape
  sizes = window_sizes(n_queries, height, width, p_init, norm)
  stamps = None
  if norm == 'l2':
    stamps = _stamp_table(sizes, height, width)
    stamps = jnp.asarray(stamps, images.dtype)
  sizes = jnp.asarray(sizes)

  def margins_of(points):
    # The reference writes -inf into the logits; nothing is overwritten here.
    return -divergences.margin(logits_fn(points), labels)

  def unfinished(carry):
    query, _, margins = carry
    return (query < last) & jnp.any(active & (margins > 0))

  def ask(carry):
    query, best, margins = carry
    arguments = best, images, epsilon, sizes[query], draws.query(query)
    if norm == 'linf':
      proposed = propose_linf(*arguments)
    else:
      proposed = propose_l2(*arguments, stamps)
    new = margins_of(proposed)
    better = (margins > 0) & ((new < margins) | (new <= 0))
    return (
      query + 1,
      per_example.select(better, proposed, best),
      jnp.where(better, new, margins),
    )

  start = start_linf if norm == 'linf' else start_l2
  begin = start(images, epsilon, draws.start())
  if points is not None:
    begin = jnp.where(jnp.equal(first, 0), begin, points)
  carry = jnp.asarray(first, jnp.int32), begin, margins_of(begin)
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
  if active is None:
    active = jnp.ones(images.shape[0], bool)
  points = square_points(
    logits_fn, images, labels, rng, active=active, **options
  )
  robust = per_example.is_correct(logits_fn(points), labels) | ~active
  return robust, per_example.select(robust, images, points)
