"""Outputs, attacks and names that this project does not know."""

import json

import numpy as np
import pytest

from dhat_jax.report import contents, examples, plots, read, theme
from tests.report import workdirs
from tests.report.pages import check, page_of

TAG = '<script>alert(1)</script>'


def test_outputs_and_attacks_of_a_users_own(tmp_path):
  directory = workdirs.make(tmp_path / 'one', results=workdirs.with_third())
  run = read.load(directory)
  assert not run.problems
  names = ['main', 'second', 'third', 'mean', 'aggregated']
  assert [output.name for output in run.outputs] == names
  assert [o.name for o in run.outputs if not o.trained] == ['mean']
  text = page_of(directory)
  assert len(check(text).images) == 7
  assert 'This cannot be shown' not in text
  assert '<th scope="row">third &amp; last</th>' in text
  assert '>only the main head right</td>' in text
  assert '<th scope="row">my_attack</th>' in text
  assert 'DH-AT differs from the main head by +0.0 points' in text
  assert 'The output of DH-AT is “aggregated one”.' in text
  table = (tmp_path / 'one/report/one_accuracy.csv').read_text()
  assert 'third & last,100.0 (+25.0),25.0 (-25.0),12.5 (+0.0),25.0' in table


def test_results_name_the_final_output(tmp_path):
  results = workdirs.with_third()
  assert read.load(workdirs.make(tmp_path / 'old', results=results)).outputs
  results['final_output'] = 'second'
  run = read.load(workdirs.make(tmp_path / 'new', results=results))
  assert run.final_output.name == 'second'
  results['final_output'] = 'nobody'
  run = read.load(workdirs.make(tmp_path / 'wrong', results=results))
  assert run.final_output.name == 'aggregated'


def test_every_output_has_a_line_of_its_own(tmp_path):
  run = read.load(workdirs.make(tmp_path, results=workdirs.with_third()))
  (axes,) = plots.sweep(run, theme.WIDE_INCHES).axes
  lines = axes.lines[: len(run.outputs)]
  assert [line.get_label() for line in lines] == [
    output.label for output in run.outputs
  ]
  styles = {(line.get_color(), line.get_marker()) for line in lines}
  assert len(styles) == len(run.outputs)


def test_trained_outputs_stand_below_the_images(tmp_path):
  run = read.load(workdirs.make(tmp_path, results=workdirs.with_third()))
  figure = examples.examples(run, theme.WIDE_INCHES)
  assert figure.axes[0].get_xlabel().splitlines() == [
    f'{short}: cat' for short in ('m', 's', 't', 'a')
  ]


@pytest.mark.parametrize('channels', [1, 2, 4])
def test_images_of_other_channels_are_shown(tmp_path, channels):
  run = read.load(workdirs.make(tmp_path, channels=channels))
  assert examples.examples(run, theme.WIDE_INCHES).axes[0].images[
    0
  ].get_array().shape == (6, 6, 3)


def test_no_class_is_predicted_of_what_is_not_finite(tmp_path):
  run = read.load(workdirs.make(tmp_path))
  path = tmp_path / 'evaluation' / 'aggregated' / 'clean.npz'
  with np.load(path) as file:
    arrays = dict(file)
  arrays['main_predictions'] = np.full(4, -1)
  np.savez(path, **arrays)
  figure = examples.examples(run, theme.WIDE_INCHES)
  cross = '\N{BALLOT X}'
  assert figure.axes[0].get_xlabel().splitlines()[0] == f'm: none {cross}'


def test_names_are_as_short_as_they_differ():
  assert examples.shortened(['main', 'second']) == ['m', 's']
  assert examples.shortened(['a', 'ab', 'abc', 'b']) == ['a', 'ab', 'abc', 'b']
  assert examples.shortened(['third', 'theta']) == ['thi', 'the']


def test_names_are_no_html(tmp_path):
  results = workdirs.results_of()
  results['outputs'] = [
    {'name': name, 'label': name + TAG} for name in workdirs.ACCURACY
  ]
  results['accuracy'] = {
    name: {f'{attack}{TAG}': share for attack, share in row.items()}
    for name, row in results['accuracy'].items()
  }
  for name in ('main', 'aggregated'):
    results['confusion'][name]['attack'] = TAG
  results['audit'] |= {
    'attack': TAG,
    'flags': [{'name': TAG, 'sentence': TAG}],
    'attacks': {TAG: {'accuracy': 0.5, 'missed': 2}},
  }
  agreement = results['heads']['agreement']
  agreement['clean'] = {TAG: agreement['clean']['both']}
  results['seconds'] = {TAG: 1.0}
  folders = [tmp_path / f'{letter}<script>' for letter in 'ab']
  for folder in folders:
    workdirs.make(folder, results=results)
    (folder / 'config.json').write_text(json.dumps({TAG: TAG}))
    (folder / 'environment.json').write_text(TAG)
    (folder / 'metrics.jsonl').write_text(f'["{TAG}"]\n')
  text = page_of(*folders)
  check(text)
  assert text.count('&lt;script&gt;') > 50
  assert 'This cannot be shown' not in text
  for path in (folders[0] / 'report').glob('*.md'):
    assert '<script>' not in path.read_text()


def test_a_dollar_in_a_name_is_no_formula(tmp_path):
  results = workdirs.results_of()
  rows = results['per_class']['aggregated']
  results['per_class']['aggregated'] = {
    '$\\frac$': rows['cat'],
    'dog': rows['cat'],
  }
  run = read.load(workdirs.make(tmp_path, results=results))
  for draw in (plots.per_class, plots.confusion, examples.examples):
    assert contents.picture(draw, 'a figure')(run)
