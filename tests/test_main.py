"""The command line: mistakes end in one line and exit code 2."""

import os
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def command(*arguments, cwd=ROOT):
  return subprocess.run(
    [sys.executable, '-m', 'dhat_jax.main', *arguments],
    cwd=cwd,
    capture_output=True,
    text=True,
    check=False,
    timeout=120,
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--config=configs/nothing.py'], "got 'configs/nothing.py', which is no"),
    (['--config=configs/cifar10.py:trades_vgg'], "variant: got 'trades_vgg'"),
    (['--config=configs/digits.py', '--config.sed=1'], 'sed'),
    (['--config=configs/digits.py', '--config.seed=x'], 'seed'),
    (['--config=configs/digits.py', '--mode=test'], 'mode'),
    (['--config=configs/digits.py', 'extra'], "got ['extra']"),
    (
      ['--config=configs/digits.py', '--config.model.attach=block9'],
      "attach: got 'block9', choices are ('block1', 'block2')",
    ),
  ],
)
def test_mistakes(arguments, message, tmp_path):
  done = command(*arguments, f'--workdir={tmp_path}/run')
  assert done.returncode == 2, done.stderr
  assert message in done.stderr
  assert 'Traceback' not in done.stderr
  # Nothing was started.
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_runs_from_another_folder(tmp_path):
  """An absolute config path works anywhere; configs find each other."""
  done = command(
    f'--config={ROOT}/configs/cifar10.py',
    '--config.dataset.cache_dir=' + str(tmp_path / 'cache'),
    '--config.dataset.data_dir=' + str(tmp_path / 'missing'),
    '--config.dataset.loader=image_folder',
    cwd=tmp_path,
  )
  assert done.returncode == 2
  assert 'train/<class>' in done.stderr
  assert 'Traceback' not in done.stderr


COUNTING = """
import collections, jax
from tests.helpers import tiny_run
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: counts.update([name]))
tiny_run.main()
prefix = '/jax/compilation_cache/'
print(counts[prefix + 'compile_requests_use_cache'])
print(counts[prefix + 'cache_hits'])
"""


@pytest.mark.slow
def test_second_start_compiles_nothing(tmp_path):
  """By default: the cache is in the user's home."""
  environment = {**os.environ, 'HOME': str(tmp_path)}
  del environment['JAX_COMPILATION_CACHE_DIR']
  del environment['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS']
  compiled = []
  for name in ('first', 'second'):
    done = subprocess.run(
      [
        *(sys.executable, '-c', COUNTING, str(tmp_path / name)),
        'evaluation.attacks=("clean", "pgd_2")',
      ],
      capture_output=True,
      text=True,
      check=True,
      env=environment,
      cwd=ROOT,
    )
    requests, hits = map(int, done.stdout.splitlines()[-2:])
    assert requests > 50
    compiled.append(requests - hits)
  assert compiled[0] > 20
  assert compiled[1] == 0
  assert (tmp_path / '.cache' / 'dhat_jax' / 'xla').is_dir()
