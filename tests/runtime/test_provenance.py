import platform
import re
import subprocess

import pytest

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
  assert environment['processor'] == provenance.processor()
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


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('model name\t: A: 1\nflags\t\t: fpu avx avx2 avx512f', 'A: 1, AVX-512'),
    ('flags: avx2 avx\nmodel name: A\n\nmodel name: B', 'A, AVX2'),
    ('model name: A\nflags: avx2x\n\nflags: avx2', 'A'),
    ('model name: A', 'A'),
    ('\nmodel name: A\nbogus: \udcff\n\nflags: avx2', 'A, AVX2'),
    ('processor: 0\nFeatures: fp asimd', None),
    ('', None),
    (None, None),
  ],
)
def test_processor_has_its_vector_instructions(tmp_path, text, expected):
  path = tmp_path / 'cpuinfo'
  if text is not None:
    path.write_bytes(text.encode(errors='surrogateescape'))
  name = provenance.processor(str(path))
  assert name == (expected or platform.processor() or platform.machine())
