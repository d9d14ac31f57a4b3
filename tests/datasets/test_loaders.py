import pathlib
import subprocess
import sys

import numpy as np
import pytest

from dhat_jax import registry
from dhat_jax.datasets import loaders
from dhat_jax.datasets.base import Dataset, Source, Split
from tests.datasets import archives

# What a config gives for every data set.
KEYS = {
  'name': 'some',
  'data_dir': '',
  'manual_dir': '',
  'cache_dir': '',
  'num_classes': 10,
}


def make(loader, **keys):
  return loaders.DATASETS.make(loader, where='config.dataset', **(KEYS | keys))


def test_digits():
  source = make('digits')
  assert source.shape() == (8, 8, 1)
  assert len(source.dataset.train.labels) == 1437


@pytest.mark.parametrize('name', ['cifar10', 'cifar100', 'svhn_cropped'])
def test_official_shape_needs_no_data(name):
  assert make('tfds', name=name).shape() == (32, 32, 3)


def test_tfds_loads_what_the_keys_say(tmp_path, manual_dir, cifar10):
  source = make(
    'tfds',
    name='cifar10',
    data_dir=str(tmp_path / 'mine'),
    manual_dir=manual_dir,
    cache_dir=str(tmp_path / 'kept'),
  )
  got = source.dataset.train
  expected = archives.by_image(*cifar10['train'])
  assert archives.by_image(got.images, got.labels) == expected
  assert len(list((tmp_path / 'kept').iterdir())) == 1


@pytest.fixture
def my_set(tmp_path, manual_dir, cifar10):
  """A prepared folder of a name that nobody else knows, as keys."""
  root = tmp_path / 'mine'
  keys = {'name': 'cifar10', 'data_dir': str(root), 'manual_dir': manual_dir}
  _ = make('tfds', **keys).dataset
  (root / 'cifar10').rename(root / 'my_set')
  folder = root / 'my_set' / '3.0.2'
  info = folder / 'dataset_info.json'
  info.write_text(info.read_text().replace('"cifar10"', '"my_set"'))
  for path in folder.glob('cifar10-*'):
    path.rename(folder / path.name.replace('cifar10', 'my_set'))
  return {'name': 'my_set', 'data_dir': str(root)}


def test_other_prepared_set_is_described_by_its_folder(my_set):
  source = make('tfds', **my_set)
  assert source.shape() == (32, 32, 3)
  assert 'dataset' not in vars(source)
  assert len(source.dataset.test.labels) == 3
  assert source.dataset.source.startswith('tfds my_set:3.0.2 from ')


def test_shape_that_a_prepared_folder_leaves_open(my_set):
  (path,) = pathlib.Path(my_set['data_dir']).rglob('features.json')
  path.write_text(path.read_text().replace('"32"', '"-1"'))
  source = make('tfds', **my_set)
  assert source.image_shape() is None
  assert source.shape() == (32, 32, 3)


@pytest.mark.parametrize(
  ('loader', 'message'),
  [
    ('image_folder', r'data_dir: got nothing, expected a folder; .*<class>'),
    ('npz', 'data_dir: got nothing, expected the path of an npz file'),
    ('digitz', r"config\.dataset: got 'digitz', choices are .*mean 'digits'"),
  ],
)
def test_mistakes_that_need_no_data(loader, message):
  with pytest.raises(ValueError, match=message):
    make(loader)


def test_a_user_registers_a_data_set():
  """As the module's docstring says it."""
  mine = registry.Registry('data set', shared=loaders.DATASETS.shared)

  @mine.register('mine')
  def make_mine(*, data_dir, size=32):
    def load():
      split = Split(np.zeros((3, size, size, 3), np.uint8), np.zeros(3, 'i4'))
      return Dataset(split, split, ('cat', 'dog'), f'mine from {data_dir}')

    return Source(load, image_shape=(size, size, 3))

  source = mine.make('mine', {'size': 5}, **KEYS | {'data_dir': 'here'})
  assert source.shape() == (5, 5, 3)
  assert source.dataset.source == 'mine from here'


def test_names_load_no_library():
  """TFDS takes seconds to import: only who uses it waits."""
  code = (
    'import sys; from dhat_jax.datasets import loaders, cache; '
    'from dhat_jax.datasets.tfds import load; '
    'loaders.DATASETS.make("tfds", name="cifar10").shape(); '
    "sys.exit(any(m in sys.modules for m in ('tensorflow_datasets', "
    "'sklearn', 'tensorflow')))"
  )
  subprocess.run([sys.executable, '-c', code], check=True)
