"""What the audit attacks beside the outputs: other gradients of one of them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from dhat_jax.evaluation.evaluator import Target
from dhat_jax.models.outputs import OUTPUTS, Outputs, part_variables

# Their names in the records and in the report.
BYPASS = 'relu_bypassed'
SURROGATE = 'surrogate'


@dataclasses.dataclass(frozen=True)
class Bypassed:
  """The network with a gradient around the aggregator's non-linearity.

  The values are the network's (BPDA, Athalye et al. 2018); see
  `Aggregator.bypass`.

  Attributes:
    net: a `DualHeadNet` whose aggregator has a `bypass`.
    output: the aggregated one.
  """

  net: nn.Module
  output: str

  @property
  def parts(self) -> tuple[str, ...]:
    """The parts of the network."""
    return self.net.parts

  def clone(self, **fields: Any) -> 'Bypassed':
    """Returns a copy with other fields of the network."""
    return dataclasses.replace(self, net=self.net.clone(**fields))

  def aggregate(self) -> Callable:
    """Returns (variables, logits [B, H, K]) -> logits [B, K]."""
    return self.net.make_aggregator().bypass

  def apply(
    self, variables: Any, images: chex.Array, **options: Any
  ) -> Outputs:
    """Computes the outputs in evaluation mode; options as Flax's `apply`."""
    row = OUTPUTS[self.output]
    net = self.net.clone(outputs=row.aggregates)
    outputs = net.apply(variables, images, **options)
    logits = self.aggregate()(
      part_variables(variables, row.parts[-1]),
      jnp.stack([outputs[name] for name in row.aggregates], axis=1),
    )
    return outputs.replace(**{self.output: logits})


class Surrogated(Bypassed):
  """The network that attacks differentiate through the aggregator's surrogate.

  A function that is differentiated computes the surrogate's logits, so that
  loss and gradient are the surrogate's. Any other call returns the network's
  own logits, so that they decide which images fool it. So does the adaptive
  attack of Bai et al. 2024.
  """

  def aggregate(self) -> Callable:
    """Returns (variables, logits [B, H, K]) -> logits [B, K]."""
    module = self.net.make_aggregator()

    @jax.custom_vjp
    def values(variables, logits):
      return module.apply(variables, logits, train=False)

    def forward(variables, logits):
      return jax.vjp(module.surrogate, variables, logits)

    values.defvjp(forward, lambda backward, cotangent: backward(cotangent))
    return values


def bypass(target: Target) -> Target | None:
  """Returns a target with a gradient around the aggregator's ReLU.

  Args:
    target: the aggregated output.

  Returns:
    The target of the same network and output, or None if the aggregator has no
    such gradient.
  """
  if target.net.make_aggregator().bypass is None:
    return None
  return dataclasses.replace(
    target, name=BYPASS, net=Bypassed(target.net, target.output)
  )


def surrogate(target: Target) -> Target | None:
  """Returns a target with the gradient of the aggregator's surrogate.

  Arguments and result as in `bypass`.
  """
  if target.net.make_aggregator().surrogate is None:
    return None
  return dataclasses.replace(
    target, name=SURROGATE, net=Surrogated(target.net, target.output)
  )
