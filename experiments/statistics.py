"""Means over seeds, paired differences, and how certain they are."""

import math
import warnings
from collections.abc import Sequence

import numpy as np
from scipy import stats


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
  """Returns the mean and the sample standard deviation (nan for one value)."""
  values = np.asarray(values, float)
  deviation = values.std(ddof=1) if len(values) > 1 else math.nan
  return float(values.mean()), float(deviation)


def over_seeds(
  values: Sequence[float], baseline: Sequence[float], level: float = 0.95
) -> tuple[float, float, float]:
  """Compares two methods that were run on the same seeds.

  Args:
    values: of one method, by seed.
    baseline: of the other, in the same order.
    level: of confidence.

  Returns:
    (mean difference, the interval's ends): Student's t on the differences,
    (nan, nan) for one seed. The interval covers what seeds change, on this
    test set.

  Raises:
    ValueError: different numbers of seeds.
  """
  if len(values) != len(baseline):
    raise ValueError(
      f'seeds: got {len(values)} and {len(baseline)}, expected as many'
    )
  mean = float(np.subtract(values, baseline).mean())
  if len(values) == 1:
    return mean, math.nan, math.nan
  with warnings.catch_warnings():
    # Differences that are all (nearly) equal are no mistake here.
    warnings.simplefilter('ignore', RuntimeWarning)
    test = stats.ttest_rel(values, baseline)
  low, high = test.confidence_interval(level)
  return mean, float(low), float(high)


def over_images(
  right: Sequence[bool], baseline: Sequence[bool], level: float = 0.95
) -> tuple[float, float, float]:
  """Compares two networks on the same images.

  Args:
    right: which images one network gets right.
    baseline: the other, in the same order.
    level: of confidence.

  Returns:
    (difference of the accuracies, the interval's ends): normal approximation
    for paired proportions. The interval covers what other test images of the
    kind would change, for these two networks; not what other seeds would.

  Raises:
    ValueError: different numbers of images.
  """
  if len(right) != len(baseline):
    raise ValueError(
      f'images: got {len(right)} and {len(baseline)}, expected as many'
    )
  differences = np.subtract(right, baseline, dtype=float)
  mean = float(differences.mean())
  error = float(stats.sem(differences, ddof=0))
  if error == 0:
    return mean, mean, mean
  low, high = stats.norm.interval(level, loc=mean, scale=error)
  return mean, float(low), float(high)
