"""Progress of AutoAttack, and an estimate of the time left."""

import dataclasses
import time
from collections.abc import Callable

import numpy as np

from dhat_jax.attacks import arguments
from dhat_jax.attacks.autoattack.budget import Budget


@dataclasses.dataclass(frozen=True)
class Progress:
  """Progress after a batch; `str` gives one line.

  Attributes:
    attack: name of the running attack.
    share: of this attack's work that is done, in [0, 1]; that on images which
      broke meanwhile counts as done.
    robust: number of images not yet broken.
    total: number of images.
    secs: since the start of the call.
    secs_left: estimate for all attacks, if no further image breaks.
    items: images of this batch, each with a pass.
    slots: of this batch; those without an item are computed in vain.
  """

  attack: str
  share: float
  robust: int
  total: int
  secs: float
  secs_left: float
  items: int
  slots: int

  def __str__(self) -> str:
    """Returns the line that is printed."""
    return (
      f'{self.attack} {100 * self.share:.0f}%: robust {self.robust} of '
      f'{self.total} ({100 * self.robust / self.total:.2f}%), '
      f'{self.secs:.0f} s, at most {self.secs_left:.0f} s left'
    )


class Reporter:
  """Turns finished batches into `Progress`, if it is requested."""

  def __init__(
    self,
    progress: bool | Callable[[Progress], None],
    budget: Budget,
    names: tuple[str, ...],
    classes: int,
    batch_size: int,
  ):
    """Plans all passes.

    Args:
      progress: True prints a line per batch; or a function of `Progress`.
      budget: of the attacks.
      names: of the attacks, in order.
      classes: K.
      batch_size: images at once.
    """
    if progress and progress is not True:
      arguments.function('progress', progress)
    self._show = print if progress is True else progress or None
    self._costs = {
      name: {
        index: budget.cost(name, index, classes)
        for index in budget.passes(name)
      }
      for name in names
    }
    self._batch_size = batch_size
    self._planned = {}  # of each attack: items at its start
    self._started = time.perf_counter()
    self._spent = 0  # cost of the batches that ran in this call
    self._waited = 0.0  # for what was read from disk
    self._last = self._started

  def __call__(
    self,
    name: str,
    passes: np.ndarray,
    left: np.ndarray,
    slots: int,
    robust: np.ndarray,
    fresh: bool,
  ) -> None:
    """Reports that a batch is finished.

    Args:
      name: of the attack.
      passes: int [n], of the batch's items.
      left: int [m], passes of the attack's items that are left.
      slots: of the batch.
      robust: bool [N], so far.
      fresh: whether the batch was computed, not read from disk.
    """
    now = time.perf_counter()
    costs = self._costs[name]
    if fresh:
      self._spent += max(costs[index] for index in passes.tolist())
    else:
      self._waited += now - self._last
    self._last = now
    if not self._show:
      return
    cost_left = sum(costs[index] for index in left.tolist())
    planned = self._planned.setdefault(
      name, cost_left + sum(costs[index] for index in passes.tolist())
    )
    secs = now - self._started
    rate = (secs - self._waited) / max(self._spent, 1)
    batches = cost_left / slots
    batches += self._later(name, int(robust.sum()))
    self._show(
      Progress(
        attack=name,
        share=1 - cost_left / planned,
        robust=int(robust.sum()),
        total=robust.size,
        secs=secs,
        secs_left=batches * rate,
        items=len(passes),
        slots=slots,
      )
    )

  def _later(self, name: str, robust: int) -> float:
    """Cost of the attacks after this one, if no further image breaks."""
    names = list(self._costs)
    later = sum(
      sum(self._costs[other].values())
      for other in names[names.index(name) + 1 :]
    )
    return later * -(-robust // self._batch_size)
