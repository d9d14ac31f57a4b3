"""What a network returns, and the table of all outputs.

`OUTPUTS` is the one place that lists outputs: networks, stages, evaluation,
results and report ask it.
"""

import dataclasses
import functools
import operator
from collections.abc import Collection, Iterator, Mapping

import chex
import jax


@dataclasses.dataclass(frozen=True)
class Output:
  """One output of the network.

  Attributes:
    parts: of the network that it needs, in the order in which they run.
    label: what it is called in sentences, figures and tables.
    stage: the stage that trains it; None if it is computed of other outputs.
    mean_of: the outputs whose logits it averages, where it has no stage.
  """

  parts: tuple[str, ...]
  label: str
  stage: str | None = None
  mean_of: tuple[str, ...] = ()


# In the order in which stages train them and results list them.
OUTPUTS: dict[str, Output] = {
  'main': Output(('trunk', 'main_head'), 'main head', stage='main_head'),
  'second': Output(
    ('trunk', 'second_head'), 'second head', stage='second_head'
  ),
  'mean': Output(
    ('trunk', 'main_head', 'second_head'),
    'mean of the heads',
    mean_of=('main', 'second'),
  ),
  'aggregated': Output(
    ('trunk', 'main_head', 'second_head', 'aggregator'),
    'aggregated',
    stage='aggregator',
  ),
}


def trained() -> tuple[str, ...]:
  """Returns the outputs that a network computes itself, and stages train."""
  return tuple(name for name, row in OUTPUTS.items() if row.stage)


def available(computed: Collection[str]) -> tuple[str, ...]:
  """Returns the outputs to be had from a network, in the table's order.

  Args:
    computed: the outputs that the network computes.
  """
  return tuple(
    name
    for name, row in OUTPUTS.items()
    if name in computed or (row.mean_of and set(row.mean_of) <= set(computed))
  )


def required(name: str) -> tuple[str, ...]:
  """Returns what a network must compute for an output: 'mean' -> both heads."""
  return OUTPUTS[name].mean_of or (name,)


def parts_of(names: Collection[str]) -> tuple[str, ...]:
  """Returns the parts that some outputs need, in the order in which they run."""
  return tuple(
    dict.fromkeys(
      part
      for name, row in OUTPUTS.items()
      if name in names
      for part in row.parts
    )
  )


@jax.tree_util.register_pytree_with_keys_class
class Outputs(Mapping):
  """Logits by output, each float [B, K]; what is not there is absent.

  A mapping, a JAX tree, and with attributes: `outputs.main`, `outputs.mean`.
  An output that averages others (`mean`) is there if they are.
  """

  def __init__(self, *logits: chex.Array, **named: chex.Array):
    """Creates it.

    Args:
      *logits: of the trained outputs, in the table's order.
      **named: {output: logits}.
    """
    self._logits = {**dict(zip(trained(), logits, strict=False)), **named}

  def __getitem__(self, name: str) -> chex.Array:
    return self._logits[name]

  def __iter__(self) -> Iterator[str]:
    return iter(self._logits)

  def __len__(self) -> int:
    return len(self._logits)

  def __getattr__(self, name: str) -> chex.Array:
    if name.startswith('_'):
      raise AttributeError(name)
    try:
      return self.select(name)
    except ValueError as error:
      raise AttributeError(str(error)) from None

  def __repr__(self) -> str:
    return f'Outputs({", ".join(self._logits)})'

  def tree_flatten_with_keys(self):
    """Flattens it for JAX."""
    keys = tuple(self._logits)
    return [
      (jax.tree_util.DictKey(key), self._logits[key]) for key in keys
    ], keys

  @classmethod
  def tree_unflatten(cls, keys, logits):
    """Inverts `tree_flatten_with_keys`."""
    return cls(**dict(zip(keys, logits, strict=True)))

  def replace(self, **named: chex.Array) -> 'Outputs':
    """Returns a copy with other logits for some outputs."""
    return Outputs(**{**self._logits, **named})

  def select(self, name: str) -> chex.Array:
    """Returns the logits [B, K] of an output.

    Raises:
      ValueError: unknown name, or an output that the network does not have.
    """
    if name in self._logits:
      return self._logits[name]
    choices = available(self._logits)
    if name not in choices:
      raise ValueError(f'output: got {name!r}, choices are {choices}')
    averaged = [self._logits[other] for other in OUTPUTS[name].mean_of]
    return functools.reduce(operator.add, averaged) / len(averaged)
