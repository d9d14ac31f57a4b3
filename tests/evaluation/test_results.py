"""The whole evaluation: exact counts, what the results hold."""

import collections
import csv
import dataclasses
import json
import os

import jax
import numpy as np
import pytest

from dhat_jax.attacks import balls
from dhat_jax.evaluation import attacks
from dhat_jax.evaluation.evaluator import variables_of
from dhat_jax.evaluation.results import evaluate
from tests.helpers import tiny_suite

OUTPUTS = ('main', 'second', 'mean', 'aggregated')
FULL = tiny_suite.FULL


@pytest.fixture(scope='module')
def case():
  return tiny_suite.case()


@pytest.fixture(scope='module')
def finished(case, tmp_path_factory):
  """(folder, results) of a whole evaluation."""
  folder = tmp_path_factory.mktemp('finished')
  return folder, tiny_suite.run(*case, folder, export_images=True, **FULL)


def record(folder, output, name):
  return np.load(os.path.join(folder, output, f'{name}.npz'))


def test_counts_are_exact(case, finished):
  net, variables, split = case
  folder, results = finished
  images = np.asarray(split.images, np.float32) / 255
  logits = net.apply(variables, images)
  for output in OUTPUTS:
    flags = {
      name: record(folder, output, name)['robust'] for name in FULL['attacks']
    }
    for name, robust in flags.items():
      assert robust.shape == (tiny_suite.IMAGES,)
      assert results['accuracy'][output][name] == robust.mean()
    clean = logits.select(output).argmax(axis=1) == split.labels
    np.testing.assert_array_equal(flags['clean'], clean)
    worst = np.logical_and.reduce(list(flags.values()))
    assert results['worst_case'][output] == worst.mean()
    assert results['worst_case_images'][output] == tiny_suite.IMAGES
    for index, name in enumerate(tiny_suite.NAMES):
      chosen = split.labels == index
      row = results['per_class'][output][name]
      assert row['images'] == chosen.sum()
      if chosen.any():
        assert row['clean'] == clean[chosen].mean()
        assert row['worst_case'] == worst[chosen].mean()
      else:
        assert row['clean'] is row['worst_case'] is None


def test_confusion_agrees_with_the_accuracies(case, finished):
  _, _, split = case
  _, results = finished
  sizes = np.bincount(split.labels, minlength=10)
  for output in OUTPUTS:
    found = results['confusion'][output]
    accuracy = results['accuracy'][output]
    assert accuracy[found['attack']] == min(accuracy.values())
    for key, name in (('clean', 'clean'), ('attacked', found['attack'])):
      matrix = np.array(found[key])
      np.testing.assert_array_equal(matrix.sum(axis=1), sizes)
      assert np.trace(matrix) / tiny_suite.IMAGES == accuracy[name]


def test_sweep_and_loss_start_clean_and_get_worse(case, finished):
  net, variables, split = case
  _, results = finished
  images = np.asarray(split.images, np.float32) / 255
  logits = net.apply(variables, images)
  for output in OUTPUTS:
    sweep = results['sweep'][output]
    assert tuple(sweep) == ('0/255', '2/255', '8/255')
    assert sweep['0/255'] == results['accuracy'][output]['clean']
    assert sweep['8/255'] < sweep['2/255'] <= sweep['0/255']
    curve = results['loss_by_steps'][output]
    assert tuple(curve) == ('0', '1', '3')
    assert curve['0'][1] == sweep['0/255']
    rows = np.asarray(logits.select(output), np.float64)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    loss = -rows[np.arange(len(rows)), split.labels].mean()
    assert curve['0'][0] == pytest.approx(loss, rel=1e-5)
    assert curve['0'][0] < curve['1'][0] < curve['3'][0]


def test_results_are_json(finished):
  _, results = finished
  assert json.loads(json.dumps(results)) == results


def test_outputs_are_listed_with_their_labels(finished):
  _, results = finished
  assert [row['name'] for row in results['outputs']] == list(OUTPUTS)
  assert results['outputs'][2]['label'] == 'mean of the heads'


