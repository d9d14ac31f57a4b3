"""Intervals of differences, beside other ways to compute them."""

import numpy as np
import pytest
from scipy import stats

from dhat_jax.report import pairs
from tests.report.evaluated import make, right


def test_over_images_by_hand():
  # 3 gained, 1 lost of 8: cells 3.5 and 1.5 of 10; centre .2, error
  # sqrt((.5 - .04) / 10) = .21448; times 1.95996 is .42037.
  difference = pairs.over_images(
    [True] * 3 + [False] + [True] * 4, [False] * 3 + [True] + [True] * 4
  )
  assert difference.points == pytest.approx(25.0)
  assert difference.low == pytest.approx(-22.037, abs=1e-3)
  assert difference.high == pytest.approx(62.037, abs=1e-3)
  assert difference.interval == '-22.0 to +62.0'
  assert difference.sign == 0


def test_interval_over_images_covers_what_is_true():
  """95 % of the intervals of simulated test sets hold the true difference."""
  rng = np.random.default_rng(0)
  cells = rng.multinomial(200, [0.1, 0.05, 0.6, 0.25], size=1000)
  covered = 0
  for won, lost, both, neither in cells:
    difference = pairs.over_images(
      right(won, lost, both, neither), right(0, won, lost + both, neither)
    )
    covered += difference.low <= 5.0 <= difference.high
  assert 930 <= covered <= 970


def test_equal_outputs_still_have_an_interval():
  difference = pairs.over_images([True] * 50, [True] * 50)
  assert difference.points == 0
  assert difference.low < 0 < difference.high


def test_ends_are_differences_of_shares():
  difference = pairs.over_images([True, True], [False, False])
  assert difference.high == 100.0


def test_over_seeds_is_students():
  values, baseline = [0.7, 0.75, 0.72, 0.8], [0.65, 0.7, 0.71, 0.72]
  difference = pairs.over_seeds(values, baseline)
  test = stats.ttest_rel(values, baseline)
  low, high = test.confidence_interval(0.95)
  assert difference.points == pytest.approx(4.75)
  assert difference.low == pytest.approx(100 * low)
  assert difference.high == pytest.approx(100 * high)
  assert difference.sign == int(test.pvalue < 0.05)


def test_one_seed_has_no_interval():
  difference = pairs.over_seeds([0.5], [0.25])
  assert difference == pairs.Difference(25.0)
  assert (difference.is_known, difference.sign) == (False, 0)
  assert difference.interval == ''


def test_first_images_of_an_attack_that_saw_fewer(tmp_path):
  records = {
    'main': {'clean': right(8), 'square': right(2, 2)},
    'aggregated': {'clean': right(8), 'square': right(3, 1)},
  }
  run = make(tmp_path, records)
  worst = pairs.difference(run, 'aggregated', 'main', 'worst case')
  assert worst == pairs.over_images(right(3, 1), right(2, 2))
  assert pairs.difference(run, 'aggregated', 'main', 'pgd_7') is None
