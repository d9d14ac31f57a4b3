import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dhat_jax.models import aggregator
from dhat_jax.models.dual_head import DualHeadNet
from dhat_jax.models.outputs import part_variables
from tests.helpers.tiny import (
  TinyBackbone,
  flat,
  normal,
  random_variables,
  shapes_of,
)


def parameter_count(module, num_classes):
  variables = shapes_of(module, np.zeros((1, 2, num_classes)), train=False)
  return sum(leaf.size for leaf in jax.tree.leaves(variables.get('params', {})))


def apply(module, variables, logits, **kwargs):
  return jax.jit(functools.partial(module.apply, **kwargs))(variables, logits)


def logits_of(num_classes, batch_size=4, seed=1):
  return 3 * normal(batch_size, 2, num_classes, seed=seed)


def test_pairs_come_in_the_published_order():
  assert aggregator.class_pairs(4).tolist() == [
    [0, 1],
    [0, 2],
    [0, 3],
    [1, 2],
    [1, 3],
    [2, 3],
  ]
  assert aggregator.class_pairs(2).tolist() == [[0, 1]]
  assert aggregator.class_pairs(100).shape == (4950, 2)


@pytest.mark.parametrize(
  ('module', 'num_classes', 'expected'),
  [
    (aggregator.Pairwise(), 10, 28_930),
    # 24 + 16 for the classes, 48 + 32 for the pairs, 4,950 * 64 * 100 + 100.
    (aggregator.Pairwise(), 100, 31_680_220),
    (aggregator.Classwise(), 10, 850),
    (aggregator.Classwise(), 100, 80_140),
    (aggregator.Mean(), 10, 0),
  ],
)
def test_parameter_counts(module, num_classes, expected):
  assert parameter_count(module, num_classes) == expected


def _batch_norm(x, params, stats):
  normal = (x - stats['mean']) / np.sqrt(stats['var'] + 1e-5)
  return normal * params['scale'] + params['bias']


def slow_pairwise(variables, logits):
  """The published aggregator for one example [2, K], in plain loops."""
  params, stats = variables['params'], variables['batch_stats']
  conv1, norm1 = params['features']['conv'], params['features']['norm']
  hidden = []
  for k in range(logits.shape[1]):
    values = np.zeros(8)
    for channel in range(8):
      values[channel] = conv1['bias'][channel] + sum(
        conv1['kernel'][head, channel] * logits[head, k] for head in (0, 1)
      )
    values = _batch_norm(values, norm1, stats['features']['norm'])
    hidden.append(np.maximum(values, 0))
  features = []
  for i, j in itertools.combinations(range(logits.shape[1]), 2):
    for position in range(8):
      pair = np.array([hidden[i][position], hidden[j][position]])
      values = pair @ params['conv']['kernel'] + params['conv']['bias']
      values = _batch_norm(values, params['norm'], stats['norm'])
      for window in range(8):  # kernel 2, stride 2, over the 16 channels
        features.append((values[2 * window] + values[2 * window + 1]) / 2)
  return (
    np.array(features) @ params['dense']['kernel'] + params['dense']['bias']
  )


@pytest.mark.parametrize('num_classes', [2, 3, 10])
def test_pairwise_equals_slow_loops(num_classes):
  module, logits = aggregator.Pairwise(), logits_of(num_classes)
  variables = random_variables(module, logits, train=False)
  in_double = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
  expected = [slow_pairwise(in_double, np.asarray(x, float)) for x in logits]
  out = apply(module, variables, logits, train=False)
  assert out.shape == (4, num_classes)
  np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('num_classes', [2, 3, 10])
def test_collapsed_pairwise_equals_classwise(num_classes):
  logits = logits_of(num_classes, batch_size=16)
  variables = random_variables(
    aggregator.Pairwise(), logits, train=False, seed=num_classes
  )
  expected = apply(aggregator.Pairwise(), variables, logits, train=False)
  collapsed = jax.jit(lambda v: aggregator.collapse(v, num_classes))(variables)
  shapes = shapes_of(aggregator.Classwise(), logits, train=False)
  assert jax.tree.map(np.shape, collapsed) == jax.tree.map(np.shape, shapes)
  out = apply(aggregator.Classwise(), collapsed, logits, train=False)
  np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)
  assert np.std(expected) > 0.1


def test_classwise_golden():
  # One hidden value alone is used: twice the first head's logit minus the
  # second's, behind the ReLU; class 0 reads its own, class 1 both.
  logits = np.array([[[3.0, 1.0], [1.0, 5.0]]])  # 2z - z' = 5 and -3
  variables = jax.tree.map(
    lambda x: np.zeros(x.shape, np.float32),
    random_variables(aggregator.Classwise(), logits, train=False),
  )
  features = variables['params']['features']
  features['conv']['kernel'][:, 0] = [2, -1]
  features['norm']['scale'][:] = np.sqrt(1 + 1e-5)
  variables['batch_stats']['features']['norm']['var'][:] = 1
  dense = variables['params']['dense']
  dense['kernel'][0] = [1, 10]  # of class 0, hidden value 0
  dense['kernel'][8] = [0, 100]  # of class 1, hidden value 0
  dense['bias'][:] = [0.5, 0.25]
  out = apply(aggregator.Classwise(), variables, logits, train=False)
  np.testing.assert_allclose(out, [[5.5, 50.25]], rtol=1e-5)


def test_mean():
  logits = logits_of(5)
  for train in (False, True):
    out = apply(aggregator.Mean(), {}, logits, train=train)
    np.testing.assert_allclose(
      out, (logits[:, 0] + logits[:, 1]) / 2, rtol=1e-6
    )


