"""How an attack handles gradients and losses that are not finite.

Its arithmetic must neither break an image nor spare it. Such an entry of a
gradient makes no step, such a loss is the lowest, and both are counted.
"""

import chex
import jax.numpy as jnp


def without_broken(gradients: chex.Array) -> chex.Array:
  """Returns gradients in which an entry that is not finite is 0: no step."""
  return jnp.where(jnp.isfinite(gradients), gradients, 0)


def any_broken(gradients: chex.Array) -> chex.Array:
  """Whether an example has entries that are not finite: bool [B]."""
  flat = gradients.reshape(gradients.shape[0], -1)
  return ~jnp.all(jnp.isfinite(flat), axis=1)


def usable_losses(losses: chex.Array) -> chex.Array:
  """Returns losses in which NaN is lower than any number: [B] -> [B].

  A comparison with NaN is False, so an attack would never leave such a point.
  """
  return jnp.where(jnp.isnan(losses), jnp.finfo(losses.dtype).min, losses)
