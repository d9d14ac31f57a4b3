"""AutoAttack against pyautoattack, end to end on a trained network."""

import logging

import numpy as np
import pytest

from dhat_jax.attacks.autoattack import autoattack
from tests.attacks import nets, oracle

torch = pytest.importorskip('torch')
pyautoattack = pytest.importorskip('pyautoattack')

pytestmark = pytest.mark.oracle
COUNT = 600


def _original(name, norm, images, labels, n_iter, n_queries):
  """Runs one attack of the original with a smaller budget: bool [N]."""
  net = oracle.TorchNet(nets.trained_weights(), torch.float32)
  original = pyautoattack.AutoAttack(
    net,
    norm={'linf': 'Linf', 'l2': 'L2'}[norm],
    eps=nets.EPSILON[norm],
    version='custom',
    attacks=[name],
    seed=0,
  )
  original.logger.setLevel(logging.ERROR)
  original.fab.n_iter = n_iter
  original.square.n_queries = n_queries
  for attack in (original.apgd, original.apgd_targeted):
    attack.n_iter = n_iter
    attack.n_restarts = 1
    attack.n_iter_2 = max(int(0.22 * n_iter), 1)
    attack.n_iter_min = max(int(0.06 * n_iter), 1)
    attack.size_decr = max(int(0.03 * n_iter), 1)
  original.fab.n_restarts = 1
  points, _ = original.run_standard_evaluation(
    oracle.nchw(images), torch.tensor(labels).long(), batch_size=250
  )
  return net(points).argmax(dim=1).numpy() == labels


def _both(name, norm, n_iter=20, n_queries=600):
  _, _, images, labels = nets.digits()
  images, labels = images[:COUNT], labels[:COUNT]
  weights = nets.trained_weights()
  result = autoattack(
    lambda points: nets.logits_of(weights, points),
    images,
    labels,
    epsilon=nets.EPSILON[norm],
    norm=norm,
    version='custom',
    attacks=[name],
    n_restarts=1,
    n_iter=n_iter,
    n_queries=n_queries,
  )
  theirs = _original(name, norm, images, labels, n_iter, n_queries)
  assert 0.2 < result.robust_accuracy < result.clean_accuracy - 0.1
  return result.robust, theirs


@pytest.mark.parametrize(
  ('name', 'norm'), [('fab-t', 'linf'), ('fab-t', 'l2'), ('fab', 'linf')]
)
def test_flags_of_deterministic_attacks_are_identical(name, norm):
  ours, theirs = _both(name, norm)
  np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
  ('name', 'norm'),
  [
    ('apgd-ce', 'linf'),
    ('apgd-ce', 'l2'),
    ('apgd-t', 'linf'),
  ],
)
def test_seeded_attacks_are_within_half_a_point(name, norm):
  ours, theirs = _both(name, norm, n_iter=30)
  assert abs(ours.mean() - theirs.mean()) <= 0.005


def test_square_is_within_half_a_point():
  # Enough queries that it is not the seed which decides when they run out.
  ours, theirs = _both('square', 'linf', n_queries=1000)
  assert abs(ours.mean() - theirs.mean()) <= 0.005
