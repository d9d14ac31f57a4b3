"""A view of a network for attacks that see the heads beside the output."""

import dataclasses
from typing import Any

import chex
import jax.numpy as jnp
from flax import linen as nn

from dhat_jax.models.outputs import OUTPUTS, Outputs, part_variables

# The outputs that are made of heads.
MERGED = tuple(
  name for name, row in OUTPUTS.items() if row.aggregates or row.mean_of
)


@dataclasses.dataclass(frozen=True)
class _Rows:
  """In place of `Outputs`: one array for all.

  Attributes:
    rows: [B, 2 + H, K], see `attacks.mora.make_evaluation_attack`.
  """

  rows: chex.Array

  def select(self, output: str) -> chex.Array:
    """Returns the rows."""
    del output
    return self.rows


@dataclasses.dataclass(frozen=True)
class WithHeads:
  """A network that returns an output together with its heads.

  Attributes:
    net: a `DualHeadNet`, or a view of it, e.g. `audit_targets.Surrogated`. The
      attack climbs its output.
    judge: the network whose output decides.
    output: one of `MERGED`.
  """

  net: Any
  judge: nn.Module
  output: str

  @property
  def parts(self) -> tuple[str, ...]:
    """The parts of the network."""
    return self.net.parts

  def clone(self, **fields: Any) -> 'WithHeads':
    """Returns a copy with other fields of the network."""
    return dataclasses.replace(self, net=self.net.clone(**fields))

  def apply(self, variables: Any, images: chex.Array, **options: Any) -> _Rows:
    """Computes all logits in evaluation mode; options as Flax's `apply`."""
    row = OUTPUTS[self.output]
    names = row.aggregates or row.mean_of
    computed = (*names, self.output) if row.aggregates else names
    outputs = self.net.clone(outputs=computed).apply(
      variables, images, **options
    )
    heads = [outputs[name] for name in names]
    judged = self._judged(variables, outputs, jnp.stack(heads, axis=1))
    rows = [judged, outputs.select(self.output), *heads]
    return _Rows(jnp.stack(rows, axis=1))

  def _judged(
    self, variables: Any, outputs: Outputs, heads: chex.Array
  ) -> chex.Array:
    """Returns the logits that decide; a view's may be others."""
    row = OUTPUTS[self.output]
    if not row.aggregates:
      return outputs.select(self.output)
    module = self.judge.make_aggregator()
    own = part_variables(variables, row.parts[-1])
    return module.apply(own, heads, train=False)
