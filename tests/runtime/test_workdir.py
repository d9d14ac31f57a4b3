import json
import os
import re

import pytest

from dhat_jax.runtime import provenance, workdir


def make_config(**changes):
  """A config as JSON gives it back; keys are dotted, dots as '__'."""
  config = {
    'seed': 0,
    'stages': ['main_head', 'second_head'],
    'model': {'backbone': 'wrn16_4', 'mean': [], 'scale': None},
    'evaluation': {'epsilon': 0.031, 'attacks': ['clean']},
  }
  for key, value in changes.items():
    *path, name = key.split('__')
    values = config
    for part in path:
      values = values[part]
    values[name] = value
  return config


def read(path):
  with open(path) as file:
    return json.load(file)


def test_fresh_folder_gets_config_and_environment(tmp_path):
  folder = str(tmp_path / 'runs' / 'new')
  workdir.prepare(folder, make_config())
  stored = read(os.path.join(folder, 'config.json'))
  assert stored['model'] == {'backbone': 'wrn16_4', 'mean': [], 'scale': None}
  assert stored['stages'] == ['main_head', 'second_head']
  environment = read(os.path.join(folder, 'environment.json'))
  assert len(environment['devices']) == 2
  assert environment['versions'] == provenance.versions()
  assert re.fullmatch('[0-9a-f]{40}|unknown', environment['git_commit'])


def test_same_config_resumes(tmp_path):
  workdir.prepare(str(tmp_path), make_config())
  (tmp_path / 'metrics.jsonl').write_text('')
  before = (tmp_path / 'config.json').stat().st_mtime_ns
  workdir.prepare(str(tmp_path), make_config())
  assert (tmp_path / 'config.json').stat().st_mtime_ns == before


def test_other_config_is_refused_with_the_differing_keys(tmp_path):
  workdir.prepare(str(tmp_path), make_config())
  other = make_config(model__backbone='resnet18', evaluation__epsilon=0.1)
  del other['seed']
  other['extra'] = 1
  with pytest.raises(ValueError, match='belongs to another config') as error:
    workdir.prepare(str(tmp_path), other)
  message = str(error.value)
  assert str(tmp_path) in message
  assert message.splitlines()[1:] == [
    '  evaluation.epsilon: workdir has 0.031, this run has 0.1',
    "  extra: workdir has '(no such key)', this run has 1",
    "  model.backbone: workdir has 'wrn16_4', this run has 'resnet18'",
    "  seed: workdir has 0, this run has '(no such key)'",
  ]
  # The folder still belongs to the first.
  workdir.prepare(str(tmp_path), make_config())


def test_some_keys_may_differ(tmp_path):
  workdir.prepare(str(tmp_path), make_config())
  other = make_config(evaluation__epsilon=0.1)
  workdir.prepare(str(tmp_path), other, may_differ=('evaluation.',))
  other['seed'] = 1
  with pytest.raises(ValueError, match='seed') as error:
    workdir.prepare(str(tmp_path), other, may_differ=('evaluation.',))
  assert 'epsilon' not in str(error.value)


def test_foreign_files_are_refused(tmp_path):
  (tmp_path / 'thesis.tex').write_text('')
  with pytest.raises(ValueError, match=r"\['thesis.tex'\] but no config.json"):
    workdir.prepare(str(tmp_path), make_config())
  assert os.listdir(tmp_path) == ['thesis.tex']


def test_a_file_is_no_workdir(tmp_path):
  path = tmp_path / 'notes.txt'
  path.write_text('mine')
  with pytest.raises(ValueError, match=r'notes\.txt, which is a file'):
    workdir.prepare(str(path), make_config())
  assert path.read_text() == 'mine'


@pytest.mark.parametrize('left', ['.config.json.6f.tmp', 'environment.json'])
def test_killed_before_the_config_was_written(tmp_path, left):
  (tmp_path / left).write_text('{"cut o')
  workdir.prepare(str(tmp_path), make_config())
  assert read(tmp_path / 'config.json')['seed'] == 0


@pytest.mark.parametrize('text', ['', '{"seed": 0, "mod', '[1, 2]', 'null'])
def test_damaged_config_names_the_file(tmp_path, text):
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(ValueError, match=r'config\.json') as error:
    workdir.prepare(str(tmp_path), make_config())
  assert 'JSON' in str(error.value)


def test_flat():
  assert workdir.flat(make_config()) == {
    'seed': 0,
    'stages': ['main_head', 'second_head'],
    'model.backbone': 'wrn16_4',
    'model.mean': [],
    'model.scale': None,
    'evaluation.epsilon': 0.031,
    'evaluation.attacks': ['clean'],
  }


def test_environment_keeps_its_history(tmp_path, monkeypatch):
  folder = str(tmp_path)
  workdir.prepare(folder, make_config())
  path = tmp_path / 'environment.json'
  first = read(path)
  assert first == provenance.environment()
  # The same machine again: nothing to add.
  workdir.prepare(folder, make_config())
  assert read(path) == first
  here = provenance.environment()
  other = {**here, 'devices': ['TPU_0'], 'device_kind': 'TPU v5e'}
  for now in (other, other, here):
    monkeypatch.setattr(provenance, 'environment', lambda now=now: dict(now))
    workdir.prepare(folder, make_config())
  history = read(path)
  resumed = history.pop('resumed_on')
  assert history == first
  times = [entry.pop('time') for entry in resumed]
  assert resumed == [other, here]
  assert times == sorted(times)
  assert times[0].endswith('+00:00')


@pytest.mark.parametrize('text', [None, '', '[1]', '{"versions": 1}'])
def test_lost_environment_stops_nothing(tmp_path, text):
  workdir.prepare(str(tmp_path), make_config())
  path = tmp_path / 'environment.json'
  path.unlink()
  if text is not None:
    path.write_text(text)
  workdir.prepare(str(tmp_path), make_config())
  (resumed,) = read(path)['resumed_on']
  del resumed['time']
  assert resumed == provenance.environment()


def test_debug_nans_may_differ(tmp_path):
  """A workdir from before the key, too, goes on."""
  workdir.prepare(str(tmp_path), make_config())
  config = make_config()
  config['debug_nans'] = True
  workdir.prepare(str(tmp_path), config)


DEFAULTS = {'*.scale': None, 'evaluation.worst_case': {'restarts': 1}}


def test_keys_of_newer_code_have_defaults(tmp_path):
  old = make_config()
  del old['model']['scale']
  new = make_config(evaluation__worst_case={'restarts': 1})
  workdir.prepare(str(tmp_path), old)
  with pytest.raises(ValueError, match='belongs to another config'):
    workdir.check(str(tmp_path), new)
  workdir.prepare(str(tmp_path), new, defaults=DEFAULTS)
  assert read(tmp_path / 'config.json') == old


def test_a_value_other_than_the_default_is_another_config(tmp_path):
  workdir.prepare(str(tmp_path), make_config())
  new = make_config(evaluation__worst_case={'restarts': 2})
  with pytest.raises(ValueError, match='another config') as error:
    workdir.check(str(tmp_path), new, defaults=DEFAULTS)
  assert str(error.value).splitlines()[1:] == [
    '  evaluation.worst_case.restarts: workdir has 1, this run has 2'
  ]


def test_older_code_on_a_newer_folder(tmp_path):
  workdir.prepare(str(tmp_path), make_config(model__scale=2.0))
  old = make_config()
  del old['model']['scale']
  with pytest.raises(ValueError, match=r'model\.scale: workdir has 2\.0'):
    workdir.check(str(tmp_path), old, defaults=DEFAULTS)
