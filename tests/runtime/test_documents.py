import json
import pathlib

import pytest

from dhat_jax.runtime import documents, provenance

RESULTS = sorted(
  (pathlib.Path(__file__).parents[2] / 'docs' / 'results').glob('*.json')
)
KINDS = {
  'digits': 'run',
  'accelerator_doctor': 'experiment',
  'accelerator_speed': 'experiment',
  'accelerator_train': 'experiment',
  'cifar10_budget': 'experiment',
  'digits_evaluation': 'run',
  'experiment_ablations': 'experiment',
  'experiment_cifar10_cpu': 'experiment',
  'experiment_digits': 'experiment',
  'experiment_modern': 'experiment',
  'few_classes': 'experiment',
  'survival': 'survival',
}


def test_one_form(tmp_path):
  path = str(tmp_path / 'a.json')
  content = documents.document(
    'benchmark', {'what': 'peer', 'rows': []}, command='python -m x'
  )
  assert content == {
    'schema_version': documents.SCHEMA_VERSION,
    'kind': 'benchmark',
    'command': 'python -m x',
    'machine': provenance.machine(),
    'what': 'peer',
    'rows': [],
  }
  documents.write(path, content)
  assert documents.read(path) == content


def test_of_another_machine():
  content = documents.document('survival', {}, machine={'cores': 1})
  assert (content['machine'], content['command']) == ({'cores': 1}, None)


@pytest.mark.parametrize('path', RESULTS, ids=lambda path: path.stem)
def test_stored_results_are_readable(path):
  content = documents.read(str(path))
  assert content['kind'] == KINDS.get(path.stem, 'benchmark')
  assert content['schema_version'] <= documents.SCHEMA_VERSION
  stored = json.loads(path.read_text())
  assert {key: content[key] for key in stored} == stored


def test_results_of_a_run_are_readable(tmp_path):
  path = tmp_path / 'results.json'
  path.write_text('{"dataset": "digits", "accuracy": {}}')
  assert documents.read(str(path)) == {
    'schema_version': 1,
    'kind': 'run',
    'dataset': 'digits',
    'accuracy': {},
  }


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('{"schema_version": 3, "kind": "run"}', r'got schema_version 3, expected'),
    ('{"schema_version": "2"}', r"got schema_version '2', expected at most 2"),
    ('{"schema_version": 2}', r"got kind None, choices are \('run'"),
    ('{"seed": 0}', r"got the keys \['seed'\], expected those of a document"),
    ('[1]', 'got list, expected a JSON object'),
    ('{', 'is not a readable JSON file'),
  ],
)
def test_what_is_no_document_is_named(tmp_path, text, message):
  path = tmp_path / 'x.json'
  path.write_text(text)
  with pytest.raises(ValueError, match=message) as error:
    documents.read(str(path))
  assert str(error.value).startswith(str(path))


def test_only_documents_are_written(tmp_path):
  path = str(tmp_path / 'x.json')
  with pytest.raises(ValueError, match='got schema_version None, expected 2'):
    documents.write(path, {'kind': 'run'})
  with pytest.raises(ValueError, match="got kind 'table', choices"):
    documents.document('table', {})
  with pytest.raises(ValueError, match=r"got \['machine'\] twice"):
    documents.document('run', {'machine': 'mine'})
  assert not list(tmp_path.iterdir())
