"""MALT's order of target classes, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.attacks import autoattack, malt

CLASSES = 6


def problem(slope_scale=1.0):
  generator = np.random.default_rng(3)
  slope = generator.normal(size=(12, CLASSES))
  slope *= np.geomspace(1, slope_scale, CLASSES)  # some classes are steep
  images = generator.uniform(size=(8, 2, 3, 2))
  return slope, images


def logits_of(slope):
  return lambda images: jnp.sin(images.reshape(len(images), -1) @ slope)


def distances(slope, images, label, norm):
  """float64 [K] of one image: sine's derivative by hand, class by class."""
  inner = images.ravel() @ slope
  logits, jacobian = np.sin(inner), slope * np.cos(inner)  # [D, K]
  rows = []
  for target in range(CLASSES):
    gradient = jacobian[:, target] - jacobian[:, label]
    gap = logits[label] - logits[target]
    ord_ = 1 if norm == 'linf' else 2
    length = np.linalg.norm(gradient, ord_)
    rows.append(gap / length if length else 0.0)
  return np.array(rows)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_order_is_that_of_the_linear_distance(norm):
  slope, images = problem(20.0)
  with jax.enable_x64(True):
    logits = np.asarray(logits_of(slope)(images))
    labels = logits.argmax(axis=1)
    order = malt.target_order(
      logits_of(slope), jnp.asarray(images), jnp.asarray(labels), norm=norm
    )
  changed = 0
  for image, label, z, got in zip(images, labels, logits, order, strict=True):
    wanted = distances(slope, image, label, norm)
    wanted[label] = -1
    np.testing.assert_array_equal(got, np.argsort(wanted, kind='stable'))
    changed += not np.array_equal(got, np.argsort(-z, kind='stable'))
  assert changed >= 4  # it is not the order of the logits


def test_beyond_the_candidates_classes_keep_the_order_of_their_logits():
  slope, images = problem(20.0)
  logits = np.asarray(logits_of(slope)(images))
  labels = logits.argmax(axis=1)
  by_logits = np.argsort(-logits, axis=1, kind='stable')
  order = malt.target_order(
    logits_of(slope), images, labels, norm='linf', candidates=2
  )
  np.testing.assert_array_equal(order[:, 3:], by_logits[:, 3:])
  np.testing.assert_array_equal(order[:, 0], labels)
  np.testing.assert_array_equal(
    np.sort(order[:, 1:3]), np.sort(by_logits[:, 1:3])
  )


def test_a_class_without_gradient_comes_first():
  """As in the published code: its distance counts as 0."""

  def logits_fn(images):
    x = images.reshape(len(images), -1)[:, 0]
    still = jax.lax.stop_gradient(x)
    return jnp.stack([x + 5, x + still - 9, x + 3.0 + 0.1 * x, 2 * x], axis=1)

  images = jnp.full((1, 2, 2, 1), 0.5)
  order = malt.target_order(logits_fn, images, jnp.array([0]), norm='l2')
  np.testing.assert_array_equal(order, [[0, 1, 3, 2]])


def test_apgd_t_aims_at_the_nearest_class_first():
  """One target breaks images that the likeliest class does not."""
  generator = np.random.default_rng(0)
  slope = np.float32(generator.normal(size=(16, CLASSES)))
  slope *= np.float32([1, 1, 1, 1, 12, 12])
  offset = np.float32([0, 0, 0, 0, -3, -3])

  def logits_fn(images):
    return (images.reshape(len(images), -1) - 0.5) @ slope + offset[None]

  images = generator.uniform(0.4, 0.6, size=(40, 4, 4, 1)).astype(np.float32)
  labels = np.asarray(logits_fn(images).argmax(axis=1))
  options = {'version': 'custom', 'attacks': ('apgd-t',), 'n_targets': 1}
  results = {
    order: autoattack.autoattack(
      logits_fn,
      images,
      labels,
      epsilon=0.01,
      n_iter=10,
      batch_size=40,
      target_order=order,
      **options,
    )
    for order in ('logits', 'malt')
  }
  robust = {order: int(r.robust.sum()) for order, r in results.items()}
  assert robust['malt'] <= robust['logits'] - 3
  # Towards the nearest one of all, as the order says.
  order = malt.target_order(logits_fn, images, labels, norm='linf')
  broken = ~results['malt'].robust
  result = results['malt']
  np.testing.assert_array_equal(result.targets[broken], order[broken, 1])
  assert np.mean(result.predictions[broken] == order[broken, 1]) > 0.8


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    ({'target_order': 'near'}, "target_order: got 'near'"),
    ({'attacks': ('fab-t',)}, r"target_order: .* expected 'apgd-t' among them"),
  ],
)
def test_mistakes_show_before_anything_runs(options, words):
  options = {'attacks': ('apgd-t',), 'target_order': 'malt', **options}
  with pytest.raises(ValueError, match=words):
    autoattack.autoattack(
      None, None, None, epsilon=0.1, version='custom', **options
    )
