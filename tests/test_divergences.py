import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax import divergences

LOGITS = jnp.array([[2.0, 0.0, 1.0, -1.0], [2.0, 0.0, 1.0, -1.0]])
LABELS = jnp.array([0, 1])


def kl_in_float64(p_logits, q_logits):
  """The textbook form, with probabilities."""
  p, q = (
    np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    for z in (np.float64(p_logits), np.float64(q_logits))
  )
  return (p * np.log(p / q)).sum(axis=1)


def finite_differences(function, point, step=1e-5):
  """Central differences of a float64 function -> float."""
  point = np.float64(point)
  gradient = np.zeros_like(point)
  for index in np.ndindex(point.shape):
    shift = np.zeros_like(point)
    shift[index] = step
    change = function(point + shift) - function(point - shift)
    gradient[index] = change / (2 * step)
  return gradient


def test_label_and_largest_other_logits():
  np.testing.assert_array_equal(
    divergences.label_logits(LOGITS, LABELS), [2, 0]
  )
  np.testing.assert_array_equal(
    divergences.largest_other_logits(LOGITS, LABELS), [1, 2]
  )


def test_cross_entropy_by_hand():
  # log(e^2 + 1 + e + 1/e) = log 11.475217 = 2.4401897
  np.testing.assert_allclose(
    divergences.cross_entropy(LOGITS, LABELS), [0.4401897, 2.4401897], rtol=1e-6
  )


def test_cross_entropy_of_uniform_logits_is_log_k():
  np.testing.assert_allclose(
    divergences.cross_entropy(jnp.full((1, 7), 3.0), jnp.array([6])),
    np.log([7]),
    rtol=1e-6,
  )


def test_cross_entropy_at_gap_120():
  logits, labels = jnp.array([[120.0, 0.0]] * 2), jnp.array([0, 1])
  np.testing.assert_allclose(
    divergences.cross_entropy(logits, labels), [0, 120]
  )
  gradient = jax.grad(lambda z: divergences.cross_entropy(z, labels).sum())
  np.testing.assert_allclose(gradient(logits), [[0, 0], [1, -1]], atol=1e-30)


def test_kl_divergence_by_hand():
  p_logits = jnp.log(jnp.array([[0.75, 0.25]]))
  q_logits = jnp.zeros((1, 2))
  # .75 log 1.5 + .25 log .5, and .5 log(2/3) + .5 log 2
  np.testing.assert_allclose(
    divergences.kl_divergence(p_logits, q_logits), [0.1308120], rtol=1e-5
  )
  np.testing.assert_allclose(
    divergences.kl_divergence(q_logits, p_logits), [0.1438410], rtol=1e-5
  )


def test_kl_divergence_ignores_shifts_and_vanishes_at_equality():
  np.testing.assert_allclose(
    divergences.kl_divergence(LOGITS, LOGITS + 5.0), [0, 0], atol=1e-6
  )


@pytest.mark.parametrize('gap', [1.0, 120.0])
@pytest.mark.parametrize('argument', [0, 1])
def test_kl_gradients_match_finite_differences(gap, argument):
  # Rows of both have a nearly tied lead, so that no gradient vanishes.
  logits = [
    np.float32([[0.5, 0.495, -0.5, 0], [0.1, 0, -0.5, 0.5]]) * gap,
    np.float32([[-0.5, 0.5, 0.495, 0], [0.1, -0.5, 0.1, 0.095]]) * gap,
  ]
  value = divergences.kl_divergence(*map(jnp.asarray, logits))
  np.testing.assert_allclose(value, kl_in_float64(*logits), rtol=2e-5)

  gradient = jax.grad(
    lambda p, q: divergences.kl_divergence(p, q).sum(), argument
  )(*map(jnp.asarray, logits))

  def reference(point):
    arguments = list(logits)
    arguments[argument] = point
    return kl_in_float64(*arguments).sum()

  expected = finite_differences(reference, logits[argument])
  assert np.abs(expected).max() > 1e-3
  np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


def test_kl_at_opposite_predictions_120_apart():
  p_logits, q_logits = jnp.array([[120.0, 0.0]]), jnp.array([[0.0, 120.0]])
  np.testing.assert_allclose(
    divergences.kl_divergence(p_logits, q_logits), [120.0]
  )
  by_p, by_q = jax.grad(
    lambda p, q: divergences.kl_divergence(p, q).sum(), (0, 1)
  )(p_logits, q_logits)
  np.testing.assert_allclose(by_q, [[-1, 1]])
  np.testing.assert_allclose(by_p, [[0, 0]], atol=1e-30)


