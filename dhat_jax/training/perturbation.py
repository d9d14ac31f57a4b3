"""Weight perturbations by name, which replace `value_and_grad`.

A perturbation is called like `jax.value_and_grad`, as value_and_grad(loss_fn,
has_aux=True). It returns (params, step) -> ((loss, aux), gradients). It may
call jax.value_and_grad(loss_fn, has_aux=True) several times, at other weights.
The `aux` of the last call has the batch statistics that are kept. A factory
takes its own options and, if it names them:

    axis_name: the mapped axis. Gradients that are used before the optimiser
      must be summed over it (`devices.psum`);
    steps_per_epoch: to count epochs of `step`.

A user's config file adds one with `@perturbation.register('name')` and names it
in `config.<stage>.weight_perturbation`.
"""

from collections.abc import Callable

import jax

from dhat_jax.registry import Registry

WEIGHT_PERTURBATIONS = Registry(
  'weight perturbation', shared=('axis_name', 'steps_per_epoch')
)
register = WEIGHT_PERTURBATIONS.register


@register('none')
def none() -> Callable:
  """The gradient at the weights themselves."""
  return jax.value_and_grad
