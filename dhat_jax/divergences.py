"""Objectives of losses and attacks on logits: [B, K] -> [B], to be maximised.

Every function grows as the prediction gets worse: attacks maximise it, and
training minimises it. Everything is computed from logits through log-softmax,
never from probabilities: the probability form of a KL divergence has NaN
gradients at logit gaps near 120.
"""

import chex
import jax
import jax.numpy as jnp

# With fewer classes the ratio is not defined, and the margin takes its place.
DLR_CLASSES = 3
TARGETED_DLR_CLASSES = 4


def _check(logits: chex.Array, labels: chex.Array) -> None:
  chex.assert_rank([logits, labels], [2, 1])
  chex.assert_equal_shape_prefix([logits, labels], 1)


def label_logits(logits: chex.Array, labels: chex.Array) -> chex.Array:
  """Returns z_y, the logit of each example's label: [B, K] -> [B].

  An invalid label gives NaN, with a NaN gradient. A negative one must not count
  from the end, as an index would.
  """
  _check(logits, labels)
  inside = jnp.clip(labels, 0, logits.shape[1] - 1)
  valid = labels == inside
  picked = jnp.take_along_axis(logits, inside[:, None], axis=1)[:, 0]
  return picked * jnp.where(valid, 1.0, jnp.nan).astype(logits.dtype)


def largest_other_logits(logits: chex.Array, labels: chex.Array) -> chex.Array:
  """Returns max_{k != y} z_k: [B, K] -> [B]."""
  is_label = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)  # [B, K]
  return jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=1)


def cross_entropy(logits: chex.Array, labels: chex.Array) -> chex.Array:
  """Cross entropy -log softmax(z)_y, in nats.

  Args:
    logits: float [B, K].
    labels: int [B] in [0, K); NaN for others.

  Returns:
    float [B].
  """
  return jax.nn.logsumexp(logits, axis=1) - label_logits(logits, labels)


def kl_divergence(p_logits: chex.Array, q_logits: chex.Array) -> chex.Array:
  """KL(softmax(p_logits) || softmax(q_logits)), in nats.

  Differentiable in both arguments and finite for any finite logits. Rounding
  can make the divergence of nearly equal logits a tiny negative number.

  Args:
    p_logits: float [B, K], the reference distribution (TRADES: clean).
    q_logits: float [B, K], the other one (TRADES: adversarial).

  Returns:
    float [B].
  """
  chex.assert_rank([p_logits, q_logits], 2)
  chex.assert_equal_shape([p_logits, q_logits])
  log_p = jax.nn.log_softmax(p_logits, axis=1)
  log_q = jax.nn.log_softmax(q_logits, axis=1)
  return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=1)


def margin(logits: chex.Array, labels: chex.Array) -> chex.Array:
  """CW margin max_{k != y} z_k - z_y; positive means misclassified.

  Args:
    logits: float [B, K], K >= 2.
    labels: int [B].

  Returns:
    float [B] (Carlini & Wagner 2017, without the confidence constant).
  """
  return largest_other_logits(logits, labels) - label_logits(logits, labels)


def dlr(logits: chex.Array, labels: chex.Array) -> chex.Array:
  """Difference of logits ratio (Croce & Hein 2020, eq. 6).

  -(z_y - max_{k != y} z_k) / (z_(1) - z_(3) + 1e-12), with z_(i) the i-th
  largest logit. Two classes have no third logit: there it is the margin itself.
  A ratio to z_(1) - z_(2) would be 1 or -1 everywhere, without a gradient.

  Args:
    logits: float [B, K], K >= 2.
    labels: int [B].

  Returns:
    float [B].
  """
  gap = margin(logits, labels)
  if logits.shape[1] < DLR_CLASSES:
    return gap
  top = jax.lax.top_k(logits, 3)[0]  # [B, 3], descending
  return gap / (top[:, 0] - top[:, 2] + 1e-12)


def targeted_dlr(
  logits: chex.Array, labels: chex.Array, targets: chex.Array
) -> chex.Array:
  """Targeted DLR (Croce & Hein 2020, eq. 7).

  -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12). Two and three classes
  have no fourth logit: there it is the margin towards the target, z_t - z_y. A
  ratio to z_(1) - z_(3) would be -1 around every image whose target ranks
  third, without a gradient.

  Args:
    logits: float [B, K], K >= 2.
    labels: int [B], the true classes.
    targets: int [B], the classes to reach.

  Returns:
    float [B].
  """
  gap = label_logits(logits, targets) - label_logits(logits, labels)
  if logits.shape[1] < TARGETED_DLR_CLASSES:
    return gap
  top = jax.lax.top_k(logits, 4)[0]  # [B, 4], descending
  return gap / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + 1e-12)
