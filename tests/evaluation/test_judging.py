"""A run's randomised network: judged by several evaluations."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dhat_jax.attacks import randomized
from dhat_jax.evaluation import attacks, audit, judging, summary
from dhat_jax.evaluation.audit_targets import BYPASS, Bypassed
from dhat_jax.evaluation.records import Record
from dhat_jax.models import backbones
from dhat_jax.runtime import devices, streams
from tests.helpers import tiny, tiny_suite

SAMPLES = 6
OPTIONS = {
  'attacks': ('clean', 'pgd_3', 'apgd-ce'),
  'epsilon': 0.01,
  'step_size': 0.005,
  'samples': SAMPLES,
}


class Noise(nn.Module):
  """Adds normal noise wherever the caller passes the stream."""

  @nn.compact
  def __call__(self, features):
    if not self.has_rng('noise'):
      return features
    key = self.make_rng('noise')
    return features + 0.3 * jax.random.normal(key, features.shape)


@backbones.register('tiny_noisy')
@dataclasses.dataclass(frozen=True)
class NoisyBackbone(tiny.TinyBackbone):
  """The tiny backbone with noise on the features of each head."""

  def tail(self, features, **options):
    return Noise(name='noise')(super().tail(features, **options))


@pytest.fixture(scope='module')
def case():
  """A network of one head; the labels are its own predictions."""
  net, variables = tiny_suite.network()
  split = tiny_suite.self_labelled(net, variables, 'main')
  net = net.clone(backbone=NoisyBackbone(), outputs=('main',))
  return net, variables, split


@pytest.fixture(scope='module')
def results(case, tmp_path_factory):
  folder = tmp_path_factory.mktemp('noisy')
  return folder, tiny_suite.run(*case, folder, **OPTIONS)


def correct_of(folder, output, attack):
  with np.load(folder / output / f'{attack}.npz') as arrays:
    return arrays['robust'], arrays[f'correct/{output}']


def test_results_hold_worst_mean_and_spread(results):
  folder, results = results
  numbers = results['randomized']
  assert numbers['samples'] == SAMPLES
  rows = numbers['accuracy']['main']
  assert [name.split('(')[0] for name in rows] == list(OPTIONS['attacks'])
  for attack, row in rows.items():
    robust, correct = correct_of(folder, 'main', attack)
    assert correct.shape == (tiny_suite.IMAGES, SAMPLES)
    assert row == randomized.accuracies(correct)
    np.testing.assert_array_equal(robust, correct.sum(axis=1) > SAMPLES / 2)
    assert results['accuracy']['main'][attack] == robust.mean()
    assert row['worst'] <= row['mean']
  assert rows['pgd_3']['mean'] < rows['clean']['mean'] < 1
  assert 0 < rows['clean']['spread'] < 0.2
  facts = {'epsilon': 0.01, 'n_test': 42, 'dataset': 'digits'}
  lines = summary.summary({**results, **facts})
  assert f'{100 * rows["clean"]["mean"]:.2f}' in lines


def records_of(targets, audited):
  """Records of two evaluations of two images: {(target, attack): record}."""
  generator = np.random.default_rng(0)
  return {
    (target, attack): Record.of(
      {
        output: generator.normal(size=(2, 2, 3))
        for output in ('main', 'second', audited)
      },
      np.array([0, 1]),
      audited if target not in ('main', 'second') else target,
    )
    for target, attack in itertools.product(targets, ('clean', 'pgd_3'))
  }


def test_the_audit_reports_the_audited_output_on_all_records():
  records = records_of(('main', 'second', 'aggregated', BYPASS), 'aggregated')
  listed = {'main': ['clean'], 'aggregated': ['clean', 'pgd_3']}
  numbers = judging.section(records, attacks=listed, audited='aggregated')
  assert numbers['samples'] == 2
  assert {o: list(rows) for o, rows in numbers['accuracy'].items()} == listed
  assert set(numbers['audit']) == {'main', 'second', 'aggregated', BYPASS}
  for (target, attack), record in records.items():
    transfer = randomized.accuracies(record.correct['aggregated'])
    assert numbers['audit'][target][attack] == transfer
  clean = records['main', 'clean']
  assert numbers['accuracy']['main']['clean'] == randomized.accuracies(
    clean.correct['main']
  )


def test_two_equal_attacks_differ_by_chance_alone():
  generator = np.random.default_rng(0)
  expected = generator.uniform(size=(360, 1))  # accuracy of each image
  allowed, differs = [], []
  for _ in range(20):
    first, second = generator.uniform(size=(2, 360, 10)) < expected
    robust, other = (rows.sum(axis=1) > 5 for rows in (first, second))
    allowed.append(judging.flips(first))
    differs.append(np.sum(robust & ~other))
  assert np.mean(differs) > audit.tolerance(audit.MISSED, 360)  # flags
  assert np.mean(np.array(differs) <= allowed) >= 0.95
  assert np.mean(allowed) < 2 * np.mean(differs)
  assert judging.flips(None) == 0
  assert judging.flips(np.ones((360, 10), bool)) <= 5


def test_flags_allow_for_chance():
  numbers = {'missed': 12, 'beats_by': 0, 'images': 360}
  rest = {
    'gradients': {'vanishing': 0.0},
    'largest_epsilon': {'accuracy': 0.0, 'chance': 0.1, 'epsilon': 1.0},
    'white_box': {'accuracy': 0.5},
    'attack': 'pgd_3',
    'attacks': {'square': numbers},
  }
  (flag,) = audit.flags(rest)
  assert flag['missed_threshold'] == 8
  assert audit.flags({**rest, 'by_chance': 5}) == []


def test_gradients_around_the_aggregator_see_the_noise():
  net, variables = tiny_suite.network()
  net = net.clone(backbone=NoisyBackbone())
  images = jnp.full((1, 8, 8, 1), 0.5)
  other = Bypassed(net, 'aggregated')
  first, second = (
    other.apply(variables, images, rngs={'noise': jax.random.key(seed)})
    for seed in (0, 1)
  )
  own = net.apply(variables, images, rngs={'noise': jax.random.key(0)})
  np.testing.assert_allclose(first.aggregated, own.aggregated, atol=1e-5)
  assert np.abs(first.aggregated - second.aggregated).max() > 1e-3


def test_the_audits_gradients_are_those_of_the_mean_logits(case):
  net, variables, split = case
  evaluator = tiny_suite.make_evaluator(net, **OPTIONS)
  target = evaluator.target(devices.replicate(variables), 'main')
  sizes = audit.gradient_sizes(target, split)
  assert sizes.shape == (tiny_suite.IMAGES,)
  assert sizes.min() > 0


def test_ensembles_name_the_samples(results):
  _, results = results
  (details,) = results['autoattack']['main'].values()
  assert details['not_standard']['samples'] == SAMPLES
  assert any('randomised' in line for line in details['warnings'])


def test_evaluations_agree_with_the_network(case):
  net, variables, split = case
  images = jnp.asarray(split.images, jnp.float32) / 255
  evaluator = tiny_suite.make_evaluator(net, **OPTIONS)
  whole = dataclasses.replace(split, images=np.asarray(images))
  replicated = devices.replicate(variables)
  logits = evaluator.logits(replicated, whole, streams.key(1))['main']
  assert logits.shape == (tiny_suite.IMAGES, SAMPLES, 10)
  # Image 20's third evaluation, alone.
  key = jax.random.fold_in(jax.random.fold_in(streams.key(1), 20), 2)
  alone = net.apply(variables, images[20:21], rngs={'noise': key}).main
  np.testing.assert_allclose(logits[20, 2], alone[0], atol=1e-4)
  # Without a key: the mean over fixed ones.
  mean = evaluator.logits(replicated, whole)['main']
  assert mean.shape == (tiny_suite.IMAGES, 10)


def test_batches_do_not_change_the_evaluations(case, results):
  folder, _ = results
  net, variables, split = case
  evaluator = tiny_suite.make_evaluator(net, **{**OPTIONS, 'batch_size': 42})
  target = evaluator.target(devices.replicate(variables), 'main')
  attack = attacks.make('clean', norm='linf')
  record = attack.run(target, split, streams.key(0))
  _, stored = correct_of(folder, 'main', 'clean')
  np.testing.assert_array_equal(record.correct['main'], stored)
  np.testing.assert_array_equal(
    attack.robust(target, split, streams.key(0)), record.robust
  )


def test_records_of_several_evaluations():
  logits = np.zeros((2, 3, 4))
  logits[0, :, 1] = [1, 1, -1]  # classes 1, 1, 0
  logits[1, :, 2] = [1, 1, 1]
  labels = np.array([1, 3])
  record = Record.of({'main': logits}, labels, 'main')
  np.testing.assert_array_equal(record.robust, [True, False])
  np.testing.assert_array_equal(record.predictions['main'], [1, 2])
  losses = [np.log(np.exp(z) + 3) - z for z in (1, 1, -1)]
  expected = [np.mean(losses), np.log(np.e + 3)]
  np.testing.assert_allclose(record.losses, expected)
  again = Record.from_arrays(record.arrays(), labels, 'main')
  np.testing.assert_array_equal(again.correct['main'], record.correct['main'])
  arrays = record.arrays()
  arrays['correct/main'] = ~arrays['correct/main']
  with pytest.raises(ValueError, match='evaluations and `robust` disagree'):
    Record.from_arrays(arrays, labels, 'main')


def test_a_wrong_number_of_samples_is_named(case):
  with pytest.raises(ValueError, match=r'config\.evaluation\.samples'):
    tiny_suite.make_evaluator(case[0], samples=0)
