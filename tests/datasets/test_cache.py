import dataclasses
import os

import numpy as np
import pytest

from dhat_jax.datasets import cache
from tests.datasets.test_base import make


def test_round_trip(tmp_path):
  path = str(tmp_path / 'new' / 'folder' / 'x.npz')
  dataset = make()
  assert cache.read(path) is None
  cache.write(path, dataset)
  got = cache.read(path)
  for split in ('train', 'test'):
    for name in ('images', 'labels'):
      array = getattr(getattr(got, split), name)
      expected = getattr(getattr(dataset, split), name)
      assert array.dtype == expected.dtype
      np.testing.assert_array_equal(array, expected)
  assert got.class_names == dataset.class_names
  assert got.source == f'some folder, cached in {path}'
  assert os.listdir(os.path.dirname(path)) == ['x.npz']


def count_calls(dataset):
  calls = []

  def load():
    calls.append(1)
    return dataset

  return calls, load


def test_made_once(tmp_path):
  path = str(tmp_path / 'x.npz')
  calls, load = count_calls(make())
  first = cache.read_or_make(path, load)
  second = cache.read_or_make(path, load)
  assert len(calls) == 1
  assert first.source == second.source


@pytest.mark.parametrize('damage', ['truncate', 'flip', 'empty', 'other'])
def test_damaged_file_is_made_anew(tmp_path, damage, caplog):
  path = tmp_path / 'x.npz'
  calls, load = count_calls(make(num_train=500))
  cache.read_or_make(str(path), load)
  whole = path.read_bytes()
  middle = len(whole) // 3
  if damage == 'other':
    np.savez(path, something=np.zeros(3))
  else:
    flipped = bytes([whole[middle] ^ 1])
    path.write_bytes(
      {
        'truncate': whole[:middle],
        'flip': whole[:middle] + flipped + whole[middle + 1 :],
        'empty': b'',
      }[damage]
    )
  with caplog.at_level('WARNING'):
    got = cache.read_or_make(str(path), load)
  assert f'{path} is damaged' in caplog.text
  assert len(calls) == 2
  assert len(got.train.labels) == 500
  assert cache.read(str(path)) is not None


def test_wrong_data_is_not_cached(tmp_path):
  path = str(tmp_path / 'x.npz')
  wrong = dataclasses.replace(make(), class_names=('only one',))
  with pytest.raises(ValueError, match='some folder, train split: labels'):
    cache.read_or_make(path, lambda: wrong)
  assert not os.path.exists(path)


def test_place_that_cannot_be_written_is_a_warning(tmp_path, caplog):
  (tmp_path / 'file').write_text('')
  path = str(tmp_path / 'file' / 'x.npz')
  with caplog.at_level('WARNING'):
    got = cache.read_or_make(path, make)
  assert 'cannot be written' in caplog.text
  assert len(got.train.labels) == 4


def test_folder(monkeypatch):
  monkeypatch.setenv('DHAT_JAX_CACHE', '/one')
  assert cache.folder('/two') == '/two'
  assert cache.folder(None) == '/one'
  monkeypatch.delenv('DHAT_JAX_CACHE')
  assert cache.folder(None) == os.path.expanduser('~/.cache/dhat_jax')


def test_fingerprint_changes_with_name_size_and_time(tmp_path):
  def fingerprint():
    return cache.fingerprint(str(tmp_path), sorted(os.listdir(tmp_path)))

  path = tmp_path / 'a'
  path.write_text('x')
  os.utime(path, (1, 1))
  seen = [fingerprint()]
  assert fingerprint() == seen[0]
  os.utime(path, (1, 2))
  seen.append(fingerprint())
  path.write_text('xy')
  os.utime(path, (1, 2))
  seen.append(fingerprint())
  path.rename(tmp_path / 'b')
  seen.append(fingerprint())
  assert len(set(seen)) == 4
