import re
import subprocess

from dhat_jax.runtime import provenance


def test_versions():
  versions = provenance.versions()
  assert set(versions) == {'python', *provenance.PACKAGES}
  for package in ('python', 'jax', 'flax', 'numpy'):
    assert re.match(r'\d+\.\d+', versions[package])


def test_environment():
  environment = provenance.environment()
  assert len(environment['devices']) == 2
  assert environment['device_kind'] == 'cpu'
  assert environment['versions'] == provenance.versions()


def test_git_state_reports_whether_the_code_was_changed(monkeypatch):
  output = {'rev-parse': 'a' * 40 + '\n', 'status': ' M dhat_jax/losses.py\n'}

  def run(command, **_):
    assert command[:2] == ['git', '-C']
    text = output[command[3]]
    return subprocess.CompletedProcess(command, int(text is None), text)

  monkeypatch.setattr(subprocess, 'run', run)
  state = provenance.git_state()
  assert state == {'git_commit': 'a' * 40, 'git_changed': True}
  output['status'] = ''
  assert provenance.git_state()['git_changed'] is False
  output.update({'rev-parse': None, 'status': None})  # no repository
  state = provenance.git_state()
  assert state == {'git_commit': 'unknown', 'git_changed': None}


def test_machine_has_what_times_depend_on():
  machine = provenance.machine()
  assert machine['device'] == 'cpu'
  assert machine['devices'] == 2
  assert machine['cores'] >= 1
  assert machine['processor']
  assert machine['versions']['jax']
