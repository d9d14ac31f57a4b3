"""Means, deviations and intervals against what is computed by hand."""

import numpy as np
import pytest

from experiments import statistics


def test_mean_and_deviation():
  assert statistics.mean_and_deviation([1, 2, 3, 6]) == pytest.approx(
    (3.0, np.sqrt((4 + 1 + 0 + 9) / 3))
  )
  mean, deviation = statistics.mean_and_deviation([4.0])
  assert mean == 4
  assert np.isnan(deviation)


def test_over_seeds_by_hand():
  # Differences 1, 2, 3: mean 2, error 1 / sqrt(3); t of 2 degrees of freedom
  # at 97.5 % is 4.30265.
  found = statistics.over_seeds([2, 4, 6], [1, 2, 3])
  reach = 4.30265 / np.sqrt(3)
  assert found == pytest.approx((2, 2 - reach, 2 + reach), abs=1e-4)


def test_over_images_by_hand():
  # 10 images: 3 only one network gets right, 1 only the other.
  right = [1, 1, 1, 0, 1, 1, 0, 0, 1, 0]
  baseline = [0, 0, 0, 1, 1, 1, 0, 0, 1, 0]
  # Variance of the differences: (3 + 1) / 10 - .2 ** 2 = .36.
  reach = 1.95996 * 0.6 / np.sqrt(10)
  found = statistics.over_images(right, baseline)
  assert found == pytest.approx((0.2, 0.2 - reach, 0.2 + reach), abs=1e-5)


@pytest.mark.parametrize(
  'compare', [statistics.over_seeds, statistics.over_images]
)
def test_what_is_not_paired_is_refused(compare):
  with pytest.raises(ValueError, match='got 2 and 3'):
    compare([1, 0], [1, 0, 1])


def test_equal_images_leave_nothing_open():
  assert statistics.over_images([1, 0, 1], [1, 0, 1]) == (0, 0, 0)


def test_one_seed_has_no_interval():
  mean, low, high = statistics.over_seeds([3.0], [1.0])
  assert mean == 2
  assert np.isnan([low, high]).all()
