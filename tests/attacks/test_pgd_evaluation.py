"""FGSM, PGD and CW as evaluation attacks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.attacks import balls, pgd

KEY = jax.random.key(0)


def pixel_logits(images):
  """Two classes by one pixel x: logits (0, 10 (x - .5))."""
  x = images[:, 0, 0, 0]
  return jnp.stack([jnp.zeros_like(x), 10 * (x - 0.5)], axis=1)


PIXELS = np.float32([0.3, 0.42, 0.48, 0.6]).reshape(4, 1, 1, 1)
ZEROS = np.zeros(4, np.int32)


@functools.cache
def compiled_evaluation(objective):
  attack = pgd.make_evaluation_attack(objective=objective)
  return jax.jit(functools.partial(attack, pixel_logits))


def evaluate(settings, objective='cross_entropy', rng=KEY, images=PIXELS):
  labels = np.zeros(len(images), np.int32)
  attack = compiled_evaluation(objective)
  robust, images_adv = attack(images, labels, rng, settings)
  return np.asarray(robust), np.asarray(images_adv)


def test_clean_settings_score_the_images_themselves():
  robust, images_adv = evaluate(pgd.Settings(0.0, 0.0, 0, 1, 0.0))
  np.testing.assert_array_equal(robust, [True, True, True, False])
  np.testing.assert_array_equal(images_adv, PIXELS)


@pytest.mark.parametrize('objective', pgd.OBJECTIVES)
@pytest.mark.parametrize(('steps', 'start_scale'), [(1, 0.0), (4, 1.0)])
def test_reaches_the_worst_case(objective, steps, start_scale):
  step_size = 0.1 if steps == 1 else 0.06
  robust, images_adv = evaluate(
    pgd.Settings(0.1, step_size, steps, 1, start_scale), objective
  )
  np.testing.assert_array_equal(robust, [True, False, False, False])
  np.testing.assert_allclose(images_adv, PIXELS + 0.1, atol=1e-6)


def test_robust_is_what_the_iterate_says_not_the_clean_image():
  # Gradient steps that jump over the only misclassified region.
  def logits_fn(images):
    x = images[:, 0, 0, 0]
    return jnp.stack([jnp.ones_like(x), 3 - 10 * jnp.abs(x - 0.2)], axis=1)

  attack = pgd.make_evaluation_attack(objective='margin')
  images = jnp.full((1, 1, 1, 1), 0.1)
  settings = pgd.Settings(0.5, 0.5, 1, 1, 0.0)
  robust, images_adv = attack(logits_fn, images, ZEROS[:1], KEY, settings)
  assert logits_fn(images).argmax() == 1
  np.testing.assert_allclose(images_adv[0, 0, 0, 0], 0.6, atol=1e-6)
  assert robust


def test_every_point_counts_where_the_gradient_is_a_surrogates():
  """Gradients climb x; only .35 < x < .45 is misclassified, and passed by."""

  @jax.custom_vjp
  def logits_fn(images):
    x = images[:, 0, 0, 0]
    inside = (x > 0.35) & (x < 0.45)
    return jnp.stack([jnp.ones_like(x), 2.0 * inside], axis=1)

  logits_fn.defvjp(
    lambda images: jax.vjp(pixel_logits, images),
    lambda backward, cotangent: backward(cotangent),
  )
  settings = pgd.Settings(0.5, 0.1, 5, 1, 0.0)
  images = np.float32([0.3, 0.6, 0.4]).reshape(3, 1, 1, 1)
  rest = (images, ZEROS[:3], KEY, settings)
  last, _ = pgd.make_evaluation_attack()(logits_fn, *rest)
  np.testing.assert_array_equal(last, [True, True, True])
  attack = pgd.make_evaluation_attack(every_point=True)
  robust, images_adv = attack(logits_fn, *rest)
  np.testing.assert_array_equal(robust, [False, True, False])
  np.testing.assert_allclose(images_adv.ravel(), [0.4, 1.0, 0.4], atol=1e-6)


def restarts_by_hand(restarts, epsilon):
  """Random starts alone: every restart's pixel, as numpy [R, 4]."""
  rngs = balls.per_example_keys(KEY, 4)
  return np.stack(
    [
      balls.random_start(
        jax.vmap(jax.random.fold_in, (0, None))(rngs, restart),
        jnp.asarray(PIXELS),
        epsilon,
        'linf',
        'uniform',
      )[:, 0, 0, 0]
      for restart in range(restarts)
    ]
  )


