"""Arithmetic that a network and a training step need."""

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dhat_jax.losses.base import Loss
from dhat_jax.models import cpu_conv, outputs
from dhat_jax.models.dual_head import DualHeadNet
from dhat_jax.runtime import streams
from dhat_jax.training.stages import Role


def _equations(jaxpr: Any, times: int = 1) -> Iterator[tuple[Any, int]]:
  """Yields (equation, how often it runs), also of inner functions."""
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

  Padding counts as data; zeros between dilated inputs do not. So a gradient
  costs as much as its convolution.
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
  return count_traced(jax.make_jaxpr(function)(*args).jaxpr)


def count_traced(jaxpr: Any) -> int:
  """Returns the multiply-adds of a traced function, as `count` does.

  A loop counts as often as it runs; one whose end is traced counts once.
  """
  return sum(
    times * _multiplications(equation) for equation, times in _equations(jaxpr)
  )


@functools.cache  # runs of an experiment have the same network
def _forward(net: DualHeadNet, image_shape: tuple[int, int, int]) -> int:
  """Returns the multiply-adds per image of a network's forward pass."""
  images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  variables = jax.eval_shape(net.init, streams.key(0), images)
  # The plain forms: those of the CPU save multiplications.
  with cpu_conv.compiling_for('tpu'):
    return count(net.apply, variables, images)


def parts(
  net: DualHeadNet, image_shape: tuple[int, int, int]
) -> dict[str, int]:
  """Returns the multiply-adds per image of each part's forward pass.

  Convolutions and matrix products count; the aggregator's products over the
  two heads are neither, and less than .01 % of a network.

  Args:
    net: the network, whatever outputs it has.
    image_shape: (H, W, C).
  """

  def forward(*names: str) -> int:
    network = net.clone(outputs=names, axis_name=None)
    return _forward(network, tuple(image_shape))

  heads = outputs.OUTPUTS['mean'].mean_of
  # Together they run the trunk once.
  costs = {'trunk': sum(map(forward, heads)) - forward(*heads)}
  for name in outputs.trained():
    known = [part for part in outputs.OUTPUTS[name].parts if part in costs]
    (new,) = [part for part in outputs.OUTPUTS[name].parts if part not in costs]
    costs[new] = forward(name) - sum(costs[part] for part in known)
  return costs


def needed(
  costs: Mapping[str, int],
  role: Role,
  loss: Loss,
  attack_steps: int,
  gradients: int = 1,
) -> int:
  """Returns the multiply-adds per image that one training step cannot avoid.

  These are: the clean prediction once; a forward pass and the gradient of the
  images per attack step; and the loss. The loss needs a forward pass of what
  was not computed before. The trained parts need the gradients of inputs and
  weights. (The first layer's input gradient is counted, though it is not
  needed.) A loss that reads other outputs needs their forward passes too.

  Args:
    costs: from `parts`.
    role: of the stage.
    loss: of the stage; its attributes say what it needs.
    attack_steps: of the training attack.
    gradients: how often the loss's gradient is taken: more than once with a
      weight perturbation, at other weights. What frozen parts compute is the
      same each time.
  """
  forward = sum(costs[part] for part in outputs.OUTPUTS[role.output].parts)
  trained = sum(costs[part] for part in role.trains)
  frozen = forward - trained
  total = 0
  clean_frozen = 0  # computed for the attack, and the same in the loss
  if loss.uses_adversarial:
    total += 2 * attack_steps * forward
    if loss.objective_uses_clean:
      total += forward
      clean_frozen = frozen
  # Once: what the trained parts' inputs cost, and the teachers' outputs.
  passes = loss.uses_clean + loss.uses_adversarial
  read = outputs.parts_of(loss.teachers)
  beside = set(read) - set(outputs.OUTPUTS[role.output].parts)
  total += passes * (frozen + sum(costs[part] for part in beside))
  total -= clean_frozen if loss.uses_clean else 0
  return total + gradients * passes * 3 * trained
