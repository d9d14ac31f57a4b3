"""The outputs of a network, and the table of all outputs.

`OUTPUTS` is the only list of outputs. Networks, stages, evaluation, results and
report read it.
"""

import dataclasses
import functools
import operator
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import chex
import jax


@dataclasses.dataclass(frozen=True)
class Output:
  """One output of the network.

  Attributes:
    parts: of the network that it needs, in the order in which they run. The
      last one computes it: a head, or an aggregator.
    label: its name in sentences, figures and tables.
    stage: the stage that trains it; None if it is computed from other outputs.
    aggregates: the outputs whose logits its aggregator takes; () for a head.
    mean_of: the outputs whose logits it averages, if it has no stage.
  """

  parts: tuple[str, ...]
  label: str
  stage: str | None = None
  aggregates: tuple[str, ...] = ()
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
    aggregates=('main', 'second'),
  ),
}


def trained() -> tuple[str, ...]:
  """Returns the outputs that a network computes and stages train."""
  return tuple(name for name, row in OUTPUTS.items() if row.stage)


def available(computed: Collection[str]) -> tuple[str, ...]:
  """Returns the outputs of a network, in the table's order.

  Args:
    computed: the outputs that the network computes.
  """
  return tuple(
    name
    for name, row in OUTPUTS.items()
    if name in computed or (row.mean_of and set(row.mean_of) <= set(computed))
  )


def heads() -> dict[str, str]:
  """Returns {output: part} of the outputs that a head alone computes."""
  return {
    name: row.parts[-1]
    for name, row in OUTPUTS.items()
    if row.stage and not row.aggregates
  }


def required(name: str) -> tuple[str, ...]:
  """Returns what a network must compute for an output: 'mean' -> both heads."""
  return OUTPUTS[name].mean_of or (name,)


def final(names: Collection[str]) -> str:
  """Returns the main result of a network: the aggregated output if it has one.

  Args:
    names: outputs of the network, in the table's order; the last is the
      default.
  """
  aggregated = [name for name in names if OUTPUTS[name].aggregates]
  return [*names, *aggregated][-1]


def parts_of(names: Collection[str]) -> tuple[str, ...]:
  """Returns the parts that some outputs need, in running order."""
  needed = {part for name in names for part in OUTPUTS[name].parts}
  everything = dict.fromkeys(
    part for row in OUTPUTS.values() for part in row.parts
  )
  return tuple(part for part in everything if part in needed)


def part_variables(variables: Mapping[str, Any], part: str) -> dict[str, Any]:
  """Returns one part's variables, as its module takes them.

  Args:
    variables: {'params': {part: ...}, 'batch_stats': {part: ...}}.
    part: 'trunk', 'aggregator', ... A part without variables has {}.
  """
  return {
    group: tree[part] for group, tree in variables.items() if part in tree
  }


@jax.tree_util.register_pytree_with_keys_class
class Outputs(Mapping):
  """Logits by output, each float [B, K]; missing outputs are absent.

  It is a mapping and a JAX tree, with attributes: `outputs.main`,
  `outputs.mean`. Its keys are in the table's order. An output that averages
  others (`mean`) is not a key, but `select` and the attribute compute it if
  those exist.
  """

  __slots__ = ('_logits',)

  def __init__(self, *logits: chex.Array, **named: chex.Array):
    """Creates it.

    Args:
      *logits: of the trained outputs, in the table's order.
      **named: {output: logits}.

    Raises:
      ValueError: unknown name, too many logits, or one output twice.
    """
    names = trained()[: len(logits)]
    twice = [name for name in names if name in named]
    if len(logits) > len(names) or twice:
      raise ValueError(
        f'outputs: got {len(logits)} logits by place and {tuple(named)} by '
        f'name, expected one each of {trained()}'
      )
    given = {**dict(zip(names, logits, strict=True)), **named}
    for name in given:
      _require(name, OUTPUTS)
    self._logits = {name: given[name] for name in OUTPUTS if name in given}

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

  def __dir__(self) -> list[str]:
    return [*super().__dir__(), *available(self)]

  def __repr__(self) -> str:
    arrays = (
      f'{name}={getattr(leaf, "dtype", leaf)}{list(getattr(leaf, "shape", ()))}'
      for name, leaf in self.items()
    )
    return f'Outputs({", ".join(arrays)})'

  def tree_flatten_with_keys(self):
    """Flattens it for JAX."""
    names = tuple(self._logits)
    children = [
      (jax.tree_util.DictKey(name), self._logits[name]) for name in names
    ]
    return children, names

  @classmethod
  def tree_unflatten(cls, names, logits):
    """Inverts `tree_flatten_with_keys`; the leaves may be anything."""
    outputs = object.__new__(cls)
    outputs._logits = dict(zip(names, logits, strict=True))
    return outputs

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
    _require(name, available(self._logits))
    averaged = [self._logits[other] for other in OUTPUTS[name].mean_of]
    return functools.reduce(operator.add, averaged) / len(averaged)


def _require(name: str, choices: Collection[str]) -> None:
  if name not in choices:
    raise ValueError(f'output: got {name!r}, choices are {tuple(choices)}')