def test_restarts_keep_the_first_that_fools_or_the_highest():
  drawn = restarts_by_hand(6, 0.15)
  fools = drawn > 0.5
  for restarts in range(1, 7):
    robust, images_adv = evaluate(pgd.Settings(0.15, 0.0, 0, restarts, 1.0))
    np.testing.assert_array_equal(robust, ~fools[:restarts].any(axis=0))
    chosen = np.where(
      robust, drawn[:restarts].argmax(axis=0), fools[:restarts].argmax(axis=0)
    )
    np.testing.assert_allclose(
      images_adv[:, 0, 0, 0], drawn[chosen, np.arange(4)], atol=1e-6
    )
  # The draws hold the cases: broken late, broken at once, never broken, correct
  # again after it was broken, and a highest one that is not the last.
  assert (fools[:-1] & ~fools[1:]).any()
  assert fools.any(axis=0).tolist() == [False, True, True, True]
  assert fools[:, 1:3].argmax(axis=0).max() > 0
  assert drawn[:, 0].argmax() < 5


def test_evaluation_does_not_depend_on_the_batch():
  rngs = balls.per_example_keys(KEY, 4)
  settings = pgd.Settings(0.15, 0.01, 2, 3, 1.0)
  robust, images_adv = evaluate(settings)
  half = evaluate(settings, rng=rngs[1:3], images=PIXELS[1:3])
  np.testing.assert_array_equal(robust[1:3], half[0])
  np.testing.assert_allclose(images_adv[1:3], half[1], atol=1e-6)


def test_settings_change_without_compiling_again():
  traces = []

  def logits_fn(images):
    traces.append(images.shape)
    return pixel_logits(images)

  attack = pgd.make_evaluation_attack(objective='margin', norm='l2')
  attack = jax.jit(functools.partial(attack, logits_fn))
  attack(PIXELS, ZEROS, KEY, pgd.Settings(0.1, 0.05, 2, 1, 0.0))
  count = len(traces)
  robust, _ = attack(PIXELS, ZEROS, KEY, pgd.Settings(0.3, 0.1, 5, 20, 1.0))
  assert count == len(traces) <= 4
  assert not robust.any()


def test_l2_evaluation_stays_in_its_ball():
  attack = pgd.make_evaluation_attack(norm='l2')
  rng = np.random.default_rng(1)
  images = rng.uniform(size=(4, 3, 3, 2)).astype(np.float32)
  weights = jnp.asarray(rng.uniform(-1, 1, (9, 2)), jnp.float32)

  def logits_fn(images):
    return images.mean(axis=3).reshape(-1, 9) @ weights

  settings = pgd.Settings(0.2, 0.1, 3, 2, 1.0)
  _, images_adv = jax.jit(functools.partial(attack, logits_fn))(
    images, ZEROS, KEY, settings
  )
  deltas = np.asarray(balls.norms(images_adv - images, 'l2'))
  assert (deltas <= 0.2 + 1e-6).all()
  assert (deltas > 0.05).all()


def test_unknown_evaluation_options():
  with pytest.raises(ValueError, match=r"objective: got 'dlr', .*'margin'"):
    pgd.make_evaluation_attack(objective='dlr')
  with pytest.raises(ValueError, match="norm: got 'l0'"):
    pgd.make_evaluation_attack(objective='margin', norm='l0')


def test_logits_that_are_not_finite_are_not_robust():
  images = jnp.full((3, 2, 2, 1), 0.5)
  attack = functools.partial(
    pgd.make_evaluation_attack(),
    lambda inputs: jnp.full((inputs.shape[0], 4), jnp.nan),
    # The label is 0, which NaN has as its argmax.
    labels=jnp.zeros(3, int),
    rng=jax.random.key(0),
    settings=pgd.Settings(epsilon=0.1, step_size=0.1, steps=1),
  )
  robust, images_adv = jax.jit(attack)(images)
  assert not robust.any()
  assert jnp.isfinite(images_adv).all()
  with pytest.raises(ValueError, match='NaN or infinity on 3 of 3 images'):
    attack(images)


def test_one_function_serves_both_objectives():
  weights = jax.random.normal(jax.random.key(1), (4, 3))

  def logits_fn(inputs):
    return inputs.reshape(inputs.shape[0], -1) @ weights

  images = jax.random.uniform(jax.random.key(2), (8, 2, 2, 1))
  labels = logits_fn(images).argmax(axis=1)
  shared = jax.jit(
    functools.partial(
      pgd.make_evaluation_attack(objective=None, norm='l2'), logits_fn
    )
  )
  ends = []
  for index, name in enumerate(pgd.OBJECTIVES):
    settings = pgd.Settings(0.2, 0.05, 5, objective=index)
    expected = jax.jit(
      functools.partial(
        pgd.make_evaluation_attack(objective=name, norm='l2'), logits_fn
      )
    )(images, labels, jax.random.key(3), settings)
    actual = shared(images, labels, jax.random.key(3), settings)
    np.testing.assert_array_equal(actual[0], expected[0])
    np.testing.assert_allclose(actual[1], expected[1], atol=1e-6)
    ends.append(np.asarray(actual[1]))
  # In L2 the two objectives part, or a mix-up would not show.
  assert np.abs(ends[0] - ends[1]).max() > 1e-3
