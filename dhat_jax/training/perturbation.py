"""Weight perturbations by name, which replace `value_and_grad`.

A perturbation is called like `jax.value_and_grad`, as value_and_grad(loss_fn,
has_aux=True). It returns (params, step) -> ((loss, aux), gradients). It may
call jax.value_and_grad(loss_fn, has_aux=True) several times, at other weights.
The `aux` of the last call has the batch statistics that are kept, and the
weights that decay. A factory takes its own options and, if it names them:

    axis_name: the mapped axis. Gradients that are used before the optimiser
      must be summed over it (`devices.psum`);
    steps_per_epoch: to count epochs of `step`.

A user's config file adds one with `@perturbation.register('name')` and names it
in `config.<stage>.weight_perturbation`.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from dhat_jax import arguments
from dhat_jax.registry import Registry
from dhat_jax.runtime import devices

WEIGHT_PERTURBATIONS = Registry(
  'weight perturbation', shared=('axis_name', 'steps_per_epoch')
)
register = WEIGHT_PERTURBATIONS.register


@register('none')
def none() -> Callable:
  """The gradient at the weights themselves."""
  return jax.value_and_grad


@register('awp')
def awp(
  *,
  gamma: float = 0.005,
  start_epoch: int = 1,
  axis_name: str | None = None,
  steps_per_epoch: int = 1,
) -> Callable:
  """Adversarial weight perturbation (Wu et al. 2020, eqs. 8 to 12).

  The gradient is taken at w + v, with v of `relative_ascent`: the direction
  that raises the same loss on the same adversarial images. The attack sees w,
  and the update goes to w. What the first pass makes of the batch statistics is
  dropped, and w + v decays: both as in the published code.

  Differs from the published code in form. There v is the step of SGD of a copy
  of the network, whose learning rate cancels.

  Args:
    gamma: size of v, as a share of a kernel's norm. Published: .005 with
      TRADES, .01 with standard adversarial training.
    start_epoch: the first epoch with a perturbation, counted from 1. Published:
      10 with TRADES, 1 with standard adversarial training.
    axis_name: the mapped axis, or None.
    steps_per_epoch: steps in one pass over the training set.

  Raises:
    ValueError: an argument out of its range.
  """
  arguments.number('gamma', gamma, 0)
  arguments.integer('start_epoch', start_epoch, 1)
  arguments.integer('steps_per_epoch', steps_per_epoch, 1)
  first_step = (start_epoch - 1) * steps_per_epoch

  def change(params, grads, step):
    size = jnp.where(step >= first_step, gamma, 0.0)
    return relative_ascent(params, grads, size)

  return _changed_by(change, axis_name)


@register('sam')
def sam(*, rho: float = 0.05, axis_name: str | None = None) -> Callable:
  """Sharpness-aware minimisation (Foret et al. 2021, eqs. 2 and 3).

  The gradient is taken at w + rho g / ||g||, with the norm over all trained
  parameters. As in the original code, w + rho g / ||g|| decays.

  Differs from the original code in three things. There g has the gradient of
  the weight decay too, each replica perturbs by its own g unless a flag says
  otherwise, and running statistics are those of the first pass, at w.

  Args:
    rho: norm of the perturbation.
    axis_name: the mapped axis, or None.

  Raises:
    ValueError: rho is negative or not finite.
  """
  arguments.number('rho', rho, 0)

  def change(params, grads, step):
    del params, step
    # Scaled first: the squares of tiny gradients would be 0.
    largest = jnp.max(
      jnp.stack([jnp.abs(leaf).max() for leaf in jax.tree.leaves(grads)])
    )
    grads = jax.tree.map(lambda leaf: _quotient(leaf, largest), grads)
    return optax.tree.scale(_quotient(rho, optax.tree.norm(grads)), grads)

  return _changed_by(change, axis_name)


def relative_ascent(params: Any, grads: Any, gamma: chex.Numeric) -> Any:
  """Returns v = gamma ||w|| g / ||g|| of each kernel (Wu et al. 2020, eq. 10).

  The norms are Frobenius norms of whole tensors. Tensors with one axis or none
  (biases, batch norm) and those with a zero gradient have v = 0.

  Args:
    params: tree of the weights w.
    grads: their gradients g, of the global batch.
    gamma: size, as a share of ||w||.
  """

  def ascent(weight, grad):
    if weight.ndim < 2:
      return jnp.zeros_like(weight)
    # Scaled first: the squares of tiny gradients would be 0.
    grad = _quotient(grad, jnp.abs(grad).max())
    size = _quotient(jnp.linalg.norm(weight), jnp.linalg.norm(grad))
    return gamma * size * grad

  return jax.tree.map(ascent, params, grads)


def _quotient(a: chex.Array, b: chex.Array) -> chex.Array:
  """Returns a / b, and 0 where b is 0."""
  return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)


def _changed_by(change: Callable, axis_name: str | None) -> Callable:
  """Returns a `value_and_grad` at weights that a function changes.

  Args:
    change: (params, gradients of the global batch, step) -> what is added to
      params.
    axis_name: the mapped axis, or None.
  """

  def value_and_grad(loss_fn, has_aux=False):
    gradient = jax.value_and_grad(loss_fn, has_aux=has_aux)

    def at_changed_weights(params, step):
      _, grads = gradient(params, step)
      # Before any norm: replicas that differ would perturb differently.
      grads = devices.psum(grads, axis_name)
      return gradient(optax.tree.add(params, change(params, grads, step)), step)

    return at_changed_weights

  return value_and_grad


def count_gradients(value_and_grad: Callable) -> int:
  """Returns how often a perturbation takes the loss's gradient in a step.

  It is traced with a tiny tree of parameters; nothing runs.

  Args:
    value_and_grad: `jax.value_and_grad` or what replaces it.
  """
  calls = []

  def loss_fn(params, step):
    calls.append(step)
    return params['trunk']['conv']['kernel'].sum(), params

  params = {'trunk': {'conv': {'kernel': jnp.ones((1, 1, 1, 1))}}}
  step = jnp.zeros((1,), jnp.int32)
  mapped = jax.vmap(
    lambda step: value_and_grad(loss_fn, has_aux=True)(params, step),
    axis_name=devices.AXIS,
  )
  jax.eval_shape(mapped, step)
  return len(calls)
