import errno
import os

import pytest

from dhat_jax.runtime import files


def full():
  return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), '/data/x')


def wrapped():
  try:
    raise full()
  except OSError as error:
    raise RuntimeError('the writer failed') from error


def told_as_text():
  raise ValueError('RESOURCE_EXHAUSTED: write: No space left on device [28]')


def plain():
  raise full()


@pytest.mark.parametrize('fail', [plain, wrapped, told_as_text])
def test_refusals_become_one_line(fail):
  with (
    pytest.raises(files.WriteError) as caught,
    files.writing('/runs/a', 'checkpoint 4'),
  ):
    fail()
  assert str(caught.value) == (
    '/runs/a: not written: no space left on device; checkpoint 4 is intact; '
    'once the disk takes files again, resume with the same command'
  )


def test_the_innermost_path_is_named():
  with (
    pytest.raises(files.WriteError, match=r'^/runs/a/b: not written'),
    files.writing('/runs/a'),
    files.writing('/runs/a/b'),
  ):
    raise OSError(errno.EROFS, 'Read-only file system')


@pytest.mark.parametrize(
  'error', [ValueError('shape'), FileNotFoundError(errno.ENOENT, 'gone')]
)
def test_other_errors_pass(error):
  with pytest.raises(type(error)) as caught, files.writing('/runs/a'):
    raise error
  assert caught.value is error


def test_errors_that_caused_each_other():
  first, second = ValueError('a'), ValueError('b')
  first.__context__, second.__context__ = second, first
  assert files.refusal(first) is None
