"""What a network returns: the logits of its outputs."""

from typing import NamedTuple

import chex


class Outputs(NamedTuple):
  """Logits of a dual-head network, each float [B, K] or None if absent.

  Attributes:
    main: of the main head; the plain network's.
    second: of the second head.
    aggregated: of the aggregator.
  """

  main: chex.Array
  second: chex.Array | None = None
  aggregated: chex.Array | None = None

  @property
  def mean(self) -> chex.Array | None:
    """The average of the two heads' logits, the control of the aggregator."""
    return None if self.second is None else (self.main + self.second) / 2

  def select(self, name: str) -> chex.Array:
    """Returns the logits 'main', 'second', 'mean' or 'aggregated'.

    Raises:
      ValueError: unknown name, or an output that the network does not have.
    """
    choices = {
      output: logits
      for output in ('main', 'second', 'mean', 'aggregated')
      if (logits := getattr(self, output)) is not None
    }
    if name not in choices:
      raise ValueError(f'output: got {name!r}, choices are {tuple(choices)}')
    return choices[name]
