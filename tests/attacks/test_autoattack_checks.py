"""What AutoAttack refuses, and what it warns of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.attacks import apgd
from dhat_jax.attacks.autoattack import autoattack, checks, targets
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
    ({'randomized': 1}, 'True or False'),
    ({'randomized': True, 'samples': 1}, 'samples'),
    ({'images': np.zeros((2, 6, 6, 2), np.uint8)}, 'float'),
    ({'images': np.full((2, 6, 6, 2), 255.0)}, r'\[0, 1\]'),
    ({'images': np.full((2, 72), 0.5)}, r'\[B, H, W, C\]'),
    ({'labels': np.zeros(3, int)}, 'labels'),
    ({'labels': np.array([0, 5])}, '5 logits'),
    ({'labels': np.array([1, -1])}, r'take \(labels \+ 1\) // 2'),
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
    (lambda z: z[:, :1], r'concatenate\(\[-z / 2, z / 2\], axis=1\)'),
    (lambda z: z[:, 0], r'stack\(\[-z / 2, z / 2\], axis=1\)'),
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


ALL = checks.VERSIONS['plus']


@pytest.mark.parametrize(
  ('classes', 'lines'),
  [
    (2, ['apgd-dlr', 'apgd-t', 'use the only other class, not 9']),
    (3, ['apgd-t', 'use all 2 other classes, not 9']),
    (9, ['use all 8 other classes, not 9']),
    (10, []),
  ],
)
def test_what_differs_with_few_classes_is_said(classes, lines):
  differences = checks.few_classes(ALL, classes, 9)
  assert len(differences) == len(lines)
  for line, words in zip(differences, lines, strict=True):
    assert line.startswith(f'{classes} classes: ')
    assert words in line
  # Attacks that do not run differ in nothing.
  assert checks.few_classes(('apgd-ce', 'square'), classes, 9) == []


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


@pytest.mark.parametrize(
  ('logits_fn', 'randomized', 'words'),
  [
    (lambda x, key: x, False, r'\(x, key\), expected one of \(images\); one'),
    (lambda x: x, True, r'\(x\), expected one of \(images, key\)'),
  ],
)
def test_a_network_of_other_arguments_is_named(logits_fn, randomized, words):
  with pytest.raises(
    TypeError, match=f'logits_fn: got a function with {words}'
  ):
    linear.attack('apgd-ce', logits_fn=logits_fn, randomized=randomized)


def test_sigmoids_are_warned_of():
  result = linear.attack(
    'apgd-ce', logits_fn=lambda x: jax.nn.sigmoid(linear.logits_of(x))
  )
  assert 'before its sigmoid' in ' '.join(result.warnings)
  assert 'sigmoid' not in ' '.join(linear.attack('apgd-ce').warnings)


def test_tensors_of_another_library_are_arrays():
  class Tensor:
    """As PyTorch's: a dtype that NumPy does not know, and an array."""

    dtype = 'torch.float32'

    def __init__(self, array):
      self._array, self.shape = array, array.shape

    def __array__(self, dtype=None, copy=None):
      return np.asarray(self._array, dtype)

  images, labels = linear.problem()
  options = {'epsilon': 0.03, 'version': 'custom', 'attacks': ('apgd-ce',)}
  results = [
    autoattack(linear.logits_of, given, labels, **options, n_iter=2)
    for given in (images, Tensor(images))
  ]
  np.testing.assert_array_equal(*(r.images_adv for r in results))


def test_noise_needs_a_key():
  def noisy(images, key):
    return linear.logits_of(images) + jax.random.normal(key, (len(images), 5))

  images, labels = linear.problem()
  keys = jax.random.split(jax.random.key(0), 5)
  samples = [np.asarray(noisy(images, key)) for key in keys]
  (line,) = checks.warn_randomized(samples, labels)
  assert 'logits_fn(images, key) and randomized=True' in line
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
  (line,) = rand.warnings
  assert line.startswith('a randomised network')


def test_the_label_ranks_first_whatever_its_logit():
  logits = np.array([[1, 3, 2], [2, 2, 0], [5, 0, 4]], np.float32)
  ranking = targets.logits_ranking(logits, np.array([0, 0, 0]))
  np.testing.assert_array_equal(ranking, [[0, 1, 2], [0, 1, 2], [0, 2, 1]])
  assert logits.max() == 5  # they are not overwritten


def test_targets_of_tied_logits_are_other_classes():
  """The first of the largest logits is the prediction, here the label."""
  images = np.full((3, 4, 4, 1), 0.5, np.float32)

  def logits_fn(images):
    z = images.mean((1, 2, 3)) - 0.5
    return jnp.stack([z, -z, z - 9, z - 9], axis=1)

  result = autoattack(
    logits_fn,
    images,
    np.zeros(3, int),
    epsilon=0.1,
    version='custom',
    attacks=['apgd-t', 'fab-t'],
    n_targets=1,
    n_iter=3,
  )
  assert result.clean_accuracy == 1
  np.testing.assert_array_equal(result.targets, [1, 1, 1])
  assert not result.robust.any()
  assert not result.warnings


@pytest.mark.parametrize(
  ('noise', 'words'),
  [
    ({'same_network': True}, 'flags are the same'),
    ({'same_network': False}, 'flags may differ'),
  ],
)
def test_who_judges_the_images_of_fab_decides_what_is_said(noise, words):
  (line,) = checks.warn_stops(('fab-t',), True, **noise)
  assert words in line
  assert checks.warn_stops(('apgd-t',), True, **noise) == []


def test_rand_without_a_key_is_checked_like_the_others():
  def batch_norm(images):
    logits = linear.logits_of(images)
    return logits - logits.mean(axis=0, keepdims=True)

  images, _ = linear.problem()
  labels = np.array(jnp.argmax(batch_norm(images), axis=1))
  options = {'version': 'rand', 'n_iter': 1, 'epsilon': 0.01}
  warnings = autoattack(batch_norm, images, labels, **options).warnings
  assert 'logits depend on the other images' in '\n'.join(warnings)


def test_several_losses_need_places():
  images, labels = linear.problem()
  with pytest.raises(ValueError, match='which: got None'):
    apgd.apgd(
      linear.logits_of,
      images,
      labels,
      jax.random.key(0, impl='threefry2x32'),
      epsilon=0.1,
      loss=('ce', 'dlr'),
    )
