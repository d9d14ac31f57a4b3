"""The fit of an aggregator: what it is fitted to, and by what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.datasets.base import Split
from dhat_jax.evaluation import attacks
from dhat_jax.evaluation.aggregator_analysis import fitted
from dhat_jax.evaluation.fit import AggregatorFit, spaced
from dhat_jax.models import aggregator
from dhat_jax.models.mixed import Mixed
from dhat_jax.runtime import devices
from tests.helpers import tiny_suite

SHARED = {'epsilon': 0.02, 'step_size': 0.01, 'norm': 'linf', 'restarts': 1}


@aggregator.register('remembers')
class Remembers(Mixed):
  """Hands the logits of the fit to the test."""

  images: int = 30

  def fit(self, held_out):
    return held_out


@pytest.fixture(scope='module')
def case():
  net, variables = tiny_suite.network('remembers')
  split = tiny_suite.self_labelled(net, variables, output='main')
  fit = AggregatorFit(
    evaluator=tiny_suite.make_evaluator(net),
    output='aggregated',
    attack=attacks.make('pgd_3', **SHARED),
    seed=5,
  )
  return net, variables, split, fit


def test_what_it_is_fitted_to(case):
  """Both heads' logits, clean and on images that attack the first head."""
  net, variables, split, fit = case
  assert fit.part == 'aggregator'
  replicated = devices.replicate(variables)
  held_out = fit(replicated, split)
  chosen = spaced(split, 30)
  np.testing.assert_array_equal(held_out.labels, chosen.labels)
  target = fit.evaluator.target(replicated, 'main')
  images_adv = fit.attack.images_adv(target, chosen, jax.random.key(5))
  for logits, images in (
    (held_out.clean, chosen.images / np.float32(255)),
    (held_out.attacked, images_adv),
  ):
    outputs = net.apply(variables, jnp.asarray(images))
    np.testing.assert_allclose(logits[:, 0], outputs.main, atol=1e-5)
    np.testing.assert_allclose(logits[:, 1], outputs.second, atol=1e-5)
  right = held_out.attacked[:, 0].argmax(axis=1) == held_out.labels
  assert 0 < right.mean() < 1
  again = fit(replicated, split)
  jax.tree.map(np.testing.assert_array_equal, held_out, again)


def test_evenly_spaced_images():
  split = Split(np.arange(10)[:, None, None, None], np.arange(10))
  assert spaced(split, 4).labels.tolist() == [0, 3, 6, 9]
  assert spaced(split, 20).labels.tolist() == list(range(10))
  assert spaced(split, 1).images.ravel().tolist() == [0]


def test_fitted_numbers_in_the_results(case):
  net, variables, *_ = case
  numbers = fitted(net, devices.replicate(variables))
  assert set(numbers) == {
    'scale',
    'shift',
    'power',
    'weight',
    'surrogate_weight',
  }
  assert numbers['scale'] == variables['params']['aggregator']['scale']
  assert fitted(net.clone(aggregator='mean', aggregator_options={}), {}) == {}
