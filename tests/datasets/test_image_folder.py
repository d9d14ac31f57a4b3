import os

import numpy as np
import pytest
from PIL import Image

from dhat_jax.datasets import image_folder
from dhat_jax.datasets.base import validate

CLASSES = ('cat', 'dog')


def write(path, seed, size=(6, 4), mode='RGB'):
  """Writes an image of width x height `size`; returns it as RGB."""
  path.parent.mkdir(parents=True, exist_ok=True)
  shape = (size[1], size[0], 3) if mode == 'RGB' else (size[1], size[0])
  array = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
  image = Image.fromarray(array)
  image.save(path)
  return np.asarray(image.convert('RGB'))


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.setenv('DHAT_JAX_CACHE', str(tmp_path / 'cache'))
  root = tmp_path / 'images'
  for split, count in (('train', 3), ('test', 2)):
    for label, name in enumerate(CLASSES):
      for index in range(count):
        write(root / split / name / f'{index}.png', seed=10 * label + index)
  return root


def load(folder):
  return image_folder.load(data_dir=str(folder))


def test_images_and_labels_in_order(folder, tmp_path):
  grey = write(folder / 'train' / 'dog' / 'grey.png', seed=9, mode='L')
  (folder / 'train' / '.hidden').write_text('')
  (folder / 'train' / 'dog' / '.DS_Store').write_text('')
  (folder / 'train' / 'notes.txt').write_text('')
  dataset = load(folder)
  validate(dataset)
  assert dataset.class_names == CLASSES
  assert dataset.train.images.shape == (7, 4, 6, 3)
  assert dataset.test.images.shape == (4, 4, 6, 3)
  assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
  assert dataset.test.labels.tolist() == [0, 0, 1, 1]
  expected = [write(tmp_path / 'x.png', seed) for seed in (0, 1, 10, 11)]
  np.testing.assert_array_equal(dataset.test.images, expected)
  np.testing.assert_array_equal(dataset.train.images[-1], grey)
  assert str(folder) in dataset.source


def test_cached_until_a_file_changes(folder, tmp_path, monkeypatch):
  first = load(folder)
  with monkeypatch.context() as patch:

    def fail(*args):
      raise AssertionError('the cache was not used')

    patch.setattr(image_folder, '_decode_all', fail)
    second = load(folder)
  np.testing.assert_array_equal(first.train.images, second.train.images)
  assert first.class_names == second.class_names
  new = write(folder / 'test' / 'cat' / '0.png', seed=77)
  os.utime(folder / 'test' / 'cat' / '0.png', (5, 5))
  np.testing.assert_array_equal(load(folder).test.images[0], new)


def remove_class(folder, split):
  for path in (folder / split / 'dog').iterdir():
    path.unlink()


@pytest.mark.parametrize(
  ('spoil', 'message'),
  [
    (lambda f: f.rename(f.parent / 'x'), r'images/train is not a folder; .*<c'),
    (lambda f: (f / 'test').rename(f / 'val'), 'images/test is not a folder'),
    (lambda f: remove_class(f, 'test'), 'test/dog: holds no images'),
    (
      lambda f: (f / 'test/dog').rename(f / 'test/cow'),
      r"in train alone: \['dog'\], in test alone: \['cow'\]",
    ),
    (
      lambda f: (f / 'train/cat/a.txt').write_text(''),
      'cat/a.txt: is no image',
    ),
    (lambda f: (f / 'train/cat/a.png').mkdir(), 'cat/a.png: is no image file'),
    (lambda f: write(f / 'train/a.png', 0), 'train/a.png: is in no class'),
    (
      lambda f: (f / 'train/dog/1.png').write_bytes(b'no image'),
      'train/dog/1.png: is not a readable image',
    ),
    (
      lambda f: (f / 'test/dog/1.png').write_bytes(
        (f / 'test/dog/1.png').read_bytes()[:-40]
      ),
      'test/dog/1.png: is not a readable image',
    ),
    (
      lambda f: write(f / 'test/cat/1.png', 0, size=(7, 4)),
      r'test/cat/1.png: got .* 4 x 7, expected 4 x 6 as .*train/cat/0.png',
    ),
    (
      lambda f: Image.fromarray(np.zeros((4, 6), np.uint16)).save(
        f / 'test/cat/1.png'
      ),
      r"test/cat/1.png: got pixels of mode 'I.*', expected 8 bits",
    ),
  ],
)
def test_names_file_and_mistake(folder, spoil, message):
  spoil(folder)
  with pytest.raises(ValueError, match=message):
    load(folder)
  assert not (folder.parent / 'cache').exists()


def test_no_classes(tmp_path):
  for split in ('train', 'test'):
    (tmp_path / split).mkdir()
  with pytest.raises(ValueError, match='train: holds no class folders'):
    load(tmp_path)


def test_several_chunks_keep_their_order(folder, monkeypatch):
  whole = load(folder).train.images
  monkeypatch.setattr(image_folder, '_CHUNK', 2)
  paths = [
    f'train/{name}/{index}.png' for name in CLASSES for index in range(3)
  ]
  got = image_folder._decode_all(str(folder), paths)
  np.testing.assert_array_equal(got, whole)


def test_no_folder_given():
  with pytest.raises(
    ValueError, match=r'dataset\.data_dir: got nothing, .*train/<class>/'
  ):
    image_folder.load(data_dir='')
