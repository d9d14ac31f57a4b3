"""The audit catches planted defects and is silent on honest networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.evaluation import audit, audit_targets
from dhat_jax.evaluation.records import Workspace
from dhat_jax.models import aggregator
from dhat_jax.models.outputs import part_variables
from dhat_jax.runtime import devices
from tests.helpers import tiny, tiny_suite


@aggregator.register('saturated')
class Saturated(aggregator.Aggregator):
  """The mean, so large that softmax rounds its gradient to zero.

  The factor is a power of two, by which a product is exact: another one leaves
  a residue where a compiler fuses it with a difference, and so a gradient.
  """

  trains = False

  def __call__(self, logits, train):
    return 2.0**17 * logits.mean(axis=1)


@aggregator.register('rounded')
class Rounded(aggregator.Aggregator):
  """The mean in steps, with no gradient anywhere."""

  trains = False

  def __call__(self, logits, train):
    return jnp.round(50 * logits.mean(axis=1))


@aggregator.register('unsure')
class Unsure(aggregator.Aggregator):
  """The class of the head that is less sure, with no gradient.

  So an attack that makes one head sure of a wrong class helps the other one.
  """

  trains = False

  def __call__(self, logits, train):
    logits /= logits.std(axis=2, keepdims=True)
    largest, _ = jax.lax.top_k(logits, 2)
    leads = largest[..., 0] - largest[..., 1]  # [B, H]
    chosen = jnp.take_along_axis(
      logits.argmax(axis=2), leads.argmin(axis=1)[:, None], axis=1
    )[:, 0]
    return jax.nn.one_hot(chosen, logits.shape[2])


def audit_of(net, variables, **overrides):
  split = tiny_suite.self_labelled(net, variables)
  results = tiny_suite.run(
    net, variables, split, attacks=('clean',), audit=True, **overrides
  )
  return results['audit']


def names(report):
  return {flag['name'] for flag in report['flags']}


@pytest.mark.parametrize('planted', ['saturated', 'rounded'])
def test_masked_gradients_are_caught(planted):
  net, variables = tiny_suite.network(planted)
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
  if planted == 'rounded':  # the other one's margin has a gradient
    assert 'square' in found
  for flag in report['flags']:
    assert len(flag['sentence']) > 20


def test_heads_that_hide_each_other_are_weighed_anew():
  """Neither head, nor their mean, shows what MORA finds with both."""
  net, variables = tiny_suite.network('unsure')
  second = variables['params']['second_head']['classifier']['dense']
  for name in second:
    second[name] *= 10  # the mean is hardly more than this head
  report = audit_of(
    net,
    variables,
    audit_steps=10,
    epsilon=0.04,
    step_size=0.01,
    audit_mora=True,
  )
  rows = {**report['attacks']}
  mora = rows.pop('mora')
  assert 'mora' in names(report)
  assert mora['missed'] > 8
  best = min(
    report['white_box']['accuracy_of_all'],
    *(row['accuracy'] for row in rows.values()),
  )
  assert mora['accuracy'] < best - 0.15
  assert report['worst_case'] <= mora['accuracy']
  assert 'mora_10_control' in report['white_box']['others']


@aggregator.register('cancelling')
class Cancelling(aggregator.Aggregator):
  """The mean, plus and minus its own gradient."""

  trains = False

  def __call__(self, logits, train):
    mean = logits.mean(axis=1)
    return mean + (jax.lax.stop_gradient(mean) - mean)


def test_gradients_that_cancel_hide_nothing_from_mora():
  """Its control, on the output alone, is left with random starts."""
  net, variables = tiny_suite.network('cancelling')
  split = tiny_suite.self_labelled(net, variables)
  plan = tiny_suite.make_plan(
    net, audit=True, audit_mora=True, audit_steps=10, epsilon=0.02
  ).audit
  target = tiny_suite.make_evaluator(net).target(
    devices.replicate(variables), 'aggregated'
  )
  mora, momentum = (
    attack.robust(target, split, jax.random.key(0)).mean()
    for attack in (plan.mora, plan.momentum)
  )
  assert momentum > 0.7
  assert mora < 0.5


@pytest.mark.parametrize('name', ['mean', 'pairwise'])
def test_honest_aggregators_are_not_accused(name):
  net, variables = tiny_suite.network(name)
  report = audit_of(
    net,
    variables,
    audit_steps=20,
    audit_queries=50,
    audit_mora=name == 'pairwise',
  )
  assert ('mora' in report['attacks']) == (name == 'pairwise')
  assert report['flags'] == []
  assert report['largest_epsilon']['accuracy'] <= 0.1
  assert ('relu_bypassed' in report['attacks']) == (name == 'pairwise')
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


@pytest.mark.parametrize('name', ['classwise', 'pairwise'])
def test_bypass_is_a_view_of_the_network(name):
  """Its values are the network's, its gradient the aggregator's bypass."""
  net, variables = tiny_suite.network(name)
  images = jnp.asarray(tiny.normal(5, 8, 8, 1))
  cotangent = jnp.asarray(tiny.normal(5, 10, seed=1))
  module = net.make_aggregator()

  def values_and_gradient(logits_fn):
    values, vjp = jax.vjp(logits_fn, images)
    return values, vjp(cotangent)[0]

  def around(images):
    outputs = net.apply(variables, images)
    stacked = jnp.stack([outputs.main, outputs.second], axis=1)
    return module.bypass(part_variables(variables, 'aggregator'), stacked)

  smallest = net.clone(outputs=('aggregated',))
  view = audit_targets.Bypassed(smallest, 'aggregated')
  assert view.parts == net.parts
  values, gradient = values_and_gradient(
    lambda x: view.apply(variables, x).aggregated
  )
  np.testing.assert_array_equal(values, net.apply(variables, images).aggregated)
  np.testing.assert_allclose(gradient, values_and_gradient(around)[1])
  _, through = values_and_gradient(lambda x: net.apply(variables, x).aggregated)
  assert np.abs(gradient - through).max() > 0.01


@aggregator.register('soft_mean')
class SoftMean(aggregator.Aggregator):
  """The mean, with a surrogate that hides nothing: itself."""

  trains = False

  def __call__(self, logits, train):
    return logits.mean(axis=1)

  def surrogate(self, variables, logits):
    return logits.mean(axis=1)


def overruled():
  """A mix that its accurate head decides; it has no gradient there."""
  net, variables = tiny_suite.network('mixed')
  variables['params']['aggregator'] = jax.tree.map(
    jnp.float32,
    {
      'scale': 5.0,
      'shift': 0.0,
      'power': 1.0,
      'weight': 0.4,
      'surrogate_weight': 0.4,
    },
  )
  return net, variables


def test_a_hard_maximum_is_attacked_through_its_surrogate():
  net, variables = overruled()
  report = audit_of(
    net, variables, audit_steps=10, epsilon=0.05, step_size=0.01
  )
  numbers = report['attacks']['surrogate']
  assert 'surrogate' in names(report)
  assert numbers['missed'] > 10
  assert numbers['accuracy'] < report['white_box']['accuracy_of_both'] - 0.2
  assert report['worst_case'] <= numbers['accuracy']
  (flag,) = [flag for flag in report['flags'] if flag['name'] == 'surrogate']
  assert "gradients of the aggregator's surrogate fool" in flag['sentence']


def test_a_surrogate_that_finds_nothing_new_raises_no_flag():
  net, variables = tiny_suite.network('soft_mean')
  report = audit_of(net, variables, audit_steps=10)
  assert report['flags'] == []
  assert report['attacks']['surrogate']['missed'] == 0


def test_surrogate_is_a_view_of_the_network():
  """Called, it is the network; differentiated, its aggregator's surrogate."""
  net, variables = overruled()
  images = jnp.asarray(tiny.normal(5, 8, 8, 1))
  view = audit_targets.Surrogated(
    net.clone(outputs=('aggregated',)), 'aggregated'
  )
  assert view != audit_targets.Bypassed(view.net, view.output)
  np.testing.assert_array_equal(
    view.apply(variables, images).aggregated,
    net.apply(variables, images).aggregated,
  )

  def soft(images):
    outputs = net.apply(variables, images)
    stacked = jnp.stack([outputs.main, outputs.second], axis=1)
    return net.make_aggregator().surrogate(
      part_variables(variables, 'aggregator'), stacked
    )

  def loss(logits_fn):
    return lambda images: (logits_fn(images) ** 2).sum()

  got = jax.value_and_grad(loss(lambda x: view.apply(variables, x).aggregated))
  wanted = jax.value_and_grad(loss(soft))
  jax.tree.map(np.testing.assert_allclose, got(images), wanted(images))


def test_transfer_scores_the_record_of_another_output():
  net, variables = tiny_suite.network()
  split = tiny_suite.self_labelled(net, variables)
  evaluator = tiny_suite.make_evaluator(net)
  plan = tiny_suite.make_plan(net, audit=True)
  target = evaluator.target(devices.replicate(variables), 'main')
  rng = jax.random.key(0)
  record = plan.audit.attack.run(
    target, split, rng, Workspace(keep_images=True)
  )
  logits = net.apply(variables, jnp.asarray(record.images_adv))
  right = logits.aggregated.argmax(axis=1) == split.labels
  np.testing.assert_array_equal(
    record.scored('aggregated', split.labels), right
  )
  results = tiny_suite.run(net, variables, split, plan=plan)
  found = results['audit']['attacks']['transfer_main']
  assert found['accuracy'] == np.mean(right)


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
