"""The door for networks: shape, dtype, NaN, and the rest of the batch."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from dhat_jax.attacks import apgd, balls, fab, pgd, square
from dhat_jax.attacks.autoattack import autoattack, checks
from dhat_jax.models.outputs import Outputs
from tests.attacks import linear

KEY = jax.random.key(0, impl='threefry2x32')
IMAGES, LABELS = linear.problem(count=4, wrong=0)
SETTINGS = pgd.Settings(1e-4, 1e-4, 3)
ALONE = {
  'apgd': functools.partial(apgd.apgd, rng=KEY, epsilon=1e-4, n_iter=3),
  'apgd-t': functools.partial(
    apgd.apgd_targeted, rng=KEY, epsilon=1e-4, n_iter=3, target_rank=2
  ),
  'fab': functools.partial(fab.fab, epsilon=1e-4, n_iter=3),
  'fab-t': functools.partial(
    fab.fab_targeted, epsilon=1e-4, n_iter=3, target_rank=2
  ),
  'square': functools.partial(
    square.square, rng=KEY, epsilon=1e-4, n_queries=5
  ),
  'pgd': functools.partial(
    pgd.make_evaluation_attack(), rng=KEY, settings=SETTINGS
  ),
}
quick = hypothesis.settings(
  max_examples=20, deadline=None, derandomize=True, database=None
)


def run(name, logits_fn, images=IMAGES, labels=LABELS, **options):
  """One attack, compiled."""
  attack = functools.partial(ALONE[name], logits_fn, **options)
  robust, images_adv = jax.jit(
    lambda images, labels: attack(images=images, labels=labels)
  )(images, labels)
  return np.asarray(robust), np.asarray(images_adv)


@pytest.mark.parametrize(
  ('wrap', 'got'),
  [
    (lambda z: Outputs(main=z), "Outputs with the keys .'main'."),
    (lambda z: (z, z), 'tuple of 2'),
    (lambda z: {'logits': z}, 'dict with the keys'),
    (lambda z: z[:, 0], r'float32 \(4,\)'),
    (lambda z: z[:, :, None], r'float32 \(4, 5, 1\)'),
    (lambda z: z[:2], r'float32 \(2, 5\)'),
    (lambda z: None, 'NoneType'),
    (lambda z: z[:, :1], 'at least 2 classes'),
    (lambda z: z.argmax(axis=1), r'int32 \(4,\)'),
    (lambda z: z > 0, 'expected float'),
  ],
)
def test_what_is_no_logits_is_named(wrap, got):
  def logits_fn(images):
    return wrap(linear.logits_of(images))

  with pytest.raises(ValueError, match=got):
    autoattack(logits_fn, IMAGES, LABELS, epsilon=0.1)
  for name in ('apgd', 'fab', 'square', 'pgd'):
    with pytest.raises(ValueError, match=got):
      run(name, logits_fn)
    with pytest.raises(ValueError, match=got):
      ALONE[name](logits_fn, images=IMAGES, labels=LABELS)


def test_what_cannot_be_called_is_named():
  with pytest.raises(TypeError, match='logits_fn: got dict, expected a func'):
    autoattack({}, IMAGES, LABELS, epsilon=0.1)


@pytest.mark.parametrize(
  'logits_fn',
  [
    lambda images: np.asarray(images).reshape(len(images), -1),
    lambda images: linear.logits_of(images) if images.max() else None,
  ],
)
def test_what_cannot_be_traced_is_named(logits_fn):
  with pytest.raises(TypeError, match=r'got Tracer.*, expected'):
    autoattack(logits_fn, IMAGES, LABELS, epsilon=0.1)


@pytest.mark.parametrize('images', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('logits', ['float32', 'bfloat16', 'float16'])
def test_attacks_compute_in_float32(images, logits):
  def logits_fn(inputs):
    assert inputs.dtype == jnp.float32
    return linear.logits_of(inputs).astype(logits)

  # All of `plus`, with which a scan failed on bfloat16.
  names = ('fab', 'square') if images == logits else ('fab',)
  result = autoattack(
    logits_fn,
    jnp.asarray(IMAGES, images),
    LABELS,
    epsilon=0.02,
    version='custom',
    attacks=names,
    n_restarts=1,
    n_iter=3,
    n_queries=10,
  )
  assert result.images_adv.dtype == np.float32
  assert 0 < result.robust.sum() < 4
  wrong = ~balls.is_right(np.asarray(logits_fn(result.images_adv)), LABELS)
  np.testing.assert_array_equal(wrong, ~result.robust)


def _blind(images):
  """A gradient of NaN everywhere; what is predicted stays the same."""
  hidden = jnp.sqrt(jnp.sum(0 * images, axis=(1, 2, 3)))
  return linear.logits_of(images) + hidden[:, None]


@pytest.mark.parametrize('name', ALONE)
def test_a_gradient_of_nan_is_no_step(name):
  robust, images_adv = run(name, _blind)
  assert np.isfinite(images_adv).all()
  assert images_adv.min() >= 0
  assert images_adv.max() <= 1
  assert np.abs(images_adv - IMAGES).max() <= 1e-4 + 1e-6
  right = balls.is_right(np.asarray(linear.logits_of(images_adv)), LABELS)
  np.testing.assert_array_equal(robust, right)


def test_gradients_of_nan_are_counted_and_warned_of():
  names = ('apgd-ce', 'apgd-t', 'fab', 'fab-t', 'square')
  result = linear.attack(
    *names, logits_fn=_blind, epsilon=1e-4, n_targets=1, n_iter=3
  )
  assert result.robust.sum() == 17
  for name in names[:-1]:
    line = f'{name}: gradients with NaN or infinity in 17 runs'
    assert sum(text.startswith(line) for text in result.warnings) == 1
  assert not [text for text in result.warnings if text.startswith('square')]
  assert linear.attack('fab', n_iter=3, epsilon=1e-4).warnings == []


def test_one_broken_entry_leaves_the_others():
  """A NaN in one pixel's gradient: the steps along the others stay."""

  def logits_fn(images):
    z = linear.logits_of(images)
    return z + jnp.sqrt(0 * images[:, :1, 0, 0])

  attack = pgd.make_attack(epsilon=0.1, step_size=0.1, steps=1, start='none')
  images = np.full_like(IMAGES, 0.5)
  images_adv = attack(lambda x: logits_fn(x)[:, 0], KEY, images)
  moved = np.abs(images_adv - images)
  assert moved[:, 0, 0, 0].max() == 0
  np.testing.assert_allclose(moved.reshape(4, -1)[:, 1:], 0.1, rtol=1e-5)


