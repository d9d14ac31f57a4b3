"""What AutoAttack refuses, and what it warns of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.attacks.autoattack import autoattack, checks
from tests.attacks import linear


@pytest.mark.parametrize(
  ('options', 'match'),
  [
    ({'version': 'fast'}, 'choices'),
    ({'version': 'custom'}, 'expected names'),
    ({'attacks': ['square']}, 'only with it'),
    ({'version': 'custom', 'attacks': ['pgd']}, 'choices'),
    ({'version': 'custom', 'attacks': ['fab', 'fab']}, 'once'),
    ({'norm': 'l1'}, 'choices'),
    ({'epsilon': 0.0}, 'epsilon'),
    ({'batch_size': 0}, 'batch_size'),
    ({'randomized': True}, 'without noise'),
    ({'images': np.zeros((2, 6, 6, 2), np.uint8)}, 'float'),
    ({'images': np.full((2, 6, 6, 2), 255.0)}, r'\[0, 1\]'),
    ({'images': np.full((2, 72), 0.5)}, r'\[B, H, W, C\]'),
    ({'labels': np.zeros(3, int)}, 'labels'),
    ({'labels': np.array([0, 5])}, '5 logits'),
  ],
)
def test_bad_arguments_are_named(options, match):
  arguments = {
    'images': np.full((2, 6, 6, 2), 0.4, np.float32),
    'labels': np.zeros(2, int),
    'epsilon': 0.1,
    **options,
  }
  with pytest.raises(ValueError, match=match):
    autoattack(linear.logits_of, **arguments)


@pytest.mark.parametrize(
  ('wrap', 'match'),
  [
    (lambda z: jax.nn.softmax(z, axis=1), 'before its softmax'),
    (lambda z: z * jnp.nan, 'NaN'),
    (lambda z: z[:, :3], 'at least 4'),
    (lambda z: z[:, :2], 'at least 4'),
  ],
)
def test_outputs_that_cannot_be_attacked_are_refused(wrap, match):
  images, labels = linear.problem()
  with pytest.raises(ValueError, match=match):
    autoattack(
      lambda x: wrap(linear.logits_of(x)), images, labels % 2, epsilon=0.1
    )


def test_nan_on_the_way_is_refused():
  def logits_fn(images):
    inside = jnp.all((images > 0.05) & (images < 0.95), axis=(1, 2, 3))
    return jnp.where(inside[:, None], linear.logits_of(images), jnp.nan)

  images = np.full((2, 6, 6, 2), 0.1, np.float32)
  labels = np.array(jnp.argmax(linear.logits_of(images), axis=1))
  with pytest.raises(ValueError, match='apgd-ce'):
    autoattack(
      logits_fn,
      images,
      labels,
      epsilon=0.2,
      version='custom',
      attacks=['apgd-ce'],
      n_restarts=1,
      **linear.BUDGET,
    )


def test_two_classes_work_without_dlr():
  images, labels = linear.problem()
  result = autoattack(
    lambda x: linear.logits_of(x)[:, :2],
    images,
    np.minimum(labels, 1),
    epsilon=0.3,
    version='custom',
    attacks=('fab-t', 'square'),
    n_restarts=1,
    **linear.BUDGET,
  )
  assert any('all 1 other' in line for line in result.warnings)
  assert not result.robust.any()


def test_masked_gradients_are_reported():
  # Rounding to 20 levels: no gradient, but Square needs none.
  result = autoattack(
    lambda x: linear.logits_of(jnp.round(x * 20) / 20) * 3,
    *linear.problem(wrong=0),
    epsilon=0.08,
    version='custom',
    attacks=['apgd-ce', 'square'],
    n_restarts=1,
    **linear.BUDGET,
  )
  lines = '\n'.join(result.warnings)
  assert 'starting points with zero gradient' in lines
  assert 'square lowered robust accuracy' in lines


def test_noise_needs_the_version_rand():
  def noisy(images, key):
    return linear.logits_of(images) + jax.random.normal(key, (len(images), 5))

  images, labels = linear.problem()
  keys = jax.random.split(jax.random.key(0), 5)
  samples = [np.asarray(noisy(images, key)) for key in keys]
  (line,) = checks.warn_randomized(samples, labels)
  assert "version='rand'" in line
  assert checks.warn_randomized(samples[:1] * 5, labels) == []
  rand = autoattack(
    noisy,
    images,
    labels,
    epsilon=0.1,
    version='rand',
    randomized=True,
    eot_iter=2,
    n_iter=3,
  )
  assert tuple(rand.flags) == ('clean', 'apgd-ce', 'apgd-dlr')
  assert not any('randomised' in line for line in rand.warnings)
