"""Optional packages of other libraries, which are not imported."""

import subprocess
import sys

import pytest

from dhat_jax.runtime import imports


def test_a_hidden_package_is_missing_inside_alone():
  sys.modules.pop('wave', None)
  with imports.hidden('wave'), pytest.raises(ImportError):
    import wave
  import wave

  assert wave.open


def test_what_is_imported_stays():
  import json

  with imports.hidden('json'):
    import json as same
  assert same is json is sys.modules['json']


def test_an_error_inside_hides_nothing_for_good():
  sys.modules.pop('wave', None)
  with pytest.raises(KeyError), imports.hidden('wave'):
    raise KeyError
  assert 'wave' not in sys.modules


@pytest.mark.slow
def test_a_run_imports_no_pytorch():
  code = "import sys, dhat_jax.run; print('torch' in sys.modules)"
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert done.stdout.split() == ['False']
