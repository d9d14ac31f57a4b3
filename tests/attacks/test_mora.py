"""MORA against a rendering in NumPy, and on networks made to fool attacks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.attacks import balls, mora
from tests.attacks import mora_numpy

COUNT, SIZE, CLASSES = 12, 20, 5
MERGE = np.array([0.5, 0.5])
EPSILON = {'linf': 0.12, 'l2': 0.4}
KEY = jax.random.key(0)


def problem():
  """Heads [2, D, K], images [N, D], and what the output predicts of them."""
  generator = np.random.default_rng(1)
  slopes = generator.normal(size=(2, SIZE, CLASSES))
  images = generator.uniform(size=(COUNT, SIZE))
  logits = np.tensordot(MERGE, 4 * np.sin((images - 0.5) @ slopes), 1)
  return slopes, images, logits.argmax(axis=1).astype(np.int32)


def rows_of(slopes, needed=0.0, labels=None):
  """The network: images [B, D] -> [B, 4, K].

  A wrong class has to lead by `needed` to count.
  """

  def rows_fn(images):
    heads = [4 * jnp.sin((images - 0.5) @ slope) for slope in slopes]
    output = sum(m * z for m, z in zip(MERGE, heads, strict=True))
    judged = output
    if needed:
      judged += needed * jax.nn.one_hot(labels, CLASSES)
    return jnp.stack([judged, output, *heads], axis=1)

  return rows_fn


@pytest.mark.parametrize('norm', ['linf', 'l2'])
@pytest.mark.parametrize('share', [0.25, 1.0])
def test_a_run_is_the_rendering_in_numpy(norm, share):
  """With needed=4 most images take all steps, and the last points compare."""
  slopes, images, labels = problem()
  noise = np.random.default_rng(2).uniform(-0.02, 0.02, images.shape)
  start = np.clip(images + noise, 0, 1)
  settings = mora.Settings(EPSILON[norm], steps=7)
  with jax.enable_x64(True):
    end = jax.jit(mora.climb, static_argnums=(0, 7))(
      rows_of(slopes, 4.0, labels),
      jnp.asarray(images),
      jnp.asarray(labels),
      jnp.asarray(start),
      jnp.ones(COUNT, bool),
      share,
      settings,
      norm,
    )
  for place in range(COUNT):
    resists, first_wrong, points = mora_numpy.run(
      slopes,
      MERGE,
      *(images[place], labels[place], start[place]),
      share=share,
      epsilon=settings.epsilon,
      steps=settings.steps,
      norm=norm,
      needed=4.0,
    )
    assert resists == end.robust[place]
    got = end.points if resists else end.images_adv
    wanted = points[-1] if resists else first_wrong
    np.testing.assert_allclose(got[place], wanted, atol=1e-9)
  assert 2 < np.sum(end.robust) < COUNT


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_images_stay_in_the_ball_and_what_is_robust_is_right(norm):
  slopes, images, labels = problem()
  attack = jax.jit(mora.make_evaluation_attack(norm), static_argnums=0)
  rows_fn = rows_of(slopes)
  settings = mora.Settings(0.02, 4)
  images = np.float32(images)
  robust, images_adv = attack(rows_fn, images, labels, KEY, settings)
  deltas = images_adv - images
  assert balls.norms(deltas, norm).max() <= 0.02 + 1e-6
  assert 0 <= images_adv.min() <= images_adv.max() <= 1
  right = rows_fn(images_adv)[:, 0].argmax(axis=1) == labels
  np.testing.assert_array_equal(robust, right)
  np.testing.assert_array_equal(deltas[robust], 0)
  assert 0 < robust.sum() < COUNT


def test_fooled_members_weigh_nothing_and_the_rest_sums_to_one():
  labels = np.array([0, 0, 0])
  output = [[3.0, 1, 0, 0], [3, 1, 0, 0], [0, 5, 1, 0]]
  first = [[2.0, 1, 0, 0], [0, 9, 0, 0], [0, 9, 0, 0]]
  second = [[3.0, 0, 2, 0], [90, 0, 2, 0], [0, 0, 2, 0]]
  members = jnp.stack([jnp.array(z) for z in (output, first, second)], axis=1)
  scale = jnp.array([1.0, 8.8, 1.0])[:, None, None]
  weights = mora.member_weights(members, members / scale, labels)
  np.testing.assert_array_equal(
    weights > 0, [[True, True, True], [True, False, True], [False] * 3]
  )
  for place in (0, 1):
    _, wanted = mora_numpy.weights(
      np.float64(output[place]),
      np.float64([first[place], second[place]]),
      0,
    )
    np.testing.assert_allclose(weights[place], wanted, rtol=1e-5)


@pytest.mark.parametrize(
  ('settings', 'words'),
  [((-0.1, 3), 'epsilon: got -0.1'), ((0.1, 0), 'steps: got 0')],
)
def test_mistakes_are_one_line(settings, words):
  with pytest.raises(ValueError, match=words):
    mora.check_settings(mora.Settings(*settings), 'linf')


def test_logits_without_heads_are_an_error():
  attack = mora.make_evaluation_attack()
  images = np.zeros((2, SIZE), np.float32)
  with pytest.raises(ValueError, match=r'H heads'):
    attack(
      lambda images: jnp.zeros((2, 5)), images, [0, 1], KEY, mora.Settings(1, 1)
    )
