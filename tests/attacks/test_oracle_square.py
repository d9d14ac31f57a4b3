"""Square against pyautoattack with the same draws, in double precision."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.attacks import square
from tests.attacks import oracle, square_numpy

torch = pytest.importorskip('torch')
original_square = pytest.importorskip('pyautoattack.square')

pytestmark = pytest.mark.oracle
N_QUERIES = 300
SHAPE = (10, 10, 2)


def _draws(count, shape=SHAPE):
  rng = np.random.default_rng(7)
  _, _, rows, columns = square.tile_grid(*shape[:2])
  tiles = rows * columns
  start = square.StartDraw(
    stripes=rng.uniform(size=(count, 1, shape[1], shape[2])),
    flips=rng.uniform(size=tiles),
    signs=rng.uniform(size=(count, tiles, shape[2])),
  )
  query = square.QueryDraw(
    windows=rng.uniform(size=(N_QUERIES, 4)),
    flip=rng.uniform(size=N_QUERIES),
    signs=rng.uniform(size=(N_QUERIES, count, shape[2])),
  )
  return start, query


def _deal_tiles(start, shape):
  """The start's flip and signs of each of the oracle's tiles.

  Those of side 1 may lie outside of the image, and then change nothing.
  """
  side, _, rows, columns = square.tile_grid(*shape[:2])
  draws = zip(start.flips, start.signs.swapaxes(0, 1), strict=True)
  for row in range(shape[0] // side):
    for column in range(shape[1] // side):
      if row < rows and column < columns:
        yield from next(draws)
      else:
        yield np.zeros(1)
        yield np.zeros_like(start.signs[:, 0])


def _dealer(start, query, norm, shape):
  """Yields what torch.rand is to return, in the oracle's order."""
  if norm == 'Linf':
    yield start.stripes.transpose(0, 3, 1, 2)
  else:
    yield from _deal_tiles(start, shape)
  for windows, flip, signs in zip(*query, strict=True):
    yield from windows[: 2 if norm == 'Linf' else 4]
    if norm == 'L2':
      yield flip
    yield signs


def _original(weights, images, labels, start, query, norm, epsilon):
  dealer = _dealer(start, query, norm, images.shape[1:])

  def rand(shape):
    return torch.tensor(np.array(next(dealer))).reshape(list(shape))

  attack = original_square.SquareAttack(
    oracle.TorchNet(weights),
    norm=norm,
    n_queries=N_QUERIES,
    eps=epsilon,
    resc_schedule=False,
  )
  images = oracle.nchw(images)
  attack.init_hyperparam(images)
  with mock.patch.object(torch, 'rand', rand):
    queries, points = attack.attack_single_run(images, torch.tensor(labels))
  return queries.numpy(), oracle.nhwc(points)


def _points(weights, images, labels, start, query, norm, epsilon):
  """Our best points, with recorded draws."""
  table = jax.tree.map(jnp.asarray, query)
  draws = square.Draws(
    lambda: jax.tree.map(jnp.asarray, start),
    lambda i: jax.tree.map(lambda leaf: leaf[i], table),
  )
  return jax.jit(
    lambda images: square.square_points(
      oracle.jax_net(weights),
      images,
      labels,
      None,
      epsilon=epsilon,
      norm=norm,
      n_queries=N_QUERIES,
      draws=draws,
    )
  )(images)


@pytest.mark.parametrize(
  ('norm', 'epsilon', 'shape'),
  [
    ('linf', 0.06, SHAPE),
    ('l2', 0.75, SHAPE),
    ('linf', 0.06, (8, 12, 2)),
    ('linf', 0.04, (12, 8, 3)),
    ('l2', 0.75, (8, 12, 2)),
    ('l2', 0.4, (5, 3, 4)),
    ('l2', 0.3, (5, 9, 1)),
  ],
)
def test_points_equal_the_original_with_recorded_draws(norm, epsilon, shape):
  weights, images, labels = oracle.make_problem(seed=2, count=10, shape=shape)
  start, query = _draws(len(images), shape)
  if norm == 'linf':
    query = query._replace(signs=query.signs[:, :1])  # one for the batch
  with oracle.float64():
    if norm == 'linf':
      _, expected = _original(
        weights, images, labels, start, query, 'Linf', epsilon
      )
    else:
      # The oracle draws signs for the examples that are left: one at a time,
      # so that it is known whose they are.
      parts = [
        _original(
          weights,
          images[[n]],
          labels[[n]],
          start._replace(signs=start.signs[[n]]),
          query._replace(signs=query.signs[:, [n]]),
          'L2',
          epsilon,
        )
        for n in range(len(images))
      ]
      expected = np.concatenate([points for _, points in parts])
    points = _points(weights, images, labels, start, query, norm, epsilon)
    np.testing.assert_allclose(points, expected, rtol=0, atol=1e-10)
    logits = oracle.jax_net(weights)(points)
  broken = np.argmax(logits, axis=1) != labels
  assert 0 < broken.mean() < 1


@pytest.mark.parametrize(
  ('shape', 'epsilon'),
  [
    ((8, 12, 2), 0.75),  # as above: the formula is the original's
    ((12, 8, 2), 0.75),  # here the original fails
    ((7, 16, 1), 0.6),
    ((30, 4, 1), 0.8),  # narrower than a tile: no start
    ((4, 4, 4), 0.4),
    ((3, 2, 3), 0.3),
    ((1, 5, 2), 0.3),
  ],
)
def test_l2_points_equal_the_formula_for_any_sides(shape, epsilon):
  weights, images, labels = oracle.make_problem(seed=4, count=4, shape=shape)
  start, query = _draws(len(images), shape)
  with oracle.float64():
    points = _points(weights, images, labels, start, query, 'l2', epsilon)
  w1, b1, w2, b2 = weights

  def margin(point, label):
    logits = np.tanh((point.ravel() - 0.5) @ w1 + b1) @ w2 + b2
    return logits[label] - np.delete(logits, label).max()

  for n, image in enumerate(images):
    expected = square_numpy.square_l2(
      lambda point, n=n: margin(point, labels[n]),
      image,
      epsilon,
      (start.flips, start.signs[n]),
      (query.windows, query.flip, query.signs[:, n]),
    )
    # Where 1e-16 is missing to epsilon, its root is 1e-8.
    np.testing.assert_allclose(points[n], expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize('side', [8, 32, 224])
@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_window_sizes_equal_the_original(norm, side):
  attack = original_square.SquareAttack(
    None, n_queries=9000, eps=1.0, resc_schedule=False
  )
  ours = square.window_sizes(9000, side, side, 0.8, norm)
  for query in [
    0,
    10,
    11,
    50,
    51,
    200,
    201,
    500,
    501,
    1000,
    1001,
    2000,
    2001,
    4000,
    4001,
    6000,
    6001,
    8000,
    8001,
    8999,
  ]:
    side_p = np.sqrt(attack.p_selection(query) * side * side)
    size = max(round(side_p), 1 if norm == 'linf' else 3)
    if norm == 'l2':
      size += size % 2 == 0
    assert ours[query] == min(size, side)


@pytest.mark.parametrize('size', [1, 2, 3, 5, 8, 29])
def test_stamps_equal_the_original(size):
  attack = original_square.SquareAttack(None, norm='L2', eps=1.0, device='cpu')
  with (
    oracle.float64(),
    mock.patch.object(torch, 'rand', lambda shape: torch.zeros(shape)),
  ):
    expected = attack.eta(size).numpy()
  # Their weights 1/n^2 are float32 numbers whatever the default.
  np.testing.assert_allclose(square.make_stamp(size), expected, atol=1e-6)
