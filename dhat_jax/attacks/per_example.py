"""Small pieces shared by the evaluation attacks: one value per example."""

import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from dhat_jax.attacks.balls import spread


def select(
  condition: chex.Array, chosen: chex.Array, other: chex.Array
) -> chex.Array:
  """Takes whole examples: bool [B], [B, ...], [B, ...] -> [B, ...]."""
  return jnp.where(spread(condition, chosen), chosen, other)


def sum_features(values: chex.Array) -> chex.Array:
  """Sums everything but the batch axis: [B, ...] -> [B]."""
  return jnp.sum(values.reshape(values.shape[0], -1), axis=1)


def norms(deltas: chex.Array, norm: str) -> chex.Array:
  """Size of each perturbation: [B, ...] -> [B]."""
  if norm == 'linf':
    return jnp.max(jnp.abs(deltas.reshape(deltas.shape[0], -1)), axis=1)
  return jnp.sqrt(sum_features(deltas**2))


def normalise(deltas: chex.Array, norm: str) -> chex.Array:
  """Scales each perturbation to norm 1 (0 stays 0): [B, ...] -> same."""
  return deltas / (spread(norms(deltas, norm), deltas) + 1e-12)


def is_correct(logits: chex.Array, labels: chex.Array) -> chex.Array:
  """Whether the largest logit is the label's: [B, K], [B] -> bool [B].

  On an exact tie the first of the largest counts.
  """
  return jnp.argmax(logits, axis=1) == labels


def draw_each(
  sample: Callable, rng: chex.PRNGKey, indices: chex.Array, shape: tuple
) -> chex.Array:
  """Draws for each example from its own key: -> [B, *shape].

  Args:
    sample: (key, shape) -> array, as in `jax.random`.
    rng: typed key shared by all examples.
    indices: int [B], each example's place in the data set. Only this and rng
      decide what is drawn, so that batches may be composed at will.
    shape: of one example's draw.
  """
  # Flat, for XLA's CPU compiler; the numbers are the same. See balls._draw.
  keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, indices)
  flat = jax.vmap(lambda key: sample(key, (math.prod(shape),)))(keys)
  return flat.reshape(-1, *shape)


def ranked_classes(logits: chex.Array, rank: chex.Array) -> chex.Array:
  """Returns the class with the rank-th largest logit; 1 is the prediction.

  Args:
    logits: float [B, K].
    rank: int scalar in [1, K]; may be traced.

  Returns:
    int [B].
  """
  ascending = jnp.argsort(logits, axis=1)  # [B, K]
  return jnp.take(ascending, logits.shape[1] - rank, axis=1)
