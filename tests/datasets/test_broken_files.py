"""Whatever is wrong with a user's files: one line that names them."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from dhat_jax.datasets import loaders
from dhat_jax.datasets.tfds import load, prepared
from tests.datasets import archives

VERSION = os.path.join('cifar10', '3.0.2')


def fails(loader, **keys):
  """Returns the one line with which a data set fails to load."""
  with pytest.raises(ValueError, match=r'.') as error:
    _ = loaders.DATASETS.make(loader, **keys).dataset
  line = str(error.value)
  assert '\n' not in line
  assert len(line) < 800
  return line


@pytest.fixture(scope='module')
def prepared_root(tmp_path_factory):
  """A folder in which TFDS has prepared a tiny CIFAR-10."""
  root = tmp_path_factory.mktemp('prepared')
  manual_dir = tmp_path_factory.mktemp('archives')
  with pytest.MonkeyPatch.context() as patch:
    archives.write_cifar('cifar10', str(manual_dir))
    archives.register(patch, 'cifar10', str(manual_dir))
    patch.setattr(prepared, 'has_tensorflow', lambda: False)
    load.load(
      'cifar10',
      data_dir=str(root),
      manual_dir=str(manual_dir),
      cache_dir=str(root / 'cache'),
    )
  return root


def replace(name, old, new):
  def spoil(folder):
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))

  return spoil


def overwrite(pattern, content):
  def spoil(folder):
    paths = list(folder.glob(pattern))
    assert paths
    for path in paths:
      path.write_bytes(content)

  return spoil


def remove(pattern):
  def spoil(folder):
    for path in folder.glob(pattern):
      path.unlink()

  return spoil


def damage(folder):
  (path,) = folder.glob('*-train*')
  content = path.read_bytes()
  middle = len(content) // 2
  path.write_bytes(content[:middle] + bytes(64) + content[middle + 64 :])


def info_is_a_folder(folder):
  (folder / 'dataset_info.json').unlink()
  (folder / 'dataset_info.json').mkdir()


@pytest.mark.parametrize(
  ('spoil', 'message'),
  [
    (replace('dataset_info.json', '"name"', '"nome"'), 'no field named "nome"'),
    (overwrite('dataset_info.json', b'{'), 'ParseError'),
    (overwrite('dataset_info.json', b''), 'ParseError'),
    (overwrite('dataset_info.json', b'[]'), 'is not a readable data set'),
    (overwrite('dataset_info.json', b'\xff\xfe\0'), 'UnicodeDecodeError'),
    (info_is_a_folder, 'is not a readable data set prepared by TFDS'),
    (
      replace('dataset_info.json', '"test"', '"val"'),
      'expected train and test',
    ),
    (remove('features.json'), 'Cannot restore'),
    (overwrite('features.json', b'{'), 'JSONDecodeError'),
    (overwrite('features.json', b'{}'), 'is not a readable data set'),
    (replace('features.json', 'ClassLabel', 'Classy'), 'Classy'),
    (replace('features.json', '"label"', '"lable"'), r"lacks ['label']"),
    (
      replace(
        'dataset_info.json', '"featureKey": "label"', '"featureKey": "id"'
      ),
      "'id' is Text, expected ClassLabel",
    ),
    (remove('*-train*'), 'train split, example 0: is not a readable image'),
    (overwrite('*-train*', b''), 'train split, example 0: is not a readable'),
    (overwrite('*-test*', bytes(70000)), 'test split, example 0: is not a rea'),
    (damage, 'train split, example 0: is not a readable image with its label'),
    (lambda f: (f / 'x').symlink_to('/nowhere'), 'x: is not a readable file'),
  ],
)
def test_prepared_folder(prepared_root, tmp_path, spoil, message):
  root = tmp_path / 'mine'
  shutil.copytree(prepared_root / VERSION, root / VERSION)
  spoil(root / VERSION)
  line = fails('tfds', name='cifar10', data_dir=str(root))
  assert line.startswith(str(root / VERSION))
  assert message in line


def test_place_that_is_no_folder(tmp_path, manual_dir, cifar10):
  file = tmp_path / 'file'
  file.write_text('')
  keys = {'name': 'cifar10', 'manual_dir': manual_dir}
  assert fails('tfds', data_dir=str(file), **keys) == (
    f'config.dataset.data_dir: got {file}, which is a file, expected a folder'
  )
  line = fails('tfds', data_dir=str(file / 'below'), **keys)
  assert line.startswith(f'{file}/below: cifar10 cannot be prepared there (')
  (tmp_path / 'root').mkdir()
  (tmp_path / 'root' / 'cifar10').write_text('')
  line = fails('tfds', data_dir=str(tmp_path / 'root'), **keys)
  assert line.startswith(f'{tmp_path}/root: cifar10 cannot be prepared there (')


@pytest.mark.parametrize('name', ['', 'a b', '../cifar10', 'cifar10:9'])
def test_name_that_is_none(name):
  assert f'TFDS has no {name!r}; choices are' in fails('tfds', name=name)


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
@pytest.mark.parametrize('loader', ['tfds', 'image_folder'])
def test_root_that_may_not_be_read(tmp_path, loader):
  (tmp_path / 'data').mkdir(mode=0)
  for path in ('data', 'data/x'):
    line = fails(loader, name='cifar10', data_dir=str(tmp_path / path))
    assert f'{tmp_path}/{path}: is not a readable ' in line
    assert '(PermissionError' in line


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
@pytest.mark.parametrize('loader', ['tfds', 'image_folder'])
def test_folder_that_may_not_be_read(tmp_path, loader):
  for name in ('cifar10', 'train', 'test'):
    (tmp_path / name).mkdir(mode=0)
  line = fails(loader, name='cifar10', data_dir=str(tmp_path))
  assert f'{tmp_path}/' in line
  assert 'is not a readable folder (PermissionError' in line


@pytest.fixture
def image_root(tmp_path):
  root = tmp_path / 'images'
  for split in ('train', 'test'):
    for name in ('cat', 'dog'):
      (root / split / name).mkdir(parents=True)
      Image.new('RGB', (5, 4)).save(root / split / name / '0.png')
  return root


def link(folder):
  (folder / 'train/dog/1.png').symlink_to('/nowhere')


@pytest.mark.parametrize(
  ('spoil', 'message'),
  [
    (link, 'train/dog/1.png: is not a readable file (FileNotFoundError'),
    (
      overwrite('train/cat/0.png', b''),
      'train/cat/0.png: is not a readable im',
    ),
    (overwrite('*/dog/0.png', b'no'), 'train/dog/0.png: is not a readable ima'),
    (lambda f: (shutil.rmtree(f), f.touch()), 'is a file, expected a folder'),
    (
      lambda f: (shutil.rmtree(f / 'test'), (f / 'test').touch()),
      'test is not a folder',
    ),
  ],
)
def test_image_folder(image_root, spoil, message):
  spoil(image_root)
  line = fails('image_folder', data_dir=str(image_root))
  assert str(image_root) in line
  assert message in line


def test_header_of_the_first_image(image_root):
  source = loaders.DATASETS.make('image_folder', data_dir=str(image_root))
  assert source.shape() == (4, 5, 3)
  (image_root / 'train/cat/0.png').write_bytes(b'no image')
  source = loaders.DATASETS.make('image_folder', data_dir=str(image_root))
  with pytest.raises(ValueError, match=r'cat/0\.png: is not a readable image'):
    source.shape()


def truncate(path):
  path.write_bytes(path.read_bytes()[:-100])


def flip(path):
  content = path.read_bytes()
  place = len(content) // 4
  path.write_bytes(content[:place] + b'\1' * 64 + content[place + 64 :])


def no_archive(path):
  with path.open('wb') as file:
    np.save(file, np.zeros(3))


@pytest.mark.parametrize(
  'spoil',
  [
    truncate,
    flip,
    lambda path: path.write_bytes(b''),
    lambda path: path.write_bytes(b'no npz file'),
    no_archive,
  ],
)
def test_npz(tmp_path, spoil):
  path = tmp_path / 'mine.npz'
  images, labels = np.zeros((50, 8, 8), np.uint8), np.zeros(50, int)
  np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
  spoil(path)
  line = fails('npz', data_dir=str(path), num_classes=1)
  assert line.startswith(f'{path}: is not a readable npz file (')