def test_margin_by_hand():
  np.testing.assert_array_equal(divergences.margin(LOGITS, LABELS), [-1, 2])


def test_margin_of_a_tie_is_zero():
  logits = jnp.array([[1.0, 1.0]])
  np.testing.assert_array_equal(divergences.margin(logits, jnp.array([1])), [0])


def test_dlr_by_hand():
  # Sorted: 2, 1, 0, -1. -(2 - 1) / (2 - 0) and -(0 - 2) / (2 - 0).
  np.testing.assert_allclose(divergences.dlr(LOGITS, LABELS), [-0.5, 1.0])


def test_dlr_ignores_scale_and_shift():
  np.testing.assert_allclose(
    divergences.dlr(7 * LOGITS + 3, LABELS), [-0.5, 1.0], rtol=1e-6
  )


def test_dlr_of_ties_is_finite():
  logits = jnp.array([[1.0, 1.0, 0.0], [2.0, 2.0, 2.0]])
  np.testing.assert_array_equal(
    divergences.dlr(logits, jnp.array([0, 1])), [0, 0]
  )


def test_targeted_dlr_by_hand():
  # The scale is 2 - (0 - 1) / 2 = 2.5; gaps z_t - z_y are -1 and -1.
  np.testing.assert_allclose(
    divergences.targeted_dlr(LOGITS, LABELS, jnp.array([2, 3])), [-0.4, -0.4]
  )
  np.testing.assert_allclose(
    divergences.targeted_dlr(LOGITS, LABELS, jnp.array([3, 0])), [-1.2, 0.8]
  )


def test_targeted_dlr_of_ties_is_finite():
  logits = jnp.ones((1, 5))
  np.testing.assert_array_equal(
    divergences.targeted_dlr(logits, jnp.array([0]), jnp.array([4])), [0]
  )


def test_dlr_gradient_matches_finite_differences():
  logits = np.random.default_rng(1).normal(size=(3, 6)).astype(np.float32)
  labels, targets = np.array([0, 1, 2]), np.array([3, 4, 5])

  def reference(z):
    ranked = np.sort(z, axis=1)[:, ::-1]
    scale = ranked[:, 0] - (ranked[:, 2] + ranked[:, 3]) / 2
    rows = np.arange(3)
    return ((z[rows, targets] - z[rows, labels]) / scale).sum()

  gradient = jax.grad(
    lambda z: divergences.targeted_dlr(z, labels, targets).sum()
  )(jnp.asarray(logits))
  np.testing.assert_allclose(
    gradient, finite_differences(reference, logits), rtol=1e-4, atol=1e-5
  )


def test_the_margin_where_ratios_are_not_defined():
  two, three = LOGITS[:, :2], LOGITS[:, :3]
  labels, targets = jnp.array([0, 1]), jnp.array([1, 0])
  gaps = divergences.margin(two, labels)
  np.testing.assert_array_equal(divergences.dlr(two, labels), gaps)
  np.testing.assert_array_equal(
    divergences.targeted_dlr(two, labels, targets), gaps
  )
  np.testing.assert_array_equal(
    divergences.targeted_dlr(three, labels, jnp.array([2, 2])),
    three[:, 2] - jnp.array([three[0, 0], three[1, 1]]),
  )
  # Three classes have a DLR, as in the reference.
  scales = jnp.max(three, axis=1) - jnp.min(three, axis=1)
  np.testing.assert_allclose(
    divergences.dlr(three, labels),
    divergences.margin(three, labels) / scales,
    rtol=1e-6,
  )


@pytest.mark.parametrize('classes', [2, 3])
def test_a_ratio_to_the_largest_gap_has_no_gradient(classes):
  """Why it is the margin: the last of few classes as a target."""
  logits = jnp.array([[3.0, 1.0, -1.0][:classes]])
  labels, targets = jnp.array([0]), jnp.array([classes - 1])

  def ratio(z):
    gap = divergences.targeted_dlr(z, labels, targets)
    return jnp.sum(gap / (jnp.max(z, axis=1) - jnp.min(z, axis=1)))

  np.testing.assert_array_equal(jax.grad(ratio)(logits), 0 * logits)
  slope = jax.grad(
    lambda z: jnp.sum(divergences.targeted_dlr(z, labels, targets))
  )(logits)
  expected = [[-1.0, *[0.0] * (classes - 2), 1.0]]
  np.testing.assert_array_equal(slope, expected)


def test_wrong_shapes_are_refused():
  with pytest.raises(AssertionError):
    divergences.cross_entropy(LOGITS, LABELS[:1])
  with pytest.raises(AssertionError):
    divergences.kl_divergence(LOGITS, LOGITS[:1])
