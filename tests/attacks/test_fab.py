"""FAB and its projections, on problems solved by hand or by brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.attacks import balls, fab, hyperplanes

_SLOPE = jnp.array([[1.0, 2.0, -1.0], [0.5, -1.0, 3.0]])  # [D, K]


def _linear(images):
  return images.reshape(len(images), -1) @ _SLOPE


def _problem(count=6):
  images = np.random.default_rng(1).uniform(0.3, 0.7, (count, 2, 1, 1))
  images = jnp.asarray(images, jnp.float32)
  return images, jnp.argmax(_linear(images), axis=1)


def _nearest(images, labels, norm):
  slopes = _SLOPE.T[None] - _SLOPE.T[labels][:, None]  # [B, K, D]
  order = {'linf': 1, 'l2': 2}[norm]
  logits = _linear(images)
  gaps = jnp.take_along_axis(logits, labels[:, None], 1) - logits
  sizes = jnp.linalg.norm(slopes, order, axis=2) + 1e-12
  true = jnp.arange(3)[None] == labels[:, None]
  return jnp.min(jnp.where(true, jnp.inf, gaps / sizes), axis=1)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_projection_is_feasible_and_nearest(norm):
  rng = np.random.default_rng(2)
  points = rng.uniform(size=(50, 6)).astype(np.float32)
  normals = rng.normal(size=(50, 6)).astype(np.float32)
  inside = rng.uniform(size=(50, 6)).astype(np.float32)  # plane meets the box
  offsets = np.sum(normals * inside, axis=1)
  project = getattr(hyperplanes, f'project_{norm}')
  steps = np.asarray(jax.jit(project)(points, normals, offsets))
  ends = points + steps
  np.testing.assert_allclose(np.sum(normals * ends, 1), offsets, atol=2e-6)
  assert ends.min() > -1e-6
  assert ends.max() < 1 + 1e-6
  # No other point of the plane and the box that we can think of is nearer.
  others = inside - points
  for share in (1.0, 0.7, 0.3):
    mixed = share * others + (1 - share) * steps  # still on the plane
    assert np.all(
      balls.norms(jnp.asarray(steps), norm)
      <= balls.norms(jnp.asarray(mixed), norm) + 1e-6
    )


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_projection_out_of_reach_goes_to_the_corner(norm):
  project = getattr(hyperplanes, f'project_{norm}')
  points = jnp.array([[0.2, 0.6, 0.5]])
  normals = jnp.array([[1.0, -2.0, 0.0]])
  steps = project(points, normals, jnp.array([5.0]))
  np.testing.assert_allclose(steps, [[0.8, -0.6, 0.0]], atol=1e-6)
  none = project(points, jnp.zeros_like(points), jnp.array([1.0]))
  np.testing.assert_array_equal(none, jnp.zeros_like(points))


@pytest.mark.parametrize('targeted', [True, False])
@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_finds_the_nearest_boundary_of_a_linear_network(norm, targeted):
  images, labels = _problem()
  distances = _nearest(images, labels, norm)
  epsilon = float(jnp.sort(distances)[2]) * 1.02
  robust = jnp.ones(len(images), bool)
  for rank in (2, 3) if targeted else (None,):
    if targeted:
      still, images_adv = fab.fab_targeted(
        _linear,
        images,
        labels,
        target_rank=rank,
        epsilon=epsilon,
        norm=norm,
        n_iter=20,
      )
    else:
      still, images_adv = fab.fab(
        _linear, images, labels, epsilon=epsilon, norm=norm, n_iter=20
      )
    sizes = balls.norms(images_adv - images, norm)
    assert np.all(sizes <= epsilon)
    wrong = jnp.argmax(_linear(images_adv), axis=1) != labels
    np.testing.assert_array_equal(wrong, ~still)
    robust &= still
  np.testing.assert_array_equal(robust, distances > epsilon)


def test_epsilon_is_compared_without_tolerance():
  images, labels = _problem()
  _, images_adv = fab.fab(_linear, images, labels, epsilon=1.0, n_iter=5)
  sizes = np.asarray(balls.norms(images_adv - images, 'linf'))
  exact, _ = fab.fab(
    _linear, images, labels, epsilon=jnp.float32(sizes[0]), n_iter=5
  )
  below, _ = fab.fab(
    _linear,
    images,
    labels,
    epsilon=np.nextafter(sizes[0], np.float32(0)),
    n_iter=5,
  )
  assert not bool(exact[0])
  assert bool(below[0])


def test_iterates_do_not_depend_on_epsilon():
  images, labels = _problem()
  first = fab.fab(_linear, images, labels, epsilon=1.0, n_iter=5)[1]
  second = fab.fab(_linear, images, labels, epsilon=0.9, n_iter=5)[1]
  np.testing.assert_array_equal(first, second)


def test_steps_back_after_success_and_keeps_the_smaller_perturbation():
  images, labels = _problem()
  step = fab.make_fab_step(
    _linear,
    images,
    labels,
    norm='linf',
    targets=None,
    alpha_max=0.1,
    eta=1.05,
    beta=0.9,
  )
  state = fab.fab_init(images, images)
  after = step(state)
  # A linear network is crossed at once (eta > 1), and the point drawn back.
  assert np.all(after.sizes < 1e10)
  np.testing.assert_allclose(
    after.points - images, 0.9 * (after.images_adv - images), atol=1e-6
  )
  again = step(after._replace(sizes=jnp.zeros(len(images))))
  np.testing.assert_array_equal(again.images_adv, after.images_adv)


def test_random_start_is_half_of_epsilon_and_optional():
  images, labels = _problem()
  for norm in ('linf', 'l2'):
    start = fab.random_start(
      jax.random.key(0), jnp.arange(6), images, 0.1, norm
    )
    np.testing.assert_allclose(
      balls.norms(start - images, norm), 0.05, rtol=1e-4
    )
  options = {'epsilon': 1.0, 'n_iter': 1}
  plain = fab.fab(_linear, images, labels, **options)[1]
  same = fab.fab(_linear, images, labels, jax.random.key(0), **options)[1]
  other = fab.fab(
    _linear, images, labels, jax.random.key(0), random=True, **options
  )[1]
  np.testing.assert_array_equal(plain, same)
  assert not np.array_equal(plain, other)


def test_inactive_examples_come_back_untouched():
  images, labels = _problem()
  active = jnp.arange(6) < 2
  robust, images_adv = fab.fab(
    _linear, images, labels, epsilon=1.0, n_iter=3, active=active
  )
  np.testing.assert_array_equal(robust, ~active)
  np.testing.assert_array_equal(images_adv[2:], images[2:])


def test_two_evaluations_per_iteration():
  calls = []

  def counted(images):
    jax.debug.callback(lambda: calls.append(1))
    return _linear(images)

  images, labels = _problem()
  jax.block_until_ready(
    fab.fab_targeted(
      counted, images, labels, target_rank=2, epsilon=0.1, n_iter=6
    )
  )
  jax.effects_barrier()
  # The clean images twice: for the ranks, and because they are known here.
  assert len(calls) == 2 + 2 * 6
