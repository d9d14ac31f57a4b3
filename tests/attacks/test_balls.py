import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.attacks import balls

SHAPE = (6, 4, 4, 3)

# One compilation each, instead of one per operation.
project = jax.jit(balls.project, static_argnames='norm')
random_start = jax.jit(balls.random_start, static_argnames=('norm', 'start'))
ascent = jax.jit(balls.ascent, static_argnames='norm')


def uniform(seed, shape=SHAPE, low=0.0, high=1.0, dtype=jnp.float32):
  drawn = np.random.default_rng(seed).uniform(low, high, shape)
  return jnp.asarray(drawn, dtype)


def sizes(deltas, norm):
  deltas = np.asarray(deltas, np.float64).reshape(len(deltas), -1)
  order = {'linf': np.inf, 'l2': 2}[norm]
  return np.linalg.norm(deltas, order, axis=1)


def keys(count, seed=0):
  return balls.per_example_keys(jax.random.key(seed), count)


@pytest.mark.parametrize('norm', balls.NORMS)
@pytest.mark.parametrize('epsilon', [0.0, 8 / 255, 0.5])
@pytest.mark.parametrize('shape', [(5, 1), SHAPE])
def test_project_ends_inside_ball_and_box(norm, epsilon, shape):
  images = uniform(0, shape)
  far = uniform(1, shape, -3, 3)
  projected = project(far, images, epsilon, norm)
  assert projected.shape == shape
  assert projected.dtype == jnp.float32
  assert sizes(projected - images, norm).max() <= epsilon + 1e-6
  assert projected.min() >= 0
  assert projected.max() <= 1


@pytest.mark.parametrize('norm', balls.NORMS)
def test_project_leaves_what_is_inside(norm):
  images = uniform(0, low=0.3, high=0.7)
  near = images + uniform(1, low=-0.01, high=0.01)
  np.testing.assert_array_equal(project(near, images, 0.1, norm), near)
  np.testing.assert_array_equal(project(images, images, 0, norm), images)


def test_project_by_hand():
  images = jnp.array([[0.5, 0.5], [0.9, 0.5]])
  points = jnp.array([[0.8, 0.9], [1.2, 0.9]])
  np.testing.assert_allclose(
    project(points, images, 0.2, 'linf'), [[0.7, 0.7], [1.0, 0.7]]
  )
  # Both deltas are (.3, .4), of length .5: half of each remains, box apart.
  np.testing.assert_allclose(
    project(points, images, 0.25, 'l2'), [[0.65, 0.7], [1.0, 0.7]]
  )


def test_ascent_by_hand():
  gradients = jnp.array([[3.0, -4.0], [0.0, 2.0], [0.0, 0.0]])
  np.testing.assert_array_equal(
    ascent(gradients, 'linf'), [[1, -1], [0, 1], [0, 0]]
  )
  np.testing.assert_allclose(
    ascent(gradients, 'l2'), [[0.6, -0.8], [0, 1], [0, 0]], rtol=1e-6
  )


@pytest.mark.parametrize('scale', [1e-30, 1e-12, 1.0, 1e25])
def test_ascent_l2_has_size_one_at_any_scale(scale):
  gradients = uniform(0, low=-1, high=1) * scale
  np.testing.assert_allclose(sizes(ascent(gradients, 'l2'), 'l2'), 1, rtol=1e-5)


def test_per_example_keys_folds_one_key_and_keeps_many():
  rng = jax.random.key(3)
  folded = balls.per_example_keys(rng, 4)
  assert folded.shape == (4,)
  expected = jax.random.fold_in(rng, 2)
  assert (jax.random.key_data(folded[2]) == jax.random.key_data(expected)).all()
  same = balls.per_example_keys(folded, 4)
  assert (jax.random.key_data(same) == jax.random.key_data(folded)).all()


def test_per_example_keys_refuses_other_shapes_and_raw_keys():
  with pytest.raises(
    ValueError, match=r'shape \(4,\), expected \(\) or \(3,\)'
  ):
    balls.per_example_keys(keys(4), 3)
  with pytest.raises(ValueError, match='typed key'):
    balls.per_example_keys(jnp.zeros(2, jnp.uint32), 2)


@pytest.mark.parametrize('norm', balls.NORMS)
def test_uniform_start_is_inside_ball_and_box(norm):
  images = uniform(0)
  start = random_start(keys(6), images, 0.1, norm, 'uniform')
  assert start.shape == SHAPE
  assert start.dtype == jnp.float32
  start = np.asarray(start)
  assert sizes(start - np.asarray(images), norm).max() <= 0.1 + 1e-6
  assert start.min() == 0 < start.max() == 1


