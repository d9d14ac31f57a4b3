"""Progress of AutoAttack, and an estimate of the time left."""

import dataclasses
import time
from collections.abc import Callable

import numpy as np

from dhat_jax.attacks.autoattack.budget import Budget


@dataclasses.dataclass(frozen=True)
class Progress:
  """Progress after a batch; `str` gives one line.

  Attributes:
    attack: name of the running attack.
    share: of this attack's passes and batches that is done, in [0, 1].
    robust: number of images not yet broken.
    total: number of images.
    secs: since the start of the call.
    secs_left: estimate for all attacks, if no further image breaks.
  """

  attack: str
  share: float
  robust: int
  total: int
  secs: float
  secs_left: float

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
    self._show = print if progress is True else progress or None
    self._plan = [
      (name, index, budget.cost(name, index, classes))
      for name in names
      for index in budget.passes(name)
    ]
    self._budget = budget
    self._batch_size = batch_size
    self._started = time.perf_counter()
    self._spent = 0  # cost of the batches that ran in this call
    self._waited = 0.0  # for what was read from disk
    self._last = self._started

  def __call__(
    self,
    name: str,
    index: int,
    robust: np.ndarray,
    done: int,
    count: int,
    fresh: bool,
  ) -> None:
    """Reports that `done` of `count` batches of a pass are finished.

    Args:
      name: of the attack.
      index: of the pass.
      robust: bool [N], so far.
      done: batches of this pass that are finished.
      count: batches of this pass.
      fresh: whether the batch was computed, not read from disk.
    """
    now = time.perf_counter()
    place = [step[:2] for step in self._plan].index((name, index))
    if fresh:
      self._spent += self._plan[place][2]
    else:
      self._waited += now - self._last
    self._last = now
    if not self._show:
      return
    secs = now - self._started
    cost_left = self._cost_left(place, int(robust.sum()), count - done)
    rate = (secs - self._waited) / max(self._spent, 1)
    passes = self._budget.passes(name)
    share = (passes.index(index) + done / count) / len(passes)
    self._show(
      Progress(
        attack=name,
        share=share,
        robust=int(robust.sum()),
        total=robust.size,
        secs=secs,
        secs_left=cost_left * rate,
      )
    )

  def _cost_left(self, place: int, robust: int, batches: int) -> int:
    """Cost of the rest, if no further image breaks.

    Args:
      place: of the running pass in the plan.
      robust: number of images.
      batches: of the running pass that are left.
    """
    later_batches = -(-robust // self._batch_size)  # of each later pass
    later = sum(cost for _, _, cost in self._plan[place + 1 :])
    return batches * self._plan[place][2] + later_batches * later
