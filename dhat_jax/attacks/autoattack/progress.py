"""How far a run of AutoAttack is, and how long it may still take."""

import dataclasses
import time


@dataclasses.dataclass(frozen=True)
class Progress:
  """Where a run is, after each batch; `str` gives one line.

  Attributes:
    attack: name of the running attack.
    share: of this attack's passes and batches that is done, in [0, 1].
    robust: number of images not yet broken.
    total: number of images.
    secs: since the start of the call.
    secs_left: estimate for all attacks, if no further image were broken.
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
  """Turns finished batches into `Progress`, if anybody wants it."""

  def __init__(self, progress, budget, names, classes, batch_size):
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

  def __call__(self, name, index, robust, done, count, fresh):
    """Reports that `done` of `count` batches of a pass are finished."""
    now = time.perf_counter()
    place = [step[:2] for step in self._plan].index((name, index))
    cost = self._plan[place][2]
    if fresh:
      self._spent += cost
    else:
      self._waited += now - self._last
    self._last = now
    if not self._show:
      return
    size = self._batch_size
    later = -(-int(robust.sum()) // size)  # batches of later passes
    left = (count - done) * cost
    left += later * sum(step[2] for step in self._plan[place + 1 :])
    secs = now - self._started
    rate = (secs - self._waited) / max(self._spent, 1)
    passes = self._budget.passes(name)
    share = (passes.index(index) + done / count) / len(passes)
    self._show(
      Progress(name, share, int(robust.sum()), robust.size, secs, left * rate)
    )
