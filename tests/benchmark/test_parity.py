"""What is counted of two sets of runs: flags, splits, facts. No PyTorch."""

import dataclasses
import types

import numpy as np
import pytest

from dhat_jax.benchmark import autoattack_sides, parity, parity_flags
from dhat_jax.benchmark.autoattack_sides import Problem
from dhat_jax.benchmark.parity_flags import Attacked

IMAGES = np.full((4, 1, 1, 1), 0.5, np.float32)


def attacked(flags, shift=0.0):
  broken = np.array([flag == 'x' for flag in flags])
  images = (
    IMAGES[: len(flags)] + np.float32(shift) * broken[:, None, None, None]
  )
  return Attacked(broken, images)


def runs(ours, theirs):
  return {
    'ours': [attacked(flags) for flags in ours],
    'theirs': [attacked(flags) for flags in theirs],
  }


def wide_runs(ours, theirs):
  """Runs on any number of images, of which only the flags matter."""
  none = np.zeros(0, np.float32)
  return {
    side: [
      Attacked(np.array([f == 'x' for f in flags]), none) for flags in rows
    ]
    for side, rows in {'ours': ours, 'theirs': theirs}.items()
  }


def test_flags_that_differ():
  counts = parity_flags.flags_that_differ(
    runs(ours=['x..x', 'xx..'], theirs=['x...', '...x'])
  )
  assert counts == {'between': [1, 1, 1, 3], 'ours': [2], 'theirs': [2]}


def test_share_of_splits():
  # The true split parts four runs into two pairs of equals: one way in three.
  apart = runs(ours=['xx..'] * 2, theirs=['..xx'] * 2)
  assert parity_flags.share_of_splits(apart) == pytest.approx(1 / 3)
  # Three runs a side: 20 ways to name the first side, 2 of them the true one.
  apart = runs(ours=['xx..'] * 3, theirs=['..xx'] * 3)
  assert parity_flags.share_of_splits(apart) == pytest.approx(1 / 10)
  same = runs(ours=['x...', '.x..'], theirs=['x...', '.x..'])
  assert parity_flags.share_of_splits(same) == 1
  assert parity_flags.share_of_splits(runs(['x'], ['x'])) is None


def test_many_seeds_draw_some_of_the_splits():
  rng = np.random.default_rng(1)

  def draw(count, share):
    rows = rng.uniform(size=(count, 12)) < share
    return [''.join('x' if flag else '.' for flag in row) for row in rows]

  # 16 runs a side can be dealt in 6e8 ways.
  same = wide_runs(draw(16, 0.5), draw(16, 0.5))
  apart = wide_runs(draw(16, 0.2), draw(16, 0.8))
  assert 0.05 < parity_flags.share_of_splits(same) <= 1
  assert 0 < parity_flags.share_of_splits(apart) < 0.001


def test_the_original_needs_four_classes():
  few = dataclasses.replace(
    make_problem(), net=types.SimpleNamespace(num_classes=3)
  )
  with pytest.raises(ValueError, match='got 3 classes, expected at least 4'):
    autoattack_sides.make_budget(few, 10, 20)
  many = types.SimpleNamespace(num_classes=11)
  budget = autoattack_sides.make_budget(
    dataclasses.replace(few, net=many), 10, 20
  )
  assert (budget.n_iter, budget.n_queries, budget.n_targets) == (10, 20, 9)


def make_problem():
  return Problem(
    net=None,
    variables={},
    images=IMAGES,
    labels=np.array([0, 1, 0, 1], np.int32),
    epsilon=0.25,
    norm='linf',
    source='a test',
  )


def judge(images):
  """Both networks break where the pixel exceeds .6, one by another margin."""
  margins = 0.6 - images.reshape(-1)
  margins = np.where(np.arange(len(images)) == 3, -1, margins)
  return {'ours': margins, 'theirs': margins - 0.05}


def test_a_row_of_two_runs_a_side():
  both = {
    'ours': [attacked('x...', 0.2), attacked('.x..', 0.3)],
    'theirs': [attacked('xx..', 0.2), attacked('xx..', 0.05)],
  }
  row = parity_flags.compare('square', both, make_problem(), judge)
  assert row['robust'] == {'ours': [2, 2], 'theirs': [1, 1]}
  assert (row['equal_flags'], row['only_ours'], row['only_theirs']) == (3, 0, 1)
  assert row['flags'] == {'ours': ['x..-', '.x.-'], 'theirs': ['xx.-', 'xx.-']}
  assert row['facts']['ours'] == [
    {'broken': 1, 'wrong_for_both': 1, 'in_ball': 1},
    {'broken': 1, 'wrong_for_both': 1, 'in_ball': 0},
  ]
  # At .55 neither network is wrong for certain.
  assert row['facts']['theirs'][1] == {
    'broken': 2,
    'wrong_for_both': 0,
    'in_ball': 2,
  }
  (difference,) = row['differences']
  assert difference == {
    'image': 1,
    'label': 1,
    'broken_by': 'theirs',
    'clean_margins': pytest.approx({'ours': 0.1, 'theirs': 0.05}),
    'margins': pytest.approx({'ours': -0.1, 'theirs': -0.15}),
    'distance': pytest.approx(0.2),
    'times_broken': {'ours': 1, 'theirs': 2},
  }
  lines = parity.table({'rows': [row]}).splitlines()
  assert [cell.strip() for cell in lines[2].split('|')[1:-1]] == [
    *('square', '1, 1', '2, 2', '1 / 0', '1.0', '0.0', '2.0', '1.00', '4 of 6')
  ]
  assert [cell.strip() for cell in lines[-1].split('|')[1:-1]] == [
    *('square', '1', '1', 'there', '0.0500 / 0.1000', '-0.1500 / -0.1000'),
    *('2 of 2', '1 of 2'),
  ]


def test_the_worst_case_takes_the_first_attack_that_breaks():
  one, two = attacked('x...', 0.1), attacked('xx..', 0.2)
  worst = parity._worst_case([one, two])
  np.testing.assert_array_equal(worst.broken, [True, True, False, False])
  np.testing.assert_allclose(worst.images.ravel(), [0.6, 0.7, 0.5, 0.5])
  # An attack that ran once serves every seed.
  combined = parity._combine(
    [
      {'ours': [one], 'theirs': [one]},
      {'ours': [two] * 2, 'theirs': [one] * 2},
    ],
    seeds=2,
  )
  assert [run.broken.sum() for run in combined['ours']] == [2, 2]
  assert [run.broken.sum() for run in combined['theirs']] == [1, 1]


def test_one_seed_has_no_yardstick():
  with pytest.raises(ValueError, match='seeds: got 1, expected'):
    parity.run(types.SimpleNamespace(), seeds=1)
