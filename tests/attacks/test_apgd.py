"""APGD: each peculiarity of the reference, on problems solved by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.attacks import apgd, apgd_steps, balls, logits

_SLOPE = jnp.array([[1.0, 2.0, -1.0], [0.5, -1.0, 3.0]])  # [D, K]


def _linear(images):
  return images.reshape(len(images), -1) @ _SLOPE


def _problem(count=4):
  images = np.random.default_rng(0).uniform(0.3, 0.7, (count, 2, 1, 1))
  images = jnp.asarray(images, jnp.float32)
  return images, jnp.argmax(_linear(images), axis=1)


def _constant_steps(losses, n_iter=10, correct=True):
  """States when the losses are given; every gradient is 1."""
  losses = jnp.asarray(losses, jnp.float32)
  images = jnp.full((1, 1), 0.5)

  def evaluate(points, i):
    return losses[i][None], jnp.array([correct]), jnp.ones_like(points)

  step = apgd.make_apgd_step(
    evaluate, images, epsilon=0.1, norm='linf', n_iter=n_iter, rho=0.75
  )
  states = [step(0, apgd.apgd_init(images, 0.1))]
  for i in range(n_iter):
    states.append(step(i + 1, states[-1]))
  return states


def test_checks_end_the_reference_iterations():
  windows = apgd_steps.check_windows(100)
  ends = np.flatnonzero(windows) + 1
  np.testing.assert_array_equal(ends, [22, 41, 57, 70, 80, 87, 93, 99])
  np.testing.assert_array_equal(
    windows[ends - 1], [22, 19, 16, 13, 10, 7, 6, 6]
  )


def test_start_is_uniform_scaled_to_the_surface():
  images = jnp.full((6, 8, 8, 3), 0.5)
  for norm in ('linf', 'l2'):
    start = apgd.random_start(
      jax.random.key(0), jnp.arange(6), images, 0.1, norm
    )
    # One coordinate reaches epsilon; a plain uniform start would stay below.
    sizes = balls.norms(start - images, norm)
    np.testing.assert_allclose(sizes, 0.1, rtol=1e-5)
  assert np.std(start) > 0


def test_starts_do_not_depend_on_the_batch():
  images = jnp.full((4, 2, 2, 1), 0.5)
  start = apgd.random_start(
    jax.random.key(0), jnp.arange(4), images, 0.1, 'linf'
  )
  part = apgd.random_start(
    jax.random.key(0), jnp.array([3, 1]), images[:2], 0.1, 'linf'
  )
  np.testing.assert_array_equal(part, start[jnp.array([3, 1])])


def test_first_step_has_no_momentum_and_later_ones_a_quarter():
  images = jnp.full((1, 1), 0.5)

  def evaluate(points, i):
    gradients = jnp.where(i == 0, 1.0, -1.0) * jnp.ones_like(points)
    return jnp.array([-1.0 * i]), jnp.array([True]), gradients

  step = apgd.make_apgd_step(
    evaluate, images, epsilon=0.1, norm='linf', n_iter=100, rho=0.75
  )
  first = step(1, step(0, apgd.apgd_init(images, 0.1)))
  np.testing.assert_allclose(first.points, [[0.6]], rtol=1e-6)
  second = step(2, first)
  # .6 + .75 (.4 - .6) + .25 (.6 - .5)
  np.testing.assert_allclose(second.points, [[0.475]], rtol=1e-6)


def test_first_loss_is_compared_with_zero_not_with_the_start():
  # With 10 iterations the first window has 2. Positive losses (cross entropy)
  # that only fall count one rise: 1 <= 1.5, halved; negative losses (DLR of a
  # correct point) count what they show.
  falling = _constant_steps([5.0, 4.0, 3.0, *[0.0] * 8])
  assert int(falling[1].rises[0]) == 1
  negative = _constant_steps([-5.0, -4.0, -4.5, *[-9.0] * 8])
  assert int(negative[1].rises[0]) == 0
  rising = _constant_steps(np.arange(1.0, 12.0))
  np.testing.assert_allclose(rising[2].step_sizes, 0.2)  # 2 rises > 1.5
  np.testing.assert_allclose(falling[2].step_sizes, 0.1)


def test_best_loss_includes_the_start_and_needs_strictly_more():
  states = _constant_steps([5.0, 4.0, 5.0, *[5.0] * 8])
  assert float(states[-1].best_losses[0]) == 5.0
  np.testing.assert_array_equal(states[-1].best_points, states[0].points)


def test_stalling_halves_only_after_a_check_that_did_not():
  # Windows of 2, then 1 each: checks after 2, 3, 4 ... The loss rises 2 times,
  # then stays: at 3 no rise halves it.
  states = _constant_steps([0.0, 1.0, 2.0, *[2.0] * 8])
  np.testing.assert_allclose(states[2].step_sizes, 0.2)
  assert not bool(states[2].halved[0])
  np.testing.assert_allclose(states[3].step_sizes, 0.1)
  # The flag starts as true: an unimproved first window of rises is kept.
  states = _constant_steps([9.0, 1.0, 2.0, *[3.0] * 8])
  assert float(states[2].best_losses[0]) == 9.0
  np.testing.assert_allclose(states[2].step_sizes, 0.2)


def test_halving_returns_to_the_best_point_but_keeps_the_previous_one():
  states = _constant_steps([5.0, 4.0, 3.0, *[0.0] * 8])
  np.testing.assert_array_equal(states[2].points, states[0].points)
  np.testing.assert_array_equal(states[2].points_before, states[1].points)
  assert not np.array_equal(states[2].points, states[2].points_before)


def test_adversarial_image_is_the_latest_wrong_one_not_the_worst():
  images = jnp.full((1, 1), 0.5)
  losses = jnp.array([0.0, 9.0, 1.0, 0.5])
  correct = jnp.array([True, False, False, True])

  def evaluate(points, i):
    return losses[i][None], correct[i][None], jnp.ones_like(points) * (-1) ** i

  step = apgd.make_apgd_step(
    evaluate, images, epsilon=0.1, norm='linf', n_iter=100, rho=0.75
  )
  states = [step(0, apgd.apgd_init(images, 0.1))]
  for i in range(3):
    states.append(step(i + 1, states[-1]))
  assert not bool(states[3].robust[0])
  np.testing.assert_array_equal(states[3].images_adv, states[2].points)
  np.testing.assert_array_equal(states[3].best_points, states[1].points)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
@pytest.mark.parametrize('loss', ['ce', 'dlr'])
def test_breaks_a_linear_network_exactly_within_the_ball(norm, loss):
  images, labels = _problem(8)
  logits = _linear(images)
  # Distance to the nearest boundary, by the dual norm of the slopes.
  others = jnp.arange(3)[None] != labels[:, None]
  slopes = _SLOPE.T[None] - _SLOPE.T[labels][:, None]  # [B, K, D]
  order = {'linf': 1, 'l2': 2}[norm]
  sizes = jnp.linalg.norm(slopes, order, axis=2) + 1e-12
  gaps = jnp.take_along_axis(logits, labels[:, None], 1) - logits
  distances = jnp.min(jnp.where(others, gaps / sizes, jnp.inf), axis=1)
  epsilon = float(jnp.median(distances))
  robust, images_adv = jax.jit(
    lambda images: apgd.apgd(
      _linear,
      images,
      labels,
      jax.random.key(0),
      epsilon=epsilon,
      norm=norm,
      loss=loss,
      n_iter=50,
    )
  )(images)
  np.testing.assert_array_equal(robust, distances > epsilon)
  assert float(balls.norms(images_adv - images, norm).max()) < (epsilon + 1e-6)
  assert np.all(jnp.argmax(_linear(images_adv), axis=1) != labels) == np.all(
    ~robust
  )


def test_targets_are_ranked_by_clean_logits_and_any_class_counts():
  slope = jnp.array([[4.0, 3.0, 2.0, 1.0]])

  def logits_fn(images):
    return (images.reshape(len(images), -1) + 0.1) @ slope

  classes = logits.ranked_classes(logits_fn(jnp.ones((2, 1))), 3)
  np.testing.assert_array_equal(classes, [2, 2])

  # The third class cannot win before the second does.
  def crossing(images):
    x = images.reshape(-1, 1)
    return jnp.concatenate([x, 1 - x, 0.8 - x, 0.1 - x], axis=1)

  images = jnp.array([[0.55], [0.95]])
  robust, images_adv = apgd.apgd_targeted(
    crossing,
    images,
    jnp.array([0, 0]),
    jax.random.key(0),
    target_rank=3,
    epsilon=0.1,
    n_iter=10,
  )
  np.testing.assert_array_equal(robust, [False, True])
  assert int(jnp.argmax(crossing(images_adv), axis=1)[0]) == 1


def test_inactive_examples_come_back_untouched():
  images, labels = _problem()
  active = jnp.array([True, False, True, False])
  robust, images_adv = apgd.apgd(
    _linear,
    images,
    labels,
    jax.random.key(0),
    epsilon=0.9,
    n_iter=5,
    active=active,
  )
  np.testing.assert_array_equal(robust, ~active)
  np.testing.assert_array_equal(images_adv[1], images[1])


def test_noise_averages_gradients_and_keeps_the_last_prediction():
  def logits_fn(images, key):
    x = images.reshape(-1, 1) * jax.random.normal(key, (1, 1))
    return jnp.concatenate([x, -x], axis=1)

  images, labels = jnp.full((1, 1), 0.5), jnp.array([0])
  key = jax.random.key(3)
  loss_fn = apgd.make_loss('ce', labels, None)
  evaluate = apgd.make_evaluate(logits_fn, loss_fn, labels, key, 4)
  losses, correct, gradients = evaluate(images, 7)
  parts = [jax.random.fold_in(jax.random.fold_in(key, 7), j) for j in range(4)]
  one = [
    jax.grad(lambda x, k=k: jnp.sum(loss_fn(logits_fn(x, k))))(images)
    for k in parts
  ]
  np.testing.assert_allclose(gradients, sum(one) / 4, rtol=1e-5)
  last = logits_fn(images, parts[-1])
  np.testing.assert_allclose(losses, loss_fn(last), rtol=1e-6)
  assert bool(correct[0]) == (int(jnp.argmax(last)) == 0)


@pytest.mark.parametrize(
  ('options', 'match'),
  [
    ({'loss': 'hinge'}, 'choices'),
    ({'loss': 'targeted_dlr'}, 'no targets'),
    ({'norm': 'l7'}, 'choices'),
  ],
)
def test_bad_arguments_are_named(options, match):
  images, labels = _problem()
  with pytest.raises(ValueError, match=match):
    apgd.apgd(
      _linear, images, labels, jax.random.key(0), epsilon=0.1, **options
    )


def test_one_gradient_per_iteration():
  calls = []

  def counted(images):
    jax.debug.callback(lambda: calls.append(1))
    return _linear(images)

  images, labels = _problem()
  jax.block_until_ready(
    apgd.apgd(counted, images, labels, jax.random.key(0), epsilon=0.1, n_iter=7)
  )
  jax.effects_barrier()
  # Seven, the start, and the clean images, which are known here.
  assert len(calls) == 9