def test_exported_images(case, finished):
  _, _, split = case
  folder, _ = finished
  names = sorted(os.listdir(folder / 'images' / 'mean'))
  assert names == ['clean.npz', 'cw_3.npz', 'pgd_3.npz']
  found = np.load(folder / 'images' / 'mean' / 'pgd_3.npz')
  images = np.asarray(split.images, np.float32) / 255
  assert found['images_adv'].dtype == np.float32
  assert 0.01 < np.abs(found['images_adv'] - images).max() <= 0.02 + 1e-6
  np.testing.assert_array_equal(found['labels'], split.labels)


def test_autoattack_is_part_of_the_results(case, tmp_path):
  attacks = ('clean', 'pgd_3', 'autoattack', 'square')
  options = {
    'attacks': attacks,
    'autoattack_outputs': ('aggregated',),
    'autoattack_images': 30,
    'epsilon': 0.02,
  }
  results = tiny_suite.run(*case, tmp_path, **options)
  budget = '(n_iter=3,queries=20,targets=2,images=30)'
  name, single = f'autoattack{budget}', f'square{budget}'
  assert set(results['accuracy']['aggregated']) == {
    'clean',
    'pgd_3',
    name,
    single,
  }
  assert set(results['accuracy']['main']) == {'clean', 'pgd_3'}
  assert results['worst_case_images']['aggregated'] == 30
  assert results['worst_case_images']['main'] == tiny_suite.IMAGES
  found = results['autoattack']['aggregated'][name]
  after = found['accuracy_after']
  assert list(after) == ['clean', 'apgd-ce', 'apgd-t', 'fab-t', 'square']
  values = list(after.values())
  assert values == sorted(values, reverse=True)
  assert values[0] > values[-1] == results['accuracy']['aggregated'][name]
  assert found['not_standard']['n_iter'] == 3
  assert found['differences'] == []
  flags = record(tmp_path, 'aggregated', name)['robust']
  pgd = record(tmp_path, 'aggregated', 'pgd_3')['robust'][:30]
  clean = record(tmp_path, 'aggregated', 'clean')['robust'][:30]
  square = record(tmp_path, 'aggregated', single)['robust']
  worst = flags & pgd & clean & square
  assert results['worst_case']['aggregated'] == worst.mean()
  # Where only one output is attacked the others have nothing to say.
  assert results['autoattack']['main'] == {}
  _check_table(case[2], tmp_path / 'aggregated', name, found)
  _read_without_table(case, tmp_path, name, options, results)


def _check_table(split, folder, name, found):
  """The CSV has a row per image, and as many of each attack as counted."""
  with open(folder / f'{name}.csv', encoding='utf-8') as file:
    rows = list(csv.DictReader(file))
  assert [int(row['label']) for row in rows] == split.labels[:30].tolist()
  counts = collections.Counter(row['broken_by'] for row in rows)
  assert counts.pop('') == 30 - sum(found['broken_by'].values())
  assert +collections.Counter(found['broken_by']) == counts
  assert list(found['broken_by']) == list(found['accuracy_after'])
  broken_by = np.array([row['broken_by'] for row in rows])
  with np.load(folder / f'{name}.npz') as arrays:
    places, (before, after) = (
      arrays['picture_places'],
      np.moveaxis(arrays['pictures'].astype(float), 1, 0),
    )
  attacks = [attack for attack in found['broken_by'] if counts[attack]][1:]
  assert broken_by[places].tolist() == attacks
  for place, attack in zip(places, attacks, strict=True):
    assert place == np.flatnonzero(broken_by == attack)[0]
  images = split.images[places] / 255
  np.testing.assert_allclose(before, images, atol=1e-3)
  changes = np.abs(after - before).reshape(len(places), -1).max(axis=1)
  expected = [float(rows[place]['change']) for place in places]
  np.testing.assert_allclose(changes, expected, atol=2e-3)


def _read_without_table(case, folder, name, options, results):
  """A record of before there were tables is read, not computed again."""
  path = folder / 'aggregated' / f'{name}.npz'
  with np.load(path) as file:
    arrays = {
      key: values
      for key, values in file.items()
      if not key.startswith(('table/', 'picture'))
    }
  np.savez(path, **arrays)
  (folder / 'aggregated' / f'{name}.csv').unlink()
  stamp = path.stat().st_mtime_ns
  assert tiny_suite.run(*case, folder, **options) == results
  assert path.stat().st_mtime_ns == stamp
  assert not path.with_suffix('.csv').exists()


