"""Missing, damaged and older files: each costs its section, in a sentence."""

import json

import numpy as np
import pytest

from dhat_jax.report import read
from dhat_jax.report.__main__ import main
from dhat_jax.report.sections import SECTIONS
from tests.report import workdirs
from tests.report.pages import check, page_of, plain


def test_run_that_has_just_begun(tmp_path):
  (tmp_path / 'config.json').write_text('{"stages": ["main_head"]}')
  text = page_of(tmp_path)
  assert not check(text).images
  assert 'has not been evaluated yet' in text
  # All sections but the config's, and the evaluation itself.
  assert text.count('class="missing"') == len(SECTIONS)
  assert text.count('<h3') == 2


@pytest.mark.parametrize(
  'content',
  [
    {},
    {'notes.txt': 'x', 'environment.json': '{}'},
    {'config.json': '{"architectures": ["Other"]}'},
    {'config.json': '{}', 'metrics.jsonl': ''},
  ],
)
def test_folder_that_is_no_run_is_refused(content, tmp_path, capsys):
  for name, text in content.items():
    (tmp_path / name).write_text(text)
  with pytest.raises(SystemExit) as stop:
    main(['report', f'--workdir={tmp_path}'])
  assert stop.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(
    f"error: --workdir: got '{tmp_path}', which holds no r"
  )
  with pytest.raises(ValueError, match='which holds no run'):
    page_of(tmp_path)
  assert {path.name for path in tmp_path.iterdir()} == content.keys()


def test_in_the_middle_of_training(tmp_path):
  directory = workdirs.make(tmp_path / 'one')
  (tmp_path / 'one/results.json').unlink()
  with open(tmp_path / 'one/metrics.jsonl', 'a') as file:
    file.write('{"stage": "main_he')  # cut off by a kill
  text = page_of(directory)
  assert len(check(text).images) == 1
  assert 'not been evaluated yet: its last record is step 3 of aggr' in text
  assert 'cannot be read' not in text


@pytest.mark.parametrize(
  ('name', 'content', 'sentence'),
  [
    ('results.json', '{"accuracy": {', 'results.json cannot be read'),
    ('results.json', '[1]', 'got list, expected a JSON object'),
    ('results.json', '{"a": 1}', 'results.json cannot be read'),
    ('results.json', '{"results": {}}', 'it holds no accuracies'),
    (
      'results.json',
      '{"schema_version": 99, "kind": "run", "accuracy": {}}',
      'got schema_version 99',
    ),
    ('config.json', 'nothing', 'config.json cannot be read'),
    ('config.json', '[1]', 'config.json cannot be read: it holds no object'),
    ('environment.json', '', 'environment.json cannot be read'),
    (
      'metrics.jsonl',
      'x\n{"stage": "a", "step": 1}\n',
      'line 1 cannot be read',
    ),
    ('metrics.jsonl', '{"step": 1}\n[2]\n', 'expected an object with stage'),
    ('metrics.jsonl', b'\xff\xfe\n', 'metrics.jsonl cannot be read'),
  ],
)
def test_damaged_files_are_named(name, content, sentence, tmp_path):
  directory = workdirs.make(tmp_path)
  data = content if isinstance(content, bytes) else content.encode()
  (tmp_path / name).write_bytes(data)
  assert sentence in ' '.join(read.load(directory).problems)


def test_damaged_files_are_named_on_the_page(tmp_path):
  directory = workdirs.make(tmp_path)
  for name in ('results.json', 'config.json', 'environment.json'):
    (tmp_path / name).write_text('x')
  (tmp_path / 'metrics.jsonl').write_bytes(b'\xff\xfe\n')
  text = page_of(directory)
  check(text)
  assert text.count(' cannot be read: ') == 4
  assert text.count('class="missing"') == len(SECTIONS) + 1


def test_records_around_a_damaged_line_are_shown(tmp_path):
  workdirs.make(tmp_path)
  path = tmp_path / 'metrics.jsonl'
  lines = path.read_text().splitlines(keepends=True)
  path.write_text(''.join([*lines[:2], lines[2][:9] + '\n', *lines[3:]]))
  run = read.load(str(tmp_path))
  assert run.records == [*workdirs.records()[:2], *workdirs.records()[3:]]
  assert run.problems == ['metrics.jsonl: line 3 cannot be read']


@pytest.mark.parametrize(
  ('key', 'value', 'images'),
  [
    ('audit', {'attack': 'pgd_2'}, 7),
    ('heads', [], 6),
    ('worst_case', 'x', 7),
    ('per_class', {'aggregated': 1}, 3),
    ('sweep', {'main': {'x': 1.0}}, 6),
  ],
)
def test_damaged_results_cost_their_section_alone(key, value, images, tmp_path):
  directory = workdirs.make(tmp_path / 'one')
  path = tmp_path / 'one' / 'results.json'
  path.write_text(json.dumps({**workdirs.results_of(), key: value}))
  text = page_of(directory)
  assert len(check(text).images) == images
  assert 'This cannot be shown' in text
  assert '>Config and versions</h3>' in text


@pytest.mark.parametrize(
  'outputs',
  [
    1,
    [1],
    ['main'],
    [{'label': 'x'}],
    [{'name': []}],
    [{'name': 'main', 'label': 3}],
  ],
)
def test_damaged_outputs_are_those_of_the_accuracies(outputs, tmp_path):
  directory = workdirs.make(tmp_path)
  content = {**workdirs.results_of(), 'outputs': outputs}
  (tmp_path / 'results.json').write_text(json.dumps(content))
  run = read.load(directory)
  assert [output.label for output in run.outputs] == list(workdirs.ACCURACY)
  (problem,) = run.problems
  assert problem.startswith('results.json: its outputs cannot be read (')


def test_single_head_and_older_results(tmp_path):
  """Results of one output, without anything that came later."""
  directory = workdirs.make(tmp_path)
  results = workdirs.results_of()
  keys = ('accuracy', 'worst_case', 'per_class', 'confusion')
  older = {key: {'main': results[key]['main']} for key in keys}
  older |= {'epsilon': 0.02, 'n_test': 4, 'seconds': {}}
  (tmp_path / 'results.json').write_text(json.dumps(older))
  text = page_of(directory)
  assert len(check(text).images) == 3
  assert 'Only the main output was evaluated: it is right on 75.0 %' in plain(
    text
  )
  assert text.count('the results hold no aggregator') == 3


def test_damaged_arrays(tmp_path):
  directory = workdirs.make(tmp_path)
  path = tmp_path / 'evaluation/aggregated/pgd_2.npz'
  path.write_bytes(path.read_bytes()[:40])
  assert '<b>Images</b>: <code>' in page_of(directory)


def test_arrays_without_images(tmp_path):
  directory = workdirs.make(tmp_path)
  np.savez(tmp_path / 'evaluation/aggregated/clean.npz', robust=np.ones(4))
  assert '<b>Images</b>: <code>' in page_of(directory)
