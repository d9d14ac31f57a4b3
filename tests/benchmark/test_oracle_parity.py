"""The comparison of flags with pyautoattack, on a tiny network and budget."""

import types

import numpy as np
import pytest

pytest.importorskip('pyautoattack')

from dhat_jax.attacks.autoattack.budget import Budget
from dhat_jax.benchmark import parity, parity_flags
from dhat_jax.benchmark.autoattack_sides import Problem
from tests.attacks import nets, oracle

pytestmark = pytest.mark.oracle


def test_flags_of_both_sides():
  weights = nets.trained_weights()
  _, _, images, labels = nets.digits()
  logits = types.SimpleNamespace(
    apply=lambda variables, x: types.SimpleNamespace(
      select=lambda output: nets.logits_of(variables, x)
    ),
    outputs=('main',),
  )
  problem = Problem(
    net=logits,
    variables=weights,
    images=images[:40],
    labels=labels[:40],
    epsilon=nets.EPSILON['linf'],
    norm='linf',
    source='a test',
  )
  torch_net = oracle.TorchNet(weights, oracle.torch.float32)
  judge = parity_flags.make_judge(problem, torch_net)
  clean = judge(problem.images)
  np.testing.assert_allclose(clean['ours'], clean['theirs'], atol=1e-4)
  lines = []
  rows = parity.compare_sides(
    problem,
    torch_net,
    judge,
    Budget(n_iter=20, n_queries=50, n_targets=2),
    batch_size=40,
    seeds=2,
    report=lines.append,
  )
  assert [row['attack'] for row in rows] == [
    *('apgd-ce', 'apgd-t', 'fab-t', 'square', 'all four')
  ]
  by_attack = {row['attack']: row for row in rows}
  fab = by_attack['fab-t']
  assert fab['flags']['ours'] == fab['flags']['theirs']
  assert len(fab['flags']['ours']) == 1
  for row in rows:
    right = row['flags']['ours'][0]
    assert row['equal_flags'] >= 36
    for side, facts in row['facts'].items():
      for flags, fact in zip(row['flags'][side], facts, strict=True):
        assert fact['broken'] == flags.count('x')
        assert fact['broken'] == fact['in_ball'] == fact['wrong_for_both']
    assert right.count('-') == int((clean['ours'] < 0).sum())
  combined = by_attack['all four']['flags']
  for side, flags in combined.items():
    for seed in (0, 1):
      assert flags[seed].count('x') >= fab['flags'][side][0].count('x')
  assert by_attack['apgd-ce']['facts']['ours'][0]['broken'] > 5
  assert len(lines) == 5
  assert '| all four |' in parity.table({'rows': rows})
