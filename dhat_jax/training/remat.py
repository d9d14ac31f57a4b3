"""Less memory for a training step, at the price of time."""

from collections.abc import Callable

import jax

from dhat_jax.models.layers import UNIT


def rematerialised(loss_fn: Callable) -> Callable:
  """Returns a loss whose gradient computes most of the forward pass twice.

  Stored are the outputs of a network's units (`layers.UNIT`) and what is
  summed over the replicas; the rest is computed again where the backward pass
  needs it. Values and gradients are the same, up to rounding.

  Args:
    loss_fn: of the trained parameters, and more.
  """
  units = jax.checkpoint_policies.save_only_these_names(UNIT)

  def is_stored(primitive, *args, **params):
    return primitive.name.startswith('psum') or units(
      primitive, *args, **params
    )

  return jax.checkpoint(loss_fn, policy=is_stored)