@pytest.mark.parametrize('name', ALONE)
def test_a_network_of_nan_is_refused_or_robust_nowhere(name):
  def logits_fn(images):
    return linear.logits_of(images) * jnp.nan

  with pytest.raises(ValueError, match=r'NaN or infinity on 4 .*clean'):
    ALONE[name](logits_fn, images=IMAGES, labels=np.zeros(4, int))
  robust, images_adv = run(name, logits_fn, labels=np.zeros(4, int))
  assert not robust.any()
  assert np.isfinite(images_adv).all()


@pytest.mark.parametrize('name', ['apgd', 'fab', 'square', 'pgd'])
def test_nan_on_a_valid_image_is_wrong(name):
  """NaN one step from every image, in a network that is right on them."""

  def logits_fn(images):
    near = jnp.all(jnp.abs(images - IMAGES[:1]) < 2e-5, axis=(1, 2, 3))
    logits = linear.logits_of(images)
    return jnp.where(near[:, None], logits, jnp.nan)

  # FAB goes straight to the boundary of the network's other half.
  options = {'epsilon': 1.0} if name == 'fab' else {}
  robust, images_adv = run(name, logits_fn, IMAGES[:1], LABELS[:1], **options)
  assert not robust.any()
  assert np.isfinite(images_adv).all()
  with pytest.raises(ValueError, match=r'NaN or infinity on 1 of 1 images'):
    autoattack(
      logits_fn,
      IMAGES[:1],
      LABELS[:1],
      epsilon=options.get('epsilon', 1e-3),
      version='custom',
      attacks=({'apgd': 'apgd-ce', 'pgd': 'apgd-ce'}.get(name, name),),
      n_iter=3,
      n_queries=9,
    )


def _batch_norm(images):
  """As in training mode: normalised by the batch's own statistics."""
  flat = images.reshape(len(images), -1)
  flat -= flat.mean(axis=0, keepdims=True)
  flat /= flat.std(axis=0, keepdims=True) + 1e-3
  return flat @ linear.SLOPE + 0.1 * linear.logits_of(images)


@pytest.mark.parametrize('batch_size', [1, 7, 20])
def test_logits_that_depend_on_the_batch_are_warned_of(batch_size):
  images, _ = linear.problem()
  options = {
    'epsilon': 1e-3,
    'version': 'custom',
    'attacks': ('fab-t',),
    'n_iter': 1,
    'n_targets': 1,
    'batch_size': batch_size,
  }
  labels = np.zeros(len(images), int)
  line = autoattack(_batch_norm, images, labels, **options).warnings[0]
  assert 'depend on the other images of the batch' in line
  assert 'training mode' in line
  assert autoattack(linear.logits_of, images, labels, **options).warnings == []


def test_rounding_is_no_dependence_on_the_batch():
  logits = np.random.default_rng(0).normal(size=(5, 3))
  assert checks.warn_batch(logits, logits * (1 + 1e-4)) == []
  assert checks.warn_batch(logits, logits * (1 + 1e-2))
  assert checks.warn_batch(logits, logits * np.nan)


def _outputs():
  """What networks may return, by name."""
  return {
    'logits': lambda z: z,
    'float64': lambda z: np.float64(2) * z,
    'bfloat16': lambda z: z.astype(jnp.bfloat16),
    'huge': lambda z: z * 1e37,
    'tiny': lambda z: z * 1e-37,
    'constant': lambda z: z * 0,
    'inf': lambda z: jnp.where(z > 0, jnp.inf, z),
    'minus inf': lambda z: z.at[:, 4].set(-jnp.inf),
    'nan': lambda z: z * jnp.nan,
    'steep': lambda z: jnp.sign(z) * jnp.sqrt(jnp.abs(z)),
    'overflow': lambda z: jnp.exp(100 * z),
    'vector': lambda z: z[0],
    'list': lambda z: [z],
  }


@quick
@hypothesis.given(
  name=st.sampled_from(sorted(ALONE)),
  output=st.sampled_from(sorted(_outputs())),
)
def test_attacks_work_or_raise_ours(name, output):
  def logits_fn(images):
    return _outputs()[output](linear.logits_of(images))

  result, error = linear.outcome(run, name, logits_fn)
  if result is None:
    assert ': got ' in error
    return
  robust, images_adv = result
  assert np.isfinite(images_adv).all()
  right = balls.is_right(np.asarray(logits_fn(images_adv)), LABELS)
  assert not np.any(robust & ~right)
