"""Arithmetic that a network and a training step need."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from dhat_jax.losses import Loss
from dhat_jax.models.dual_head import DualHeadNet
from dhat_jax.training.stages import ALL_ROLES, ROLES


def _equations(jaxpr: Any, times: int = 1) -> Iterator[tuple[Any, int]]:
  """Yields (equation, how often it runs), those of inner functions too."""
  for equation in jaxpr.eqns:
    yield equation, times
    inner = times * equation.params.get('length', 1)  # of `scan`
    for value in jax.tree.leaves(
      list(equation.params.values()),
      is_leaf=lambda leaf: isinstance(
        leaf, (jax.extend.core.Jaxpr, jax.extend.core.ClosedJaxpr)
      ),
    ):
      if isinstance(value, jax.extend.core.ClosedJaxpr):
        yield from _equations(value.jaxpr, inner)
      elif isinstance(value, jax.extend.core.Jaxpr):
        yield from _equations(value, inner)


def _multiplications(equation: Any) -> int:
  """Returns multiply-adds of a convolution or matrix product, else 0.

  Padding counts as data, zeros between dilated inputs do not: so a gradient
  costs as much as the convolution that it belongs to.
  """
  name = equation.primitive.name
  if name == 'dot_general':
    (contracted, _), _ = equation.params['dimension_numbers']
    shape = equation.invars[0].aval.shape
    depth = math.prod(shape[axis] for axis in contracted)
    return depth * math.prod(equation.outvars[0].aval.shape)
  if name == 'conv_general_dilated':
    kernel = equation.invars[1].aval.shape
    features = kernel[equation.params['dimension_numbers'].rhs_spec[0]]
    output = math.prod(equation.outvars[0].aval.shape)
    dilation = math.prod(equation.params['lhs_dilation'])
    return output * math.prod(kernel) // features // dilation
  return 0


def count(function: Any, *args: Any) -> int:
  """Returns the multiply-adds of a function's convolutions and products.

  Args:
    function: to be traced, not run.
    *args: arrays, or `jax.ShapeDtypeStruct`.
  """
  closed = jax.make_jaxpr(function)(*args)
  return sum(
    times * _multiplications(equation)
    for equation, times in _equations(closed.jaxpr)
  )


def parts(
  net: DualHeadNet, image_shape: tuple[int, int, int]
) -> dict[str, int]:
  """Returns the multiply-adds per image of each part's forward pass.

  Args:
    net: the network, whatever outputs it has.
    image_shape: (H, W, C).
  """
  images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  totals = []
  for stage in ROLES.values():
    network = net.clone(outputs=stage.outputs, axis_name=None)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    totals.append(count(network.apply, variables, images))
  main, both, everything = totals
  return {
    'trunk': 2 * main - both,
    'main_head': both - main,
    'second_head': both - main,
    'aggregator': everything - both,
  }


def needed(
  costs: dict[str, int], stage: str, loss: Loss, attack_steps: int
) -> int:
  """Returns the multiply-adds per image that one training step cannot avoid.

  The clean prediction once; per step of the attack a forward pass and the
  gradient of the images; in the loss a forward pass of what was not computed
  yet, and of the trained parts the gradients of inputs and of weights. (The
  first layer's input gradient is counted, though nobody needs it.)

  Args:
    costs: from `parts`.
    stage: key of `ALL_ROLES`.
    loss: of the stage.
    attack_steps: of the training attack.
  """
  role = ALL_ROLES[stage]
  used = {
    'main': ('trunk', 'main_head'),
    'second': ('trunk', 'second_head'),
    'aggregated': tuple(costs),
  }[role.output]
  forward = sum(costs[part] for part in used)
  trained = sum(costs[part] for part in role.trains)
  frozen = forward - trained
  total = 0
  clean_frozen = 0  # computed for the attack, and the same in the loss
  if loss.uses_adversarial:
    total += 2 * attack_steps * forward
    if loss.name == 'trades':  # the others do not look at the clean prediction
      total += forward
      clean_frozen = frozen
    total += forward + 2 * trained
  if loss.uses_clean:
    total += forward - clean_frozen + 2 * trained
  return total
