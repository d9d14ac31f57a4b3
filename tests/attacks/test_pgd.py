"""PGD and FGSM in training: any objective, no model, no label."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.attacks import balls, pgd

EPSILON = 0.1
KEY = jax.random.key(0)


def draw(*shape, seed=0, low=0.0, high=1.0):
  drawn = np.random.default_rng(seed).uniform(low, high, shape)
  return drawn.astype(np.float32)


IMAGES = draw(4, 3, 3, 2)
WEIGHTS = draw(3, 3, 2, seed=1, low=-1)


def linear(images):
  return jnp.tensordot(images, WEIGHTS, 3)


def bumpy(images):
  return jnp.sin(9 * images).sum(axis=(1, 2, 3))


@functools.cache
def compiled(objective, **options):
  options = {'epsilon': EPSILON, 'step_size': 0.03, 'steps': 5} | options
  return jax.jit(functools.partial(pgd.make_attack(**options), objective))


def run(objective, images=IMAGES, rng=KEY, scale=1.0, **options):
  return compiled(objective, **options)(rng, jnp.asarray(images), scale)


def sizes(deltas, norm):
  deltas = np.asarray(deltas, np.float64).reshape(len(deltas), -1)
  order = {'linf': np.inf, 'l2': 2}[norm]
  return np.linalg.norm(deltas, order, axis=1)


@pytest.mark.parametrize('steps', [1, 3, 7])
def test_linf_on_a_linear_objective_is_the_sign_of_the_weights(steps):
  images_adv = run(linear, steps=steps, start='none')
  moved = min(0.03 * steps, EPSILON) * np.sign(WEIGHTS)
  expected = np.clip(IMAGES + moved, 0, 1)
  assert (expected == 0).any()
  assert (expected == 1).any() or steps == 1
  np.testing.assert_allclose(images_adv, expected, atol=1e-6)


def test_linf_forgets_its_start_on_a_linear_objective():
  np.testing.assert_allclose(
    run(linear, steps=7, start='uniform'),
    np.clip(IMAGES + EPSILON * np.sign(WEIGHTS), 0, 1),
    atol=1e-6,
  )


@pytest.mark.parametrize('steps', [2, 7])
def test_l2_on_a_linear_objective_is_the_direction_of_the_weights(steps):
  images = draw(4, 3, 3, 2, low=0.3, high=0.7)
  images_adv = run(linear, images, norm='l2', start='none', steps=steps)
  direction = WEIGHTS / np.linalg.norm(WEIGHTS)
  np.testing.assert_allclose(
    images_adv, images + min(0.03 * steps, EPSILON) * direction, atol=1e-6
  )


def test_l2_next_to_the_box():
  images = np.array([[0.9, 0.5]], np.float32)
  images_adv = run(
    lambda x: x @ jnp.array([3.0, 4.0]),
    images,
    norm='l2',
    epsilon=0.2,
    step_size=0.5,
    steps=1,
    start='none',
  )
  # On the ball at + .2 (.6, .8) = (1.02, .66), then on the box.
  np.testing.assert_allclose(images_adv, [[1.0, 0.66]], atol=1e-6)


def test_fgsm_is_one_step_of_epsilon():
  attack = pgd.fgsm(EPSILON)
  np.testing.assert_allclose(
    attack(linear, KEY, jnp.asarray(IMAGES)),
    np.clip(IMAGES + EPSILON * np.sign(WEIGHTS), 0, 1),
    atol=1e-6,
  )
  images = draw(4, 3, 3, 2, low=0.3, high=0.7)
  direction = WEIGHTS / np.linalg.norm(WEIGHTS)
  np.testing.assert_allclose(
    pgd.fgsm(EPSILON, 'l2')(linear, KEY, jnp.asarray(images)),
    images + EPSILON * direction,
    atol=1e-6,
  )


@pytest.mark.parametrize('norm', balls.NORMS)
@pytest.mark.parametrize('start', balls.STARTS)
def test_ends_higher_and_inside_ball_and_box(norm, start):
  images_adv = run(bumpy, norm=norm, start=start)
  assert images_adv.dtype == jnp.float32
  images_adv = np.asarray(images_adv)
  assert images_adv.shape == IMAGES.shape
  assert sizes(images_adv - IMAGES, norm).max() <= EPSILON + 1e-6
  assert images_adv.min() >= 0
  assert images_adv.max() <= 1
  assert (bumpy(images_adv) > bumpy(IMAGES)).all()


def test_bfloat16_is_kept():
  images = jnp.asarray(IMAGES, jnp.bfloat16)
  attack = jax.jit(
    functools.partial(
      pgd.make_attack(epsilon=0.1, step_size=0.03, steps=2), linear
    )
  )
  # A traced scale has dtype float32.
  images_adv = attack(KEY, images, jnp.float32(1.0))
  assert images_adv.dtype == jnp.bfloat16
  deltas = np.float32(images_adv) - np.float32(images)
  assert 0.05 < np.abs(deltas).max() <= EPSILON + 1 / 256


def test_float64_is_kept_with_its_digits():
  with jax.enable_x64(True):
    images = jnp.asarray(IMAGES, jnp.float64)
    weights = jnp.asarray(WEIGHTS, jnp.float64)
    attack = pgd.make_attack(epsilon=EPSILON, step_size=0.03, steps=4)
    images_adv = jax.jit(
      functools.partial(
        attack, lambda inputs: jnp.tensordot(inputs, weights, 3)
      )
    )(KEY, images)
    assert images_adv.dtype == jnp.float64
    deltas = sizes(images_adv - images, 'linf')
    assert (deltas <= EPSILON + 1e-15).all()
    assert (deltas > 0.05).all()


@pytest.mark.parametrize('norm', balls.NORMS)
def test_no_steps_give_the_projected_start(norm):
  images = np.round(IMAGES)  # Corners of the box: the start has to be clipped.
  images_adv = np.asarray(
    run(linear, images, epsilon=0.0005, steps=0, norm=norm, start='gaussian')
  )
  deltas = sizes(images_adv - images, norm)
  assert deltas.max() <= 0.0005 + 1e-6
  assert deltas.min() > 0
  assert images_adv.min() >= 0
  assert images_adv.max() <= 1
  np.testing.assert_array_equal(
    run(linear, images, steps=0, norm=norm, start='none'), images
  )


def test_zero_epsilon_returns_the_images():
  np.testing.assert_array_equal(
    run(linear, epsilon=0.0, start='gaussian'), IMAGES
  )


def test_kl_like_objective_needs_its_noisy_start():
  centre = jnp.asarray(IMAGES)

  def objective(images):
    return ((images - centre) ** 2).sum(axis=(1, 2, 3))

  np.testing.assert_array_equal(run(objective, start='none'), IMAGES)
  moved = np.abs(np.asarray(run(objective, start='gaussian')) - IMAGES)
  assert np.median(moved) > 0.09


def test_scale_multiplies_epsilon_and_step():
  np.testing.assert_allclose(
    run(linear, steps=7, start='none', scale=0.5),
    run(linear, steps=7, start='none', epsilon=0.05, step_size=0.015),
    atol=1e-7,
  )
  np.testing.assert_array_equal(run(linear, start='uniform', scale=0.0), IMAGES)


def test_the_batch_does_not_enter():
  rngs = balls.per_example_keys(KEY, 4)
  together = run(bumpy, norm='l2', start='uniform')
  apart = run(bumpy, IMAGES[1:3], rngs[1:3], norm='l2', start='uniform')
  np.testing.assert_allclose(together[1:3], apart, rtol=0, atol=1e-6)


def test_unrolled_equals_loop():
  np.testing.assert_allclose(
    run(bumpy, start='uniform', norm='l2', unroll=True),
    run(bumpy, start='uniform', norm='l2'),
    atol=1e-6,
  )


@pytest.mark.parametrize('steps', [0, 2])
@pytest.mark.parametrize('start', ['none', 'uniform'])
def test_no_gradient_passes_through(steps, start):
  attack = pgd.make_attack(
    epsilon=EPSILON, step_size=0.03, steps=steps, start=start
  )

  @jax.jit
  @functools.partial(jax.grad, argnums=(0, 1))
  def gradients(images, weight):
    images_adv = attack(lambda x: bumpy(weight * x), KEY, images)
    return (images_adv**2).sum()

  by_images, by_weight = gradients(jnp.asarray(IMAGES), 1.0)
  np.testing.assert_array_equal(by_images, np.zeros_like(IMAGES))
  assert by_weight == 0


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'epsilon': -0.1}, r'epsilon: got -0.1, expected in \[0, 1\]'),
    ({'epsilon': 8}, 'epsilon: got 8, .* not of 255'),
    ({'epsilon': float('nan')}, 'epsilon: got nan'),
    ({'epsilon': float('inf'), 'norm': 'l2'}, 'epsilon: got inf'),
    ({'step_size': 2}, 'step_size: got 2'),
    ({'steps': -1}, 'steps: got -1, expected an integer >= 0'),
    ({'steps': 1.0}, 'steps: got 1.0'),
    ({'steps': True}, 'steps: got True'),
    ({'norm': 'l1'}, "norm: got 'l1', choices are"),
    ({'start': 'here'}, "start: got 'here', choices are"),
  ],
)
def test_bad_options(options, message):
  with pytest.raises(ValueError, match=message):
    run(linear, **options)


def test_bad_arguments():
  with pytest.raises(ValueError, match=r'images: got uint8 .*, expected float'):
    run(linear, np.uint8(IMAGES))
  with pytest.raises(ValueError, match=r'shape \(\), expected one per example'):
    run(lambda x: linear(x).mean())
  with pytest.raises(ValueError, match='rng: got'):
    run(linear, rng=jax.random.split(KEY, 3))
