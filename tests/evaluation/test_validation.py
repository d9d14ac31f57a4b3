"""What a stage is told while it trains."""

import jax
import numpy as np
import pytest

from dhat_jax.evaluation import attacks
from dhat_jax.evaluation.attack_types import EvaluationAttack
from dhat_jax.evaluation.validation import Validation
from dhat_jax.runtime import devices
from tests.helpers import tiny_suite

SHARED = {'epsilon': 0.1, 'step_size': 0.05, 'norm': 'linf', 'restarts': 1}


@pytest.fixture(scope='module')
def case():
  net, variables, split = tiny_suite.case()
  return tiny_suite.make_evaluator(net), devices.replicate(variables), split


def make(evaluator, name):
  return Validation(
    evaluator=evaluator,
    output='aggregated',
    clean=attacks.make('clean', **SHARED),
    attack=attacks.make(name, **SHARED),
    seed=0,
  )


def accuracies_of(evaluator, name, variables, split):
  return make(evaluator, name).judge(variables, split, shown=0)[0]


def test_accuracies_are_those_of_the_evaluation(case):
  evaluator, variables, split = case
  accuracies = accuracies_of(evaluator, 'pgd_3', variables, split)
  target = evaluator.target(variables, 'aggregated')
  rng = jax.random.key(0)
  for key, name in (('clean', 'clean'), ('robust', 'pgd_3')):
    record = attacks.make(name, **SHARED).run(target, split, rng)
    assert accuracies[f'{key}_accuracy'] == record.robust.mean()
  assert accuracies['robust_accuracy'] < accuracies['clean_accuracy']


def test_clean_images_may_be_what_counts(case):
  evaluator, variables, split = case
  accuracies = accuracies_of(evaluator, 'clean', variables, split)
  assert accuracies['robust_accuracy'] == accuracies['clean_accuracy'] > 0.8


def test_images(case):
  evaluator, variables, split = case
  validation = make(evaluator, 'pgd_3')
  _, clean, attacked = validation.judge(variables, split, shown=8)
  assert clean.shape == attacked.shape == (8, 8, 8, 1)
  np.testing.assert_array_equal(clean, np.float32(split.images[:8]) / 255)
  assert 0.05 < np.abs(attacked - clean).max() <= 0.1 + 1e-6


def test_the_images_are_those_that_count(case):
  """Of every attack: those of a run, which keeps its images."""
  evaluator, variables, split = case
  validation = make(evaluator, 'pgd_3')
  _, _, attacked = validation.judge(variables, split, shown=8)
  robust, images = EvaluationAttack.robust_and_images(
    validation.attack,
    evaluator.target(variables, 'aggregated'),
    split,
    jax.random.key(0),
  )
  assert robust.shape == split.labels.shape
  np.testing.assert_array_equal(attacked, images[:8])
