"""The door for foreign files, and our own JSON and arrays behind it."""

import json

import numpy as np
import pytest

from dhat_jax import load_run
from dhat_jax.attacks.autoattack.journal import Journal
from dhat_jax.evaluation.store import Store
from dhat_jax.runtime import documents, files, workdir
from dhat_jax.training import stored

LFS = b'version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n'


def test_long_reasons_become_one_short_line():
  error = ValueError('a long\n  story ' * 100)
  line = files.reason(error)
  assert line.startswith('ValueError: a long story a long story ')
  assert len(line) < 350
  assert files.reason(KeyError()) == 'KeyError'


@pytest.mark.parametrize('name', ['allow_pickle', 'weights_only'])
def test_no_advice_to_load_unsafely(name):
  line = files.reason(ValueError(f'Use {name} if you trust it'))
  assert name not in line
  assert 'it holds pickled objects, which can run code' in line


def test_what_says_it_already_passes():
  with (
    pytest.raises(files.DataError, match=r'^mine$'),
    files.reading('some', 'file'),
  ):
    raise files.DataError('mine')
  with pytest.raises(KeyboardInterrupt), files.reading('some', 'file'):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
  ('content', 'sentence'),
  [
    (b'', 'it is empty'),
    (LFS, 'it is a git-lfs pointer; get the file itself with: git lfs pull'),
    (b'\n<!DOCTYPE html><html>', 'it is a web page; download the file again'),
    (b'<HTML>', 'it is a web page; download the file again'),
    (b'anything else', 'KeyError: 3'),
  ],
)
def test_files_that_are_something_else_are_recognised(
  content, sentence, tmp_path
):
  path = tmp_path / 'x.bin'
  path.write_bytes(content)
  with (
    pytest.raises(files.DataError) as error,
    files.reading(str(path), 'image'),
  ):
    raise KeyError(3)
  assert str(error.value) == f'{path}: is not a readable image ({sentence})'


@pytest.mark.parametrize(
  'content',
  [b'', b'{', b'\xff\xfe', LFS, b'[' * 100_000, b'<html>', b'{"a": 1'],
)
@pytest.mark.parametrize('read', [files.read_json, documents.read])
def test_broken_json(content, read, tmp_path):
  path = tmp_path / 'results.json'
  path.write_bytes(content)
  with pytest.raises(ValueError, match=r'.') as error:
    read(str(path))
  line = str(error.value)
  assert line.startswith(f'{path}: is not a readable JSON file (')
  assert '\n' not in line


@pytest.mark.parametrize(
  'content',
  ['', '[', '5', '[]', '{"a": NaN}', '{}', '{"stages": 5}', '{"stages": [1]}'],
)
def test_config_of_a_run(content, tmp_path):
  (tmp_path / 'config.json').write_text(content)
  for read in (load_run, lambda path: workdir.check(path, {'seed': 1})):
    with pytest.raises(ValueError, match=r'.') as error:
      read(str(tmp_path))
    assert str(tmp_path) in str(error.value)
  with pytest.raises(ValueError, match=r'config\.json|holds no') as error:
    load_run(str(tmp_path))
  assert '\n' not in str(error.value)


def test_lines_that_nest_too_deep_are_damaged(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('[' * 100_000 + '\n{"a": 1}\n')
  damaged = []
  assert files.read_json_lines(str(path), damaged.append) == [{'a': 1}]
  assert damaged == [1]
  path.write_bytes(b'\xff\xfe\n')
  with pytest.raises(ValueError, match=r'metrics\.jsonl: is not a readable'):
    files.read_json_lines(str(path))


def broken_arrays():
  """{what: content} of files that are no npz."""
  return {
    'empty': b'',
    'text': b'no arrays',
    'lfs': LFS,
    'cut': b'PK\x03\x04' + bytes(20),
    'pickle': b'\x80\x04N.',
  }


@pytest.mark.parametrize('content', broken_arrays().values())
def test_parts_of_an_evaluation(content, tmp_path):
  """AutoAttack's are refused; records of an evaluation are made again."""
  (tmp_path / 'a.npz').write_bytes(content)
  with pytest.raises(ValueError, match=r'a\.npz is damaged; delete it: \w'):
    Journal(tmp_path, {}).load('a', np.arange(2))
  made = Store(str(tmp_path), 'x').get('a', 0, lambda: {'b': np.ones(1)})
  assert made['b'] == 1


@pytest.mark.parametrize('content', ['', '[]', '5', '['])
def test_problem_of_a_journal(content, tmp_path):
  (tmp_path / 'problem.json').write_text(content)
  with pytest.raises(ValueError, match=r'problem\.json: ') as error:
    Journal(tmp_path, {'epsilon': 1})
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('content', [None, '', '[]', '{"arrays": 5}'])
def test_description_of_a_checkpoint(content, tmp_path):
  folder = tmp_path / '3' / 'info'
  folder.mkdir(parents=True)
  (tmp_path / '3' / 'metrics').mkdir()
  (tmp_path / '3' / 'metrics' / 'metrics').write_text(content or '')
  if content is not None:
    (folder / 'metadata').write_text(content)
  with pytest.raises(ValueError, match=r'holds no whole checkpoint \(3: ') as e:
    stored.read_state(str(tmp_path), keep='best')
  assert '\n' not in str(e.value)


def test_writing_what_is_read(tmp_path):
  path = str(tmp_path / 'a.json')
  files.write_json(path, {'a': [1]})
  assert files.read_json(path) == json.loads('{"a": [1]}')
