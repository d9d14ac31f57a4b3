"""What cannot start is one line, in every command."""

import os
import subprocess
import sys

import pytest

from dhat_jax.runtime import backend

ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)
MAIN = ['dhat_jax.main', '--config=configs/digits.py', '--workdir=/nonexistent']
CONVERT = ['dhat_jax.convert', '--workdir=/nonexistent', '--to_torch=x.npz']


def run(arguments, **environment):
  return subprocess.run(
    [sys.executable, '-m', *arguments],
    cwd=ROOT,
    env={**os.environ, **environment},
    capture_output=True,
    text=True,
    check=False,
    timeout=60,
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  ('arguments', 'variable', 'value', 'messages'),
  [
    (MAIN, 'JAX_PLATFORMS', 'cuda', ["got 'cuda'", 'there is cpu', '[gpu]']),
    (MAIN, 'JAX_NUM_CPU_DEVICES', 'many', ['jax_num_cpu_devices', 'many']),
    (CONVERT, 'JAX_NUM_CPU_DEVICES', 'x', ['jax_num_cpu_devices', '"x"']),
    (
      CONVERT,
      'JAX_PLATFORMS',
      'tpu',
      ["got 'tpu'", 'there is cpu', '[tpu]'],
    ),
    (
      ['dhat_jax.benchmark', '--config=configs/digits.py'],
      'XLA_FLAGS',
      '--xla_no_such_flag=1',
      ["got '--xla_no_such_flag=1'", 'Unknown flag'],
    ),
  ],
)
def test_one_line(arguments, variable, value, messages):
  done = run(arguments, **{variable: value})
  assert done.returncode == 2, done.stderr
  assert 'Traceback' not in done.stderr
  assert len(done.stderr.splitlines()) == 1, done.stderr
  assert done.stderr.startswith('error: ')
  for message in messages:
    assert message in done.stderr


# In a process of its own: XLA reads its flags once.
ALL_FLAGS = """
import os
from dhat_jax.runtime import backend

for flags in [
  '--xla_no_such_flag=1',
  '--xla_cpu_enable_fast_math=perhaps',
  '/no/such/file',
]:
  os.environ['XLA_FLAGS'] = flags
  try:
    backend.check_xla_flags()
  except ValueError as error:
    print(error)
"""


def test_flags_that_would_end_the_process():
  done = subprocess.run(
    [sys.executable, '-c', ALL_FLAGS],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
    timeout=60,
  )
  unknown, value, file = done.stdout.splitlines()
  start = 'XLA_FLAGS: got '
  assert all(line.startswith(start) for line in (unknown, value, file))
  assert 'Unknown flag in XLA_FLAGS: --xla_no_such_flag' in unknown
  assert 'Flag parsing failed' in value
  assert 'Could not open file "/no/such/file"' in file


def test_devices_are_chosen_before_jax_runs():
  backend.start()
  with pytest.raises(ValueError, match='got 5, but JAX runs already, on 2'):
    backend.use_cpu(5)
