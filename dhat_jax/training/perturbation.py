"""Weight perturbations by name: what takes the place of `value_and_grad`.

A perturbation is called as `jax.value_and_grad` is, value_and_grad(loss_fn,
has_aux=True), and returns (params, step) -> ((loss, aux), gradients). It may
call jax.value_and_grad(loss_fn, has_aux=True) several times, at other weights;
`aux` of the last call holds the batch statistics that are kept. A factory takes
its own options and, where it names them,

    axis_name: the mapped axis: what is computed of gradients before the
      optimiser must be summed over it (`devices.psum`);
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
