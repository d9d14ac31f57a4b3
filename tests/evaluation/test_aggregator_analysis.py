import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.evaluation import aggregator_analysis
from dhat_jax.models.dual_head import DualHeadNet
from dhat_jax.models.outputs import OUTPUTS, Output
from tests.helpers.tiny import TinyBackbone, normal, random_like

LOGITS = {'main': normal(7, 4), 'second': normal(7, 4, seed=1)}


def case(aggregator):
  """(net, variables of the aggregator alone) with 4 classes."""
  net = DualHeadNet(TinyBackbone(), 4, aggregator=aggregator)
  module = net.make_aggregator()
  stacked = jnp.zeros((1, 2, 4))
  variables = module.init(jax.random.key(0), stacked, train=False)
  if variables:
    variables = random_like(variables, seed=2)
  return net, {group: {'aggregator': v} for group, v in variables.items()}


def test_the_mean_takes_half_of_each():
  net, variables = case('mean')
  found = aggregator_analysis.influence(net, variables, LOGITS)
  np.testing.assert_allclose(found['main'], [0.5] * 4, atol=1e-7)
  np.testing.assert_allclose(found['second'], [0.5] * 4, atol=1e-7)


@pytest.mark.parametrize('aggregator', ['pairwise', 'classwise'])
def test_influence_is_a_quotient_of_differences(aggregator):
  net, variables = case(aggregator)
  found = aggregator_analysis.influence(net, variables, LOGITS)
  module = net.make_aggregator()
  own = {group: tree['aggregator'] for group, tree in variables.items()}

  def aggregated(main, second, label):
    out = module.apply(own, np.stack([main, second], axis=1), train=False)
    return np.asarray(out, np.float64)[:, label]

  step = 1e-2
  for label in range(4):
    change = np.eye(4, dtype=np.float32)[label] * step
    main, second = LOGITS['main'], LOGITS['second']
    for head, plus, minus in (
      ('main', (main + change, second), (main - change, second)),
      ('second', (main, second + change), (main, second - change)),
    ):
      difference = aggregated(*plus, label) - aggregated(*minus, label)
      # A ReLU that switches within the step is seen by the quotient alone.
      expected = np.mean(difference) / (2 * step)
      assert found[head][label] == pytest.approx(expected, rel=0.1, abs=0.05)


def test_evenly_spaced_images_are_averaged():
  net, variables = case('classwise')
  found = aggregator_analysis.influence(net, variables, LOGITS, images=3)
  chosen = {head: logits[[0, 3, 6]] for head, logits in LOGITS.items()}
  expected = aggregator_analysis.influence(net, variables, chosen)
  for head in ('main', 'second'):
    np.testing.assert_allclose(found[head], expected[head], rtol=1e-6)


def test_agreement():
  labels = np.array([0, 1, 2, 0, 1])
  predictions = {
    'main': np.array([0, 1, 0, 1, 1]),  # right: 0, 1, 4
    'second': np.array([0, 0, 0, 0, 2]),  # right: 0, 3
    'aggregated': np.array([0, 1, 2, 1, 2]),  # right: 0, 1, 2
  }
  assert aggregator_analysis.agreement(predictions, labels) == {
    'both': {'images': 1, 'aggregated_right': 1},
    'only_main': {'images': 2, 'aggregated_right': 1},
    'only_second': {'images': 1, 'aggregated_right': 0},
    'neither': {'images': 1, 'aggregated_right': 1},
  }


def test_three_heads(monkeypatch):
  third = Output(('trunk', 'third_head'), 'third head', stage='third_head')
  row = dataclasses.replace(
    OUTPUTS['aggregated'], aggregates=('main', 'second', 'third')
  )
  monkeypatch.setitem(OUTPUTS, 'third', third)
  monkeypatch.setitem(OUTPUTS, 'aggregated', row)
  predictions = {
    'main': np.array([0, 0, 0, 1, 1]),
    'second': np.array([0, 0, 1, 1, 1]),
    'third': np.array([0, 1, 1, 0, 1]),
    'aggregated': np.array([0, 0, 1, 1, 0]),
  }
  assert aggregator_analysis.agreement(predictions, np.zeros(5, int)) == {
    'all': {'images': 1, 'aggregated_right': 1},
    'several': {'images': 1, 'aggregated_right': 1},
    'only_main': {'images': 1, 'aggregated_right': 0},
    'only_second': {'images': 0, 'aggregated_right': 0},
    'only_third': {'images': 1, 'aggregated_right': 0},
    'neither': {'images': 1, 'aggregated_right': 1},
  }
