"""Square's windows, stamps and draws.

Follows the reference implementation within AutoAttack.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dhat_jax.attacks import balls

# Windows shrink after these queries: the area halves each time.
SCHEDULE = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


class StartDraw(NamedTuple):
  """Uniform draws in [0, 1) of the start; T tiles of the L2 start."""

  stripes: chex.Array  # Linf: [B, 1, W, C]
  flips: chex.Array  # L2: [T]
  signs: chex.Array  # L2: [B, T, C]


class QueryDraw(NamedTuple):
  """Uniform draws in [0, 1) of one query; windows serve all examples."""

  windows: chex.Array  # [4]: top, left, and for L2 those of a second window
  flip: chex.Array  # L2: [], transposes the stamp
  signs: chex.Array  # Linf: [1, C]; L2: [B, C]


class Draws(NamedTuple):
  """The source of randomness, which recorded draws can replace."""

  start: Callable  # () -> StartDraw
  query: Callable  # (query) -> QueryDraw


def tile_grid(height: int, width: int) -> tuple[int, int, int, int]:
  """Grid of the L2 start's tiles, all within the image.

  Tiles that would cross the border of the image are left out; the reference
  fails on them unless their side is 1. It also fails on heights below 5, where
  tiles have side 1 here. An image that is narrower than a tile has none. Its
  start is then the image itself, as there.

  Returns:
    side of a tile (a fifth of the height), first row and column, numbers of
    rows and of columns of tiles.
  """
  tile = max(height // 5, 1)
  first = max((height - tile * 5) // 2, 0)
  rows, columns = (max(length - first, 0) // tile for length in (height, width))
  return tile, first, rows, columns


def make_draws(
  rng: chex.PRNGKey,
  indices: chex.Array,
  shape: tuple[int, int, int, int],
  norm: str,
  dtype: jnp.dtype,
) -> Draws:
  """Creates the usual source of randomness.

  Windows depend on the key and the query alone. Draws of an example also depend
  on its place in the data set.

  Differs from the reference: there windows are shared within a batch, and all
  draws depend on the examples that are left in the batch.

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
    stripes = 1, width, channels
    return StartDraw(
      stripes=balls.draw_each(uniform, start_rng, indices, stripes),
      flips=uniform(flip_rng, (tiles,)),
      signs=balls.draw_each(uniform, start_rng, indices, (tiles, channels)),
    )

  def query(i):
    shared_rng, each_rng = jax.random.split(jax.random.fold_in(query_rng, i))
    shared = uniform(shared_rng, (5 + channels,))
    signs = shared[None, 5:]
    if norm == 'l2':
      signs = balls.draw_each(uniform, each_rng, indices, (channels,))
    return QueryDraw(windows=shared[:4], flip=shared[4], signs=signs)

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


def stamp_table(sizes: np.ndarray, height: int, width: int) -> np.ndarray:
  """Stamps by size, and transposed, in the upper left corner.

  Args:
    sizes: int [n_queries], none larger than the image.
    height: of the image.
    width: of the image.

  Returns:
    float64 [2, max + 1, H, W]: as they are, and transposed.
  """
  table = np.zeros((2, max(sizes) + 1, height, width))
  for size in set(sizes.tolist()):
    stamp = make_stamp(size)
    table[:, size, :size, :size] = stamp, stamp.T
  return table


def corner(uniform: chex.Array, length: int, size: chex.Numeric) -> chex.Array:
  """First row or column of a window: uniform [0, 1) -> int.

  A window at length - size is never drawn: the reference's off-by-one.
  """
  places = jnp.asarray(length - size, uniform.dtype)
  return jnp.floor(uniform * places).astype(jnp.int32)


def window_mask(
  top: chex.Numeric,
  left: chex.Numeric,
  size: chex.Numeric,
  height: int,
  width: int,
) -> chex.Array:
  """Ones in the window: bool [1, H, W, 1]."""
  rows, columns = jnp.arange(height), jnp.arange(width)
  rows = (rows >= top) & (rows < top + size)
  columns = (columns >= left) & (columns < left + size)
  return (rows[:, None] & columns[None, :])[None, :, :, None]
