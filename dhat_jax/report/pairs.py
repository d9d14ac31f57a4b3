"""Differences between two outputs, or two runs, with 95 % intervals."""

import functools
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from dhat_jax.report.read import Run
from dhat_jax.report.tables import WORST, accuracies

LEVEL = 0.95


class Difference(NamedTuple):
  """How far one accuracy lies above another, in points.

  Attributes:
    points: the difference.
    low: the lower end of its 95 % interval, or None where it is unknown.
    high: the upper end.
  """

  points: float
  low: float | None = None
  high: float | None = None

  @property
  def is_known(self) -> bool:
    """Whether there is an interval."""
    return self.low is not None and self.high is not None

  @property
  def sign(self) -> int:
    """1 if it is positive beyond noise, -1 if negative, else 0."""
    if self.low is None or self.high is None:
      return 0
    return int(self.low > 0) - int(self.high < 0)

  @property
  def interval(self) -> str:
    """The interval as text, '' where it is unknown."""
    return f'{self.low:+.1f} to {self.high:+.1f}' if self.is_known else ''


def over_images(right: Sequence[bool], baseline: Sequence[bool]) -> Difference:
  """Compares two outputs on the same images.

  The interval of Agresti and Min (2005) for paired proportions. It is a normal
  one after half an image is added to each of the four cells (which of the two
  is right). It covers other test images of the kind, not other seeds.

  Args:
    right: which images one output gets right, bool [n].
    baseline: the same of the other, in the same order.
  """
  gains = np.asarray(right, int) - np.asarray(baseline, int)  # [n], -1 to 1
  won, lost = (int((gains == sign).sum()) + 0.5 for sign in (1, -1))
  images = len(gains) + 2
  centre = (won - lost) / images
  error = math.sqrt((won + lost) / images - centre**2) / math.sqrt(images)
  reach = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2) * error
  return Difference(
    100 * float(gains.mean()),
    100 * max(centre - reach, -1),
    100 * min(centre + reach, 1),
  )


def over_seeds(
  shares: Sequence[float], baseline: Sequence[float]
) -> Difference:
  """Compares two outputs of the same runs, which differ in their seeds.

  Student's interval. It covers other seeds on these images.

  Args:
    shares: accuracies of one output in [0, 1], by run.
    baseline: those of the other, in the same order.
  """
  points = 100 * np.subtract(shares, baseline)  # [runs]
  mean = float(points.mean())
  if len(points) < 2:
    return Difference(mean)
  error = float(points.std(ddof=1)) / math.sqrt(len(points))
  reach = float(special.stdtrit(len(points) - 1, (1 + LEVEL) / 2)) * error
  return Difference(mean, mean - reach, mean + reach)


def difference(
  run: Run, output: str, baseline: str, attack: str
) -> Difference | None:
  """Compares two outputs of a run.

  Args:
    run: evaluated.
    output: the name of one.
    baseline: the name of the other.
    attack: its name, or `tables.WORST`: under all attacks that both saw.

  Returns:
    The difference, without an interval where the records of the images are
    missing; None where the two cannot be compared.
  """
  both = (output, baseline)
  attacks = common_attacks(run, *both) if attack == WORST else [attack]
  right, reference = (right_under_all(run, name, attacks) for name in both)
  if right is not None and reference is not None:
    images = min(len(right), len(reference))
    return over_images(right[:images], reference[:images])
  shares = [accuracies(run, name).get(attack) for name in both]
  if None in shares or (attack == WORST and not have_same_attacks(run, *both)):
    return None
  return Difference(100 * (shares[0] - shares[1]))


def right_under_all(
  run: Run, output: str, attacks: Iterable[str]
) -> np.ndarray | None:
  """Returns which images an output gets right under all of some attacks.

  Args:
    run: with the arrays of its evaluation.
    output: its name.
    attacks: their names.

  Returns:
    bool [n] for the first n images, which all attacks saw; None where the
    record of one is missing.
  """
  flags = [run.robust(output, attack) for attack in attacks]
  known = [robust for robust in flags if robust is not None]
  if not known or len(known) < len(flags):
    return None
  count = min(map(len, known))
  return functools.reduce(np.logical_and, (robust[:count] for robust in known))


def common_attacks(run: Run, output: str, baseline: str) -> list[str]:
  """Returns the attacks that were made against both outputs."""
  others = run.results['accuracy'].get(baseline, {})
  return [a for a in run.results['accuracy'].get(output, {}) if a in others]


def have_same_attacks(run: Run, output: str, baseline: str) -> bool:
  """Returns whether the same attacks were made against both outputs."""
  rows = (run.results['accuracy'].get(name, {}) for name in (output, baseline))
  return len({frozenset(row) for row in rows}) == 1