@pytest.mark.parametrize(
  ('module', 'norms'),
  [(aggregator.Pairwise(), 2), (aggregator.Classwise(), 1)],
)
def test_training_mode_updates_statistics(module, norms):
  logits = logits_of(3, batch_size=8)
  variables = random_variables(module, logits, train=False)
  out, updated = apply(
    module, variables, logits, train=True, mutable=['batch_stats']
  )
  before, after = flat(variables['batch_stats']), flat(updated['batch_stats'])
  assert len(after) == 2 * norms
  for name in before:
    assert np.all(before[name] != after[name]), name
  # The first batch norm's new mean, from the first convolution's output.
  conv = variables['params']['features']['conv']
  mean = logits.mean(axis=(0, 2)) @ conv['kernel'] + conv['bias']
  name = 'features/norm/mean'
  np.testing.assert_allclose(
    after[name], 0.9 * before[name] + 0.1 * mean, rtol=1e-4, atol=1e-5
  )
  _, unchanged = apply(
    module, variables, logits, train=False, mutable=['batch_stats']
  )
  for name, values in flat(unchanged['batch_stats']).items():
    np.testing.assert_array_equal(values, before[name])
  evaluated = apply(module, variables, logits, train=False)
  assert np.abs(out - evaluated).max() > 1e-3


@pytest.mark.parametrize(
  'module', [aggregator.Pairwise(), aggregator.Classwise()]
)
def test_bypass_is_the_gradient_without_relu(module, monkeypatch):
  logits = logits_of(4)
  variables = random_variables(module, logits, train=False)
  cotangent = normal(4, 4, seed=2)

  def values_and_gradient(logits_fn):
    values, vjp = jax.vjp(logits_fn, logits)
    return values, vjp(cotangent)[0]

  def forward(logits):
    return module.apply(variables, logits, train=False)

  values, gradient = values_and_gradient(forward)
  bypassed, around = values_and_gradient(
    functools.partial(module.bypass, variables)
  )
  np.testing.assert_array_equal(bypassed, values)
  monkeypatch.setattr(nn, 'relu', lambda x: x)
  _, expected = values_and_gradient(forward)
  np.testing.assert_allclose(around, expected, rtol=1e-4, atol=1e-5)
  assert np.abs(around - gradient).max() > 0.01


def test_what_trains_and_what_has_a_bypass():
  for name, trains in (
    ('pairwise', True),
    ('classwise', True),
    ('mean', False),
  ):
    module = aggregator.AGGREGATORS.make(name)
    assert module.trains == trains
    assert (module.bypass is not None) == trains
    assert module.surrogate is module.fit is None


@aggregator.register('weighted')
class Weighted(aggregator.Aggregator):
  """A user's own: one weight for each head."""

  start: float

  @nn.compact
  def __call__(self, logits, train):
    init = nn.initializers.constant(self.start)
    weights = self.param('weights', init, (logits.shape[1],))
    return jnp.einsum('bhk,h->bk', logits, weights)


def test_aggregator_of_a_user():
  options = {'start': 0.25}
  net = DualHeadNet(
    TinyBackbone(), 4, aggregator='weighted', aggregator_options=options
  )
  hash(net)
  images = normal(2, 8, 8, 3)
  variables = jax.jit(net.init)(jax.random.key(0), images)
  weights = variables['params']['aggregator']['weights']
  assert weights.tolist() == [0.25, 0.25]
  outputs = jax.jit(net.apply)(variables, images)
  np.testing.assert_allclose(
    outputs.aggregated, outputs.mean / 2, rtol=1e-5, atol=1e-6
  )
  module = net.make_aggregator()
  assert module.trains
  assert module.bypass is None
  with pytest.raises(ValueError, match=r"aggregator: 'weighted' lacks"):
    DualHeadNet(TinyBackbone(), 4, aggregator='weighted')


@aggregator.register('rounded_sum')
class Rounded(aggregator.Aggregator):
  """A user's own, with a way around its steps."""

  trains = False

  def __call__(self, logits, train):
    return jnp.round(logits.mean(axis=1))

  def bypass(self, variables, logits):
    mean = logits.mean(axis=1)
    steps = self.apply(variables, logits, train=False) - mean
    return mean + jax.lax.stop_gradient(steps)


def test_bypass_of_a_user():
  net = DualHeadNet(TinyBackbone(), 4, aggregator='rounded_sum')
  module, logits = net.make_aggregator(), logits_of(4)
  variables = part_variables(
    random_variables(net, normal(2, 8, 8, 3)), 'aggregator'
  )
  assert variables == {}
  np.testing.assert_allclose(
    module.bypass(variables, logits), np.round(logits.mean(axis=1)), atol=1e-6
  )
  gradient = jax.grad(lambda x: module.bypass(variables, x).sum())(logits)
  np.testing.assert_array_equal(gradient, np.full(logits.shape, 0.5))


@pytest.mark.parametrize('name', ['pairwise', 'classwise'])
def test_no_matrix_product_over_the_two_heads(name):
  # XLA for GPUs cannot tile one without autotuning, forward or gradient.
  module = aggregator.AGGREGATORS.make(name)
  logits = logits_of(4)
  variables = random_variables(module, logits, train=False)

  def total(variables, logits):
    return module.apply(variables, logits, train=False).sum()

  text = jax.jit(jax.grad(total, argnums=(0, 1))).lower(variables, logits)
  products = re.findall(r'dot_general.*: \((.*)\) ->', text.as_text())
  assert products  # of the last layer
  for operands in products:
    shapes = re.findall(r'tensor<([\dx]*)xf32>', operands)
    assert all('2' not in shape.split('x') for shape in shapes), operands