def test_logits_that_are_not_finite_are_wrong(case, caplog):
  net, variables, split = case
  broken = {**variables, 'params': dict(variables['params'])}
  broken['params']['second_head'] = jax.tree.map(
    lambda leaf: leaf * np.nan, variables['params']['second_head']
  )
  results = tiny_suite.run(
    net, broken, split, attacks=('clean', 'pgd_3'), epsilon=0.02
  )
  # Not silently: the weights may be what is broken.
  assert 'second/clean: logits not finite on' in caplog.text
  assert 'main/' not in caplog.text
  assert results['accuracy']['main']['clean'] > 0
  for output in ('second', 'mean', 'aggregated'):
    assert results['accuracy'][output] == {'clean': 0.0, 'pgd_3': 0.0}
    assert results['worst_case'][output] == 0
    # They predict no class.
    assert np.sum(results['confusion'][output]['clean']) == 0


def test_a_plain_network_has_one_output(case):
  net, variables, split = case
  plain = net.clone(outputs=('main',))
  results = tiny_suite.run(
    plain,
    variables_of(variables, plain.parts),
    split,
    attacks=('pgd_3',),
    audit=True,
  )
  assert list(results['accuracy']) == ['main']
  assert not {'heads', 'audit', 'autoattack'} & set(results)


def test_natural_twin_compiles_nothing_anew(case):
  """The same evaluator with other variables: nothing is traced again."""
  net, variables, split = case
  _, natural = tiny_suite.network(seed=1)
  traced = []

  def function(logits_fn, images, labels, rngs, settings):
    traced.append(images.shape)
    return balls.is_right(logits_fn(images), labels), images

  evaluator = tiny_suite.make_evaluator(net)
  plan = tiny_suite.make_plan(net, attacks=('clean',))
  attack = attacks.on_logits(function, 0.0, title='traced')
  plan = dataclasses.replace(plan, attacks=(attack,))
  accuracy = []
  for values in (variables, natural):
    results = evaluate(
      evaluator, values, split, plan, class_names=tiny_suite.NAMES, seed=0
    )
    accuracy.append(results['accuracy']['aggregated']['traced'])
    assert len(traced) == len(OUTPUTS)
  assert accuracy[0] > accuracy[1]


def test_examples_are_the_attacked_images(case, finished):
  _, _, split = case
  folder, results = finished
  places = results['examples']['places']
  assert places[0] == 0
  assert places[-1] == tiny_suite.IMAGES - 1
  assert len(places) == 10
  assert results['examples']['labels'] == split.labels[places].tolist()
  for output in OUTPUTS:
    clean = record(folder, output, 'clean')['examples']
    expected = np.float32(split.images[places]) / 255
    np.testing.assert_allclose(clean, expected, atol=1e-3)
    with np.load(folder / 'images' / output / 'pgd_3.npz') as file:
      exported = file['images_adv'][places]
    shown = record(folder, output, 'pgd_3')['examples']
    np.testing.assert_allclose(shown, exported, atol=1e-3)
    assert np.abs(exported - expected).max() == pytest.approx(0.02, abs=1e-4)


def test_heads_are_counted(case, finished):
  net, variables, split = case
  _, results = finished
  found = results['heads']
  strongest = results['confusion']['aggregated']['attack']
  assert list(found['agreement']) == ['clean', strongest]
  images = np.asarray(split.images, np.float32) / 255
  outputs = net.apply(variables, images)
  main, second = (
    np.asarray(outputs.select(o).argmax(axis=1)) == split.labels
    for o in ('main', 'second')
  )
  clean = found['agreement']['clean']
  assert clean['only_main']['images'] == (main & ~second).sum()
  for attack, rows in found['agreement'].items():
    assert sum(row['images'] for row in rows.values()) == tiny_suite.IMAGES
    right = sum(row['aggregated_right'] for row in rows.values())
    accuracy = results['accuracy']['aggregated'][attack]
    assert right == round(accuracy * tiny_suite.IMAGES)
  for head in ('main', 'second'):
    assert len(found['influence'][head]) == 10
