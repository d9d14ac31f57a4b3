"""The budget of each attack of AutoAttack."""

import dataclasses
import math
from typing import Any

from dhat_jax import arguments

# What the reference spends; a run names what differs from it.
STANDARD = {
  'n_iter': 100,
  'n_queries': 5000,
  'n_targets': 9,
  'target_order': 'logits',
  'screening': 'none',
}

# What the attacks of a run may see in place of float32.
SCREENINGS = ('none', 'bfloat16')


def _at_least_1(name: str, got: Any) -> int:
  """Returns an integer >= 1, or raises ValueError."""
  return arguments.integer(name, got, 1)


@dataclasses.dataclass(frozen=True)
class Budget:
  """The budget of each attack; the defaults are the reference's.

  Attributes:
    n_iter: iterations of APGD and FAB.
    n_queries: of Square.
    n_restarts: of apgd-ce, apgd-dlr and fab.
    n_targets: target classes of apgd-t and fab-t.
    eot_iter: evaluations of a randomised network that are averaged: gradients
      of APGD, logits of the others.
    stop_at_epsilon: whether FAB stops at a perturbation that counts.
  """

  n_iter: int = 100
  n_queries: int = 5000
  n_restarts: int = 1
  n_targets: int = 9
  eot_iter: int = 1
  stop_at_epsilon: bool = False

  def __post_init__(self):
    """Raises ValueError for a number that an attack cannot run with."""
    for field in dataclasses.fields(self):
      check = arguments.flag if field.type is bool else _at_least_1
      check(field.name, getattr(self, field.name))

  def passes(self, name: str) -> list[int]:
    """Restarts, target ranks or pieces of Square, in order.

    Broken images are dropped after each of them.
    """
    if name.endswith('-t'):
      return list(range(2, self.n_targets + 2))
    if name == 'square':
      return list(range(len(self.square_pieces()) - 1))
    return list(range(self.n_restarts))

  def square_pieces(self) -> list[int]:
    """First query of each piece, and the end of the last one."""
    ends = [0, 10]  # most images that break do so early
    while ends[-1] < self.n_queries:
      ends.append(math.ceil(1.3 * ends[-1]))
    return [end for end in ends if end < self.n_queries] + [self.n_queries]

  def cost(self, name: str, index: int, classes: int) -> int:
    """Evaluations per image of one pass, a gradient counted as two."""
    if name == 'square':
      pieces = self.square_pieces()
      return self.eot_iter * (pieces[index + 1] - pieces[index])
    per_iteration = {'fab': 2 + 2 * classes, 'fab-t': 4}
    return self.eot_iter * per_iteration.get(name, 3) * self.n_iter


def make_budget(
  version: str,
  classes: int,
  *,
  n_iter: int,
  n_queries: int,
  n_restarts: int | None,
  n_targets: int,
  eot_iter: int | None,
  stop_at_epsilon: bool,
  randomized: bool,
) -> Budget:
  """Fills in the budget of a version and a number of classes."""
  restarts = 5 if version in ('plus', 'custom') else 1
  averaged = 20 if version == 'rand' or randomized else 1
  return Budget(
    n_iter=n_iter,
    n_queries=n_queries,
    n_restarts=restarts if n_restarts is None else n_restarts,
    n_targets=min(n_targets, classes - 1),
    stop_at_epsilon=stop_at_epsilon,
    eot_iter=averaged if eot_iter is None else eot_iter,
  )