def test_starts_keep_bfloat16():
  images = uniform(0, dtype=jnp.bfloat16)
  start = random_start(keys(6), images, 0.1, 'linf', 'uniform')
  assert start.dtype == jnp.bfloat16
  deltas = np.float32(start) - np.float32(images)
  assert np.abs(deltas).max() <= 0.1 + 1 / 256


def many_noises(norm):
  """240 draws from the unit ball, far from the box."""
  images = jnp.full(SHAPE, 0.5)
  return np.concatenate(
    [
      np.asarray(random_start(keys(6, seed), images, 0.1, norm, 'uniform'))
      for seed in range(40)
    ]
  ) / np.float32(0.1) - np.float32(5)


def test_uniform_start_fills_the_linf_ball():
  noises = many_noises('linf')
  # U(-1, 1) has mean 0, variance 1/3; 11,520 draws.
  assert abs(noises.mean()) < 0.03
  assert abs(noises.var() - 1 / 3) < 0.02
  assert noises.min() < -0.99
  assert noises.max() > 0.99


def test_uniform_start_fills_the_l2_ball_evenly():
  noises = many_noises('l2')
  assert abs((noises > 0).mean() - 0.5) < 0.03
  # The volume within radius r is r^48: uniform on [0, 1].
  volumes = sizes(noises, 'l2') ** 48
  np.testing.assert_allclose(
    np.quantile(volumes, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.1
  )


def test_gaussian_start_is_small_noise_whatever_the_radius():
  images = np.zeros(SHAPE, np.float32)
  start = np.asarray(random_start(keys(6), images, 0.0, 'linf', 'gaussian'))
  assert abs(np.std(start) / 0.001 - 1) < 0.1
  assert start.min() < 0


def test_no_start_is_the_image():
  images = uniform(0)
  start = random_start(keys(6), images, 0.1, 'linf', 'none')
  np.testing.assert_array_equal(start, images)


@pytest.mark.parametrize(
  ('norm', 'start'),
  [('linf', 'uniform'), ('l2', 'uniform'), ('linf', 'gaussian')],
)
def test_noise_follows_the_examples_key(norm, start):
  images, rngs = np.asarray(uniform(0)), keys(6)
  drawn = np.asarray(random_start(rngs, images, 0.1, norm, start))
  moved = random_start(rngs[::-1], images[::-1], 0.1, norm, start)
  np.testing.assert_array_equal(drawn, np.asarray(moved)[::-1])
  alike = np.broadcast_to(images[:1], SHAPE)
  noises = np.asarray(random_start(rngs, alike, 0.1, norm, start))
  assert len(np.unique(noises.reshape(6, -1), axis=0)) == 6


def test_noise_does_not_depend_on_the_batch_size():
  images, rngs = uniform(0), keys(6)
  whole = random_start(rngs, images, 0.1, 'l2', 'uniform')
  part = random_start(rngs[2:4], images[2:4], 0.1, 'l2', 'uniform')
  np.testing.assert_array_equal(whole[2:4], part)


def test_unknown_names_list_the_choices():
  images = uniform(0)
  with pytest.raises(ValueError, match=r"norm: got 'l1', choices are .*'l2'"):
    balls.project(images, images, 0.1, 'l1')
  with pytest.raises(ValueError, match="norm: got 'l1'"):
    balls.ascent(images, 'l1')
  with pytest.raises(
    ValueError, match=r"start: got 'zero', choices are .*none"
  ):
    balls.random_start(keys(6), images, 0.1, 'linf', 'zero')


# Rows of logits, their labels, and whether the prediction is right.
PREDICTIONS = [
  ([0.0, 2.0, 1.0], 1, True),
  ([0.0, 2.0, 1.0], 2, False),
  ([1.0, 1.0, 0.0], 0, True),  # tied: the first counts
  ([1.0, 1.0, 0.0], 1, False),
  ([0.0, 0.0, 0.0], 0, True),
  ([np.nan, 1.0, 0.0], 0, False),  # where argmax is 0
  ([0.0, 1.0, np.nan], 1, False),
  ([0.0, np.inf, 0.0], 1, False),
  ([0.0, 1.0, -np.inf], 1, False),
]


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('xp', [np, jnp])
def test_is_right(xp, dtype):
  logits, labels, right = zip(*PREDICTIONS, strict=True)
  logits = xp.asarray(logits).astype(jnp.dtype(dtype))
  answer = balls.is_right(logits, xp.asarray(labels))
  assert isinstance(answer, np.ndarray if xp is np else jax.Array)
  assert answer.dtype == bool
  np.testing.assert_array_equal(answer, right)


def test_is_right_can_be_traced():
  logits, labels, right = zip(*PREDICTIONS, strict=True)
  answer = jax.jit(balls.is_right)(jnp.asarray(logits), jnp.asarray(labels))
  np.testing.assert_array_equal(answer, right)
