"""MALT: which class to aim at first, by how near its boundary seems to be.

A targeted attack usually tries the classes in the order of their logits. MALT
divides the logits' gap by the length of its gradient, which is the distance to
the boundary if the network is linear.

Source: Melamed et al. 2024, "MALT Powers Up Adversarial Attacks", and its
published code.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from dhat_jax.attacks import balls, finite

# Classes that are compared, the likeliest ones; the others come after them.
CANDIDATES = 100


def target_order(
  logits_fn: Callable,
  images: chex.Array,
  labels: chex.Array,
  *,
  norm: str,
  candidates: int = CANDIDATES,
) -> chex.Array:
  """Orders the classes by (z_y - z_t) / ||grad (z_y - z_t)||, the label first.

  The gradient's norm is dual to the attack's. A class whose gradient vanishes
  has distance 0, as in the published code. One forward pass and `candidates`
  backward passes.

  Args:
    logits_fn: images -> logits [B, K].
    images: float [B, ...].
    labels: int [B], which the images' predictions should be.
    norm: of the attack: 'linf' (dual: L1) or 'l2'.
    candidates: how many classes are compared.

  Returns:
    int32 [B, K]: the label, then the targets, the nearest first.
  """
  balls.check_choice('norm', norm, balls.NORMS)
  logits, backward = jax.vjp(logits_fn, images)  # [B, K]
  count = logits.shape[1]
  is_label = jax.nn.one_hot(labels, count, dtype=bool)
  masked = jnp.where(is_label, -jnp.inf, logits)
  _, others = jax.lax.top_k(masked, count - 1)  # [B, K - 1]
  compared = others[:, :candidates]  # [B, C]
  unit_labels = is_label.astype(logits.dtype)

  def length(targets):
    unit_targets = jax.nn.one_hot(targets, count, dtype=logits.dtype)
    (gradient,) = backward(unit_labels - unit_targets)
    gradient = finite.without_broken(gradient)
    if norm == 'linf':
      return balls.sum_features(jnp.abs(gradient))
    return balls.norms(gradient, norm)

  lengths = jax.lax.map(length, compared.T).T  # [B, C]
  gaps = jnp.take_along_axis(logits, labels[:, None], axis=1)
  gaps = gaps - jnp.take_along_axis(logits, compared, axis=1)  # [B, C]
  distances = jnp.where(lengths > 0, gaps / jnp.maximum(lengths, 1e-37), 0)
  places = jnp.argsort(distances, axis=1, stable=True)
  nearest = jnp.take_along_axis(compared, places, axis=1)
  return jnp.concatenate(
    [labels[:, None], nearest, others[:, candidates:]], axis=1
  ).astype(jnp.int32)
