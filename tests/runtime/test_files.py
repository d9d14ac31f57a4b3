import errno
import os

import numpy as np
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


def test_write_json_replaces_whole_files(tmp_path):
  path = str(tmp_path / 'results.json')
  files.write_json(path, {'a': 1})
  files.write_json(path, {'b': [1.5, None]})
  assert files.read_json(path) == {'b': [1.5, None]}
  # What JSON cannot hold leaves the file as it was.
  with pytest.raises(TypeError):
    files.write_json(path, {'c': object()})
  assert files.read_json(path) == {'b': [1.5, None]}
  assert os.listdir(tmp_path) == ['results.json']


def test_a_failed_write_leaves_the_file(tmp_path):
  path = str(tmp_path / 'new' / 'a.txt')
  with files.replacing(path, 'w') as file:
    file.write('first')
  with pytest.raises(TypeError), files.replacing(path, 'w') as file:
    file.write(2)
  with (
    pytest.raises(files.WriteError, match=f'^{path}: not written: no space'),
    files.replacing(path, 'w'),
  ):
    plain()
  with open(path) as file:
    assert file.read() == 'first'
  assert os.listdir(tmp_path / 'new') == ['a.txt']


def test_two_writers_at_once(tmp_path):
  path = str(tmp_path / 'a.bin')
  with files.replacing(path, 'wb') as one, files.replacing(path, 'wb') as other:
    one.write(b'one' * 1000)
    other.write(b'other')
  with open(path, 'rb') as file:
    assert file.read() == b'one' * 1000
  assert os.stat(path).st_mode & 0o777 == 0o666 & ~umask()


def umask():
  mask = os.umask(0)
  os.umask(mask)
  return mask


def test_write_npz(tmp_path):
  path = str(tmp_path / 'a' / 'b.npz')
  files.write_npz(path, {'x': np.arange(3)})
  with np.load(path) as file:
    np.testing.assert_array_equal(file['x'], np.arange(3))


def test_read_json_lines_leaves_out_a_line_cut_off(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
  assert files.read_json_lines(str(path)) == [{'step': 1}, {'step': 2}]


def test_read_json_lines_skips_damaged_lines_where_they_are_reported(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1}\n{"st\n\n{"step": 2}\n{"ste')
  assert files.read_json_lines(str(path)) == [{'step': 1}]
  damaged = []
  records = files.read_json_lines(str(path), damaged.append)
  assert records == [{'step': 1}, {'step': 2}]
  assert damaged == [2, 3]


def test_user_path(monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  paths = '~/runs', '/data/~', '', None
  expected = ['/home/me/runs', '/data/~', '', None]
  assert [files.user_path(path) for path in paths] == expected
