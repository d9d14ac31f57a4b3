"""Square: its schedule, its draws, and what it accepts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.attacks import balls, square


def _net(images):
  """Two classes by the mean of the upper half against a threshold."""
  upper = jnp.mean(images[:, : images.shape[1] // 2], axis=(1, 2, 3))
  return jnp.stack([upper, jnp.full_like(upper, 0.5)], axis=1)


def _problem(count=5, side=8):
  images = np.random.default_rng(0).uniform(0.4, 0.7, (count, side, side, 2))
  images = jnp.asarray(images, jnp.float32)
  return images, jnp.argmax(_net(images), axis=1)


def test_windows_of_a_cifar_image_follow_the_reference():
  sizes = square.window_sizes(5000, 32, 32, 0.8, 'linf')
  firsts = [0, 11, 51, 201, 501, 1001, 2001, 4001]
  np.testing.assert_array_equal(sizes[firsts], [29, 20, 14, 10, 7, 5, 4, 3])
  np.testing.assert_array_equal(np.flatnonzero(np.diff(sizes)) + 1, firsts[1:])
  # Not rescaled to the number of queries.
  short = square.window_sizes(100, 32, 32, 0.8, 'linf')
  np.testing.assert_array_equal(short, sizes[:100])


def test_last_window_position_is_never_drawn():
  top = jax.vmap(lambda u: square.corner(u, 32, 29))(
    jnp.linspace(0, 1 - 1e-6, 1000)
  )
  np.testing.assert_array_equal(np.unique(top), [0, 1, 2])


def test_start_has_vertical_stripes():
  images = jnp.full((3, 6, 5, 2), 0.5)
  draws = square.make_draws(
    jax.random.key(0), jnp.arange(3), images.shape, 'linf', jnp.float32
  )
  start = square.start_linf(images, 0.1, draws.start())
  np.testing.assert_allclose(jnp.abs(start - 0.5), 0.1, rtol=1e-5)
  np.testing.assert_array_equal(start, start[:, :1].repeat(6, axis=1))
  assert not np.array_equal(start[0], start[1])
  assert len(np.unique(start[0])) == 2


def test_a_query_shares_its_window_and_colours():
  images = jnp.full((3, 8, 8, 2), 0.5)
  draws = square.make_draws(
    jax.random.key(0), jnp.arange(3), images.shape, 'linf', jnp.float32
  )
  points = square.propose_linf(images, images, 0.1, 3, draws.query(4))
  np.testing.assert_array_equal(points[0], points[2])
  changed = np.any(np.asarray(points[0]) != 0.5, axis=2)
  assert changed.sum() == 9
  rows, columns = np.nonzero(changed)
  assert np.ptp(rows) == np.ptp(columns) == 2


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_stays_in_the_ball_and_lowers_margins(norm):
  images, labels = _problem()
  epsilon = {'linf': 0.08, 'l2': 0.9}[norm]
  robust, images_adv = jax.jit(
    lambda images: square.square(
      _net,
      images,
      labels,
      jax.random.key(1),
      epsilon=epsilon,
      norm=norm,
      n_queries=400,
    )
  )(images)
  assert 0 < int(robust.sum()) < len(images)
  sizes = balls.norms(images_adv - images, norm)
  assert float(sizes.max()) < epsilon + 1e-5
  assert images_adv.min() >= 0
  assert images_adv.max() <= 1
  wrong = jnp.argmax(_net(images_adv), axis=1) != labels
  np.testing.assert_array_equal(wrong, ~robust)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_result_does_not_depend_on_the_batch_or_on_pieces(norm):
  images, labels = _problem()
  options = {'epsilon': 0.05, 'norm': norm, 'n_queries': 40}
  rng = jax.random.key(2)
  whole = square.square_points(_net, images, labels, rng, **options)
  order = jnp.array([4, 1])
  part = square.square_points(
    _net, images[order], labels[order], rng, indices=order, **options
  )
  np.testing.assert_allclose(part, whole[order], atol=1e-6)
  first = square.square_points(_net, images, labels, rng, last=15, **options)
  second = square.square_points(
    _net, images, labels, rng, first=15, points=first, **options
  )
  np.testing.assert_allclose(second, whole, atol=1e-6)


def test_stops_when_all_active_examples_are_broken():
  images, labels = _problem()
  calls = []

  def counted(points):
    jax.debug.callback(lambda: calls.append(1))
    return _net(points)

  active = jnp.arange(5) == int(jnp.argmin(jnp.abs(_net(images)[:, 0] - 0.5)))
  square.square_points(
    counted,
    images,
    labels,
    jax.random.key(0),
    epsilon=0.3,
    n_queries=5000,
    active=active,
  )
  jax.effects_barrier()
  assert 1 <= len(calls) < 200


def test_logits_are_not_overwritten():
  logits = np.array([[2.0, 1.0, 0.0]], np.float32)
  images = jnp.full((1, 4, 4, 1), 0.5)
  square.square_points(
    lambda points: jnp.asarray(logits),
    images,
    jnp.array([0]),
    jax.random.key(0),
    epsilon=0.1,
    n_queries=3,
  )
  np.testing.assert_array_equal(logits, [[2.0, 1.0, 0.0]])


@pytest.mark.parametrize('side', [3, 4, 8, 14, 28, 32])
def test_tiles_of_the_l2_start_fit_the_image(side):
  tile, first, rows, columns = square.tile_grid(side, side)
  assert rows * columns >= 9
  assert first >= 0
  assert side - tile < first + rows * tile <= side
  images = jnp.full((2, side, side, 1), 0.5)
  draws = square.make_draws(
    jax.random.key(0), jnp.arange(2), images.shape, 'l2', jnp.float32
  )
  start = square.start_l2(images, 0.1, draws.start())
  sizes = balls.norms(start - images, 'l2')
  np.testing.assert_allclose(sizes, 0.1, rtol=1e-5)


def test_images_of_another_rank_are_refused():
  with pytest.raises(ValueError, match=r'\[B, H, W, C\]'):
    square.square(
      _net, jnp.ones((2, 5)), jnp.zeros(2, int), jax.random.key(0), epsilon=1.0
    )
