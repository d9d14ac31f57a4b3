"""The whole evaluation: exact counts, resumption, what invalidates it."""

import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from dhat_jax.evaluation import robustbench
from dhat_jax.evaluation.results import summary
from tests.helpers import tiny_suite

OUTPUTS = ('main', 'second', 'mean', 'aggregated')
FULL = {
  'attacks': ('clean', 'pgd_3', 'cw_3'),
  'sweep_epsilons_255': (0.0, 2.0, 8.0),
  'sweep_steps': 3,
  'loss_steps': (0, 1, 3),
  'epsilon': 0.02,
  'step_size': 0.005,
  'audit': True,
}
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def case():
  net, variables = tiny_suite.network()
  split = tiny_suite.self_labelled(net, variables)
  split.labels[:5] = (split.labels[:5] + 1) % 10  # some are wrong when clean
  return net, variables, split


@pytest.fixture(scope='module')
def finished(case, tmp_path_factory):
  """(folder, results) of a whole evaluation."""
  folder = tmp_path_factory.mktemp('finished')
  return folder, tiny_suite.run(*case, folder, export_images=True, **FULL)


def part(folder, output, name):
  return np.load(os.path.join(folder, output, f'{name}.npz'))


def test_counts_are_exact(case, finished):
  net, variables, split = case
  folder, results = finished
  images = np.asarray(split.images, np.float32) / 255
  logits = net.apply(variables, images)
  for output in OUTPUTS:
    flags = {
      name: part(folder, output, name)['robust'] for name in FULL['attacks']
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


def test_results_are_json_and_have_a_summary(finished):
  _, results = finished
  assert json.loads(json.dumps(results)) == results
  text = summary(results)
  assert 'worst case' in text
  assert 'audit of the aggregated output' in text
  flagged = {**results['audit'], 'flags': [{'name': 'a', 'sentence': 'b.'}]}
  assert 'RED FLAG a: b.' in summary({**results, 'audit': flagged})


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


class Killed(Exception):
  pass


def spy(monkeypatch, stop_after=None):
  """Records the gradient attacks that really run; stops after some."""
  calls = []
  find = evaluator.Evaluator.find

  def counted(self, variables, split, network, attack, *args, **kwargs):
    if len(calls) == stop_after:
      raise Killed
    calls.append((network, attack.name))
    return find(self, variables, split, network, attack, *args, **kwargs)

  monkeypatch.setattr(evaluator.Evaluator, 'find', counted)
  return calls


def test_resumes_and_repeats_nothing(case, finished, tmp_path, monkeypatch):
  _, results = finished
  with monkeypatch.context() as patch:
    first = spy(patch, stop_after=9)
    with pytest.raises(Killed):
      tiny_suite.run(*case, tmp_path, **FULL)
  # A part that was cut off counts as missing.
  path = tmp_path / 'main' / 'pgd_3.npz'
  path.write_bytes(path.read_bytes()[:200])
  with monkeypatch.context() as patch:
    second = spy(patch)
    again = tiny_suite.run(*case, tmp_path, **FULL)
  assert again == results
  assert set(first) & set(second) == {('main', 'pgd_3')}
  assert len(first) == 9
  # Now everything is there.
  with monkeypatch.context() as patch:
    third = spy(patch)
    assert tiny_suite.run(*case, tmp_path, **FULL) == results
  assert third == []


def test_other_settings_and_weights_invalidate(case, tmp_path, monkeypatch):
  net, variables, split = case
  few = {'attacks': ('clean', 'pgd_3')}
  calls = spy(monkeypatch)
  tiny_suite.run(*case, tmp_path, **few)
  before = len(calls)
  assert before == 8
  tiny_suite.run(*case, tmp_path, **few, epsilon=0.05)
  # What does not depend on the radius is still good.
  assert [name for _, name in calls[before:]] == ['pgd_3'] * 4
  before = len(calls)
  other = {**variables, 'params': dict(variables['params'])}
  other['params']['main_head'] = tiny_suite.network(seed=1)[1]['params'][
    'main_head'
  ]
  tiny_suite.run(net, other, split, tmp_path, **few, epsilon=0.05)
  assert len(calls) - before == 8


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
  flags = part(tmp_path, 'aggregated', name)['robust']
  pgd = part(tmp_path, 'aggregated', 'pgd_3')['robust'][:30]
  clean = part(tmp_path, 'aggregated', 'clean')['robust'][:30]
  square = part(tmp_path, 'aggregated', single)['robust']
  worst = flags & pgd & clean & square
  assert results['worst_case']['aggregated'] == worst.mean()


@pytest.mark.slow
def test_killed_inside_autoattack_ends_with_the_same_flags(tmp_path):
  whole = tiny_suite.autoattack(tmp_path / 'whole')
  folder = tmp_path / 'killed'

  def start():
    return subprocess.Popen(
      [sys.executable, '-m', 'tests.helpers.tiny_suite', str(folder)],
      cwd=ROOT,
      env={**os.environ, 'JAX_NUM_CPU_DEVICES': '2'},
      stdout=subprocess.PIPE,
      text=True,
    )

  def pieces():
    return {
      str(path): path.stat().st_mtime_ns
      for path in folder.rglob('*/autoattack*/apgd*.npz')
    }

  process = start()
  deadline = time.monotonic() + 120
  while len(pieces()) < 2 and time.monotonic() < deadline:
    time.sleep(0.01)
  process.kill()
  process.communicate()
  before = pieces()
  assert before
  assert not list(folder.glob('aggregated/autoattack*.npz'))
  output, _ = start().communicate(timeout=240)
  after = pieces()
  assert {path: after[path] for path in before} == before
  assert json.loads(output.strip().split('\n')[-1]) == whole


def test_robustbench_entry():
  numbers = {
    'images': 10_000,
    'not_standard': {},
    'accuracy_after': {'clean': 0.8492, 'apgd-ce': 0.6, 'square': 0.53084},
  }
  results = {
    'dataset': 'cifar10',
    'config': {
      'name': 'run',
      'model': {'backbone': 'wrn34_10'},
      'evaluation': {'epsilon': 0.031, 'epsilon_255': None},
    },
    'autoattack': {'main': {'autoattack': numbers}},
  }
  entry = robustbench.entry(results)
  assert entry['clean_acc'] == '84.92'
  assert entry['autoattack_acc'] == '53.08'
  assert entry['eps'] == '0.031'
  assert entry['architecture'] == 'WideResNet-34-10'
  assert entry['unreliable'] is False
  reduced = {**numbers, 'not_standard': {'n_iter': 5}}
  results['autoattack']['aggregated'] = {'autoattack(n_iter=5)': reduced}
  results['config']['evaluation']['epsilon_255'] = 8.0
  entry = robustbench.entry(results)
  assert entry['eps'] == '8/255'
  assert entry['unreliable'] is True
  assert "{'n_iter': 5}" in entry['footnote']
  assert entry['name'] == 'Dual Head Adversarial Training'
  assert robustbench.entry({'config': {}}) is None


def test_examples_are_the_attacked_images(case, finished):
  _, _, split = case
  folder, results = finished
  places = results['examples']['places']
  assert places[0] == 0
  assert places[-1] == tiny_suite.IMAGES - 1
  assert len(places) == 10
  assert results['examples']['labels'] == split.labels[places].tolist()
  for output in OUTPUTS:
    clean = part(folder, output, 'clean')['examples']
    expected = np.float32(split.images[places]) / 255
    np.testing.assert_allclose(clean, expected, atol=1e-3)
    with np.load(folder / 'images' / output / 'pgd_3.npz') as file:
      exported = file['images_adv'][places]
    shown = part(folder, output, 'pgd_3')['examples']
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
