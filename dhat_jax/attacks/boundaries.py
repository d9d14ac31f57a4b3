"""Linearised decision boundaries: of a target class, or the nearest one."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from dhat_jax.attacks import balls, finite


def targeted_boundary(
  logits_fn: Callable,
  points: chex.Array,
  labels: chex.Array,
  targets: chex.Array,
) -> tuple[chex.Array, chex.Array]:
  """Linearises z_t - z_y: one evaluation, one gradient.

  Args:
    logits_fn: images -> logits [B, K].
    points: float [B, ...].
    labels: int [B].
    targets: int [B].

  Returns:
    values [B] of z_t - z_y; gradients [B, ...], with 0 for entries that are not
    finite; bool [B], whether there was such an entry.
  """

  def total(points):
    predicted = logits_fn(points)
    true = jnp.take_along_axis(predicted, labels[:, None], axis=1)[:, 0]
    other = jnp.take_along_axis(predicted, targets[:, None], axis=1)[:, 0]
    return jnp.sum(other - true), other - true

  (_, values), gradients = jax.value_and_grad(total, has_aux=True)(points)
  broken = finite.any_broken(gradients)
  return values, finite.without_broken(gradients), broken


def nearest_boundary(
  logits_fn: Callable, points: chex.Array, labels: chex.Array, norm: str
) -> tuple[chex.Array, chex.Array]:
  """Linearises z_k - z_y for the class whose linear boundary is nearest.

  One evaluation and K gradients, one at a time to save memory.

  Args:
    logits_fn: images -> logits [B, K].
    points: float [B, ...].
    labels: int [B].
    norm: of the distance; gradients are measured in the dual norm.

  Returns:
    values [B] of z_k - z_y; gradients [B, ...] and bool [B], as
    `targeted_boundary`.
  """
  predicted, pull_back = jax.vjp(logits_fn, points)
  classes = predicted.shape[1]
  true = jax.nn.one_hot(labels, classes, dtype=predicted.dtype)  # [B, K]
  gaps = predicted - jnp.sum(predicted * true, axis=1, keepdims=True)  # [B, K]

  def compare(k, best):
    distances, values, gradients, _ = best
    other = jax.nn.one_hot(jnp.full_like(labels, k), classes, dtype=true.dtype)
    (slope,) = pull_back(other - true)  # [B, ...]
    broken = best[3] | finite.any_broken(slope)
    slope = finite.without_broken(slope)
    gap = jnp.take(gaps, k, axis=1)
    if norm == 'linf':
      size = balls.sum_features(jnp.abs(slope))
    else:
      size = balls.norms(slope, 'l2')
    distance = jnp.where(k == labels, jnp.inf, jnp.abs(gap) / (1e-12 + size))
    nearer = distance < distances
    return (
      jnp.where(nearer, distance, distances),
      jnp.where(nearer, gap, values),
      balls.select(nearer, slope, gradients),
      broken,
    )

  far = jnp.full_like(gaps[:, 0], jnp.inf)
  start = (
    far,
    jnp.zeros_like(far),
    jnp.zeros_like(points),
    jnp.zeros_like(far, bool),
  )
  return jax.lax.fori_loop(0, classes, compare, start)[1:]
