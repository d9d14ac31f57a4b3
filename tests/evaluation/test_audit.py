"""The audit catches planted defects and is silent on honest networks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dhat_jax.evaluation import audit
from dhat_jax.models import aggregator as aggregators
from dhat_jax.models.dual_head import DualHeadNet
from tests import tiny_suite
from tests.helpers import tiny


class Saturated(nn.Module):
  """The mean, so large that softmax rounds its gradient to zero."""

  axis_name: str | None = None

  def __call__(self, logits, train):
    return 1e5 * logits.mean(axis=1)


class Rounded(nn.Module):
  """The mean in steps, with no gradient anywhere."""

  axis_name: str | None = None

  def __call__(self, logits, train):
    return jnp.round(50 * logits.mean(axis=1))


def audit_of(net, variables, **overrides):
  split = tiny_suite.self_labelled(net, variables)
  results = tiny_suite.run(
    net, variables, split, attacks=('clean',), audit=True, **overrides
  )
  return results['audit']


def names(report):
  return {flag['name'] for flag in report['flags']}


@pytest.mark.parametrize('planted', [Saturated, Rounded])
def test_masked_gradients_are_caught(planted, monkeypatch):
  monkeypatch.setitem(aggregators.AGGREGATORS, 'planted', planted)
  net, variables = tiny_suite.network('planted')
  report = audit_of(
    net,
    variables,
    audit_steps=10,
    audit_queries=100,
    epsilon=0.02,
    step_size=0.005,
  )
  assert report['white_box']['accuracy'] > 0.85
  assert report['worst_case'] < 0.5
  found = names(report)
  assert {'transfer_mean', 'vanishing_gradients', 'largest_epsilon'} <= found
  assert report['gradients']['zero'] > 0.8
  if planted is Rounded:  # the other one's margin has a gradient
    assert 'square' in found
  for flag in report['flags']:
    assert len(flag['sentence']) > 20


@pytest.mark.parametrize('aggregator', ['mean', 'pairwise'])
def test_honest_aggregators_are_not_accused(aggregator):
  net, variables = tiny_suite.network(aggregator)
  report = audit_of(net, variables, audit_steps=20, audit_queries=50)
  assert report['flags'] == []
  assert report['largest_epsilon']['accuracy'] <= 0.1
  assert ('relu_bypassed' in report['attacks']) == (aggregator == 'pairwise')
  assert report['attacks']['square']['images'] == tiny_suite.IMAGES
  assert report['worst_case'] <= report['white_box']['accuracy_of_both']


def dead_relu():
  """An aggregator whose ReLU is silent on and near all clean images."""
  net, variables = tiny_suite.network('classwise')
  images = tiny_suite.self_labelled(net, variables).images
  main = net.apply(variables, images.astype(np.float32) / 255).main
  features = variables['params']['aggregator']['features']
  norm = variables['batch_stats']['aggregator']['features']['norm']
  first = jnp.zeros((2, 8)).at[0, 0].set(1.0)  # feature 0: the main head
  features['conv'] = {'kernel': first, 'bias': jnp.zeros(8)}
  norm.update(mean=jnp.zeros(8), var=jnp.ones(8))
  features['norm'] = {
    'scale': jnp.ones(8),
    'bias': jnp.full(8, -float(main.max()) - 0.3),
  }
  kernel = jnp.zeros((10, 8, 10))
  kernel = kernel.at[jnp.arange(10), 0, jnp.arange(10)].set(100.0)
  variables['params']['aggregator']['dense'] = {
    'kernel': kernel.reshape(80, 10),
    # Where the ReLU is silent, class 3.
    'bias': jnp.zeros(10).at[3].set(0.01),
  }
  return net, variables


def test_gradient_behind_a_dead_relu_is_found():
  net, variables = dead_relu()
  # A small step, so that PGD's random start does not wake the ReLU.
  report = audit_of(net, variables, audit_steps=10, epsilon=0.5, step_size=0.1)
  assert 'relu_bypassed' in names(report)
  assert report['attacks']['relu_bypassed']['missed'] > 10


class Flat(nn.Module):
  """A trunk that changes nothing."""

  backbone: 'LinearBackbone'
  attach: str
  dtype: jnp.dtype | None = None
  axis_name: str | None = None

  def __call__(self, images, train):
    return images


class Linear(nn.Module):
  """A head that is one linear layer."""

  backbone: 'LinearBackbone'
  attach: str
  num_classes: int
  dtype: jnp.dtype | None = None
  axis_name: str | None = None

  @nn.compact
  def __call__(self, features, train):
    return nn.Dense(self.num_classes)(features.reshape(len(features), -1))


@dataclasses.dataclass(frozen=True)
class LinearBackbone:
  """No ReLU but the aggregator's."""

  attach_points = ('block1',)
  trunk = Flat
  head = Linear


@pytest.mark.parametrize('aggregator', ['classwise', 'pairwise'])
def test_bypass_is_the_gradient_without_relu(aggregator, monkeypatch):
  net = DualHeadNet(LinearBackbone(), 4, aggregator=aggregator)
  images = jnp.asarray(tiny.normal(5, 3, 3, 1))
  variables = tiny.random_variables(net, images)
  variables['batch_stats'].setdefault('trunk', {})
  variables['params'].setdefault('trunk', {})
  cotangent = jnp.asarray(tiny.normal(5, 4, seed=1))

  def gradient(network):
    return jax.vjp(
      lambda x: network.apply(variables, x).select('aggregated'), images
    )[1](cotangent)[0]

  bypassed = audit.ReluBypassed(net)
  np.testing.assert_array_equal(
    bypassed.apply(variables, images).aggregated,
    net.apply(variables, images).aggregated,
  )
  found, own = gradient(bypassed), gradient(net)
  monkeypatch.setattr(nn, 'relu', lambda x: x)
  np.testing.assert_allclose(found, gradient(net), rtol=1e-4, atol=1e-5)
  assert np.abs(found - own).max() > 0.01


def test_thresholds():
  assert audit.tolerance(audit.BEATEN, 10) == 3
  assert audit.tolerance(audit.BEATEN, 10_000) == 100
  honest = {
    'attack': 'pgd_20',
    'white_box': {'accuracy': 0.5},
    'attacks': {
      'square': {'accuracy': 0.6, 'missed': 4, 'beats_by': 2, 'images': 42}
    },
    'gradients': {'zero': 0.0, 'vanishing': 0.05},
    'largest_epsilon': {'epsilon': 0.8, 'accuracy': 0.1, 'chance': 0.1},
  }
  assert audit.flags(honest) == []
  for path, value, name in (
    (('attacks', 'square', 'missed'), 5, 'square'),
    (('attacks', 'square', 'beats_by'), 3, 'square'),
    (('gradients', 'vanishing'), 0.06, 'vanishing_gradients'),
    (('largest_epsilon', 'accuracy'), 0.11, 'largest_epsilon'),
    (('white_box', 'accuracy'), 0.05, 'rises_with_epsilon'),
  ):
    report = jax.tree.map(lambda leaf: leaf, honest)
    target = report
    for key in path[:-1]:
      target = target[key]
    target[path[-1]] = value
    assert names({'flags': audit.flags(report)}) == {name}
