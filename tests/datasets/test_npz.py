import numpy as np
import pytest

from dhat_jax.datasets import npz


def make_arrays(num_train=6, num_test=4, shape=(3, 5, 3)):
  generator = np.random.default_rng(0)
  return {
    'x_train': generator.integers(0, 256, (num_train, *shape), np.uint8),
    'y_train': np.arange(num_train, dtype=np.uint8)[:, None] % 3,
    'x_test': generator.integers(0, 256, (num_test, *shape), np.uint8),
    'y_test': np.arange(num_test) % 2,
  }


def write(folder, arrays, save=np.savez):
  path = str(folder / 'mine.npz')
  save(path, **arrays)
  return path


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_images_and_labels_as_stored(tmp_path, save):
  arrays = make_arrays()
  path = write(tmp_path, arrays, save)
  dataset = npz.load(path)
  assert npz.image_shape(path) == (3, 5, 3)
  for split in ('train', 'test'):
    got = getattr(dataset, split)
    np.testing.assert_array_equal(got.images, arrays[f'x_{split}'])
    assert got.labels.dtype == np.int32
    assert got.labels.tolist() == arrays[f'y_{split}'].ravel().tolist()
  assert dataset.class_names == ('0', '1', '2')
  assert dataset.source == f'npz {path}'


def test_grey_images_get_a_channel(tmp_path):
  arrays = make_arrays(shape=(3, 5))
  path = write(tmp_path, arrays)
  assert npz.image_shape(path) == (3, 5, 1)
  images = npz.load(path).test.images
  np.testing.assert_array_equal(images[..., 0], arrays['x_test'])


def test_class_names(tmp_path):
  path = write(tmp_path, make_arrays())
  assert npz.load(path, num_classes=5).class_names == tuple('01234')
  names = np.array(['cat', 'dog', 'cow', 'ant'])
  path = write(tmp_path, make_arrays() | {'class_names': names})
  # The file knows better than the config, which is compared with it elsewhere.
  assert npz.load(path, num_classes=5).class_names == tuple(names)


def test_shape_is_read_from_the_headers(tmp_path):
  path = tmp_path / 'mine.npz'
  arrays = make_arrays(num_train=500)
  write(tmp_path, arrays)
  content = path.read_bytes()
  place = content.index(arrays['x_train'].tobytes()) + 20000
  path.write_bytes(content[:place] + bytes(40) + content[place + 40 :])
  assert npz.image_shape(str(path)) == (3, 5, 3)
  with pytest.raises(
    ValueError, match=r'mine\.npz: is not a readable npz file'
  ):
    npz.load(str(path))


def test_home_folder(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  path = write(tmp_path, make_arrays())
  assert npz.check_path('~/mine.npz') == path


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'x_test': None}, r"holds \['x_train', .*\], lacks \['x_test'\]"),
    ({'x_train': np.zeros((6, 3, 5, 3))}, r'x_train: got float64 \(6, 3, 5, 3'),
    (
      {'x_test': np.zeros((4, 15), np.uint8)},
      r'x_test: got uint8 \(4, 15\), e',
    ),
    (
      {'x_test': np.zeros((4, 3, 8, 8), np.uint8)},
      r'x_test: got uint8 \(4, 3, 8, 8\), expected .* at most 4 channels',
    ),
    ({'x_test': np.zeros((0, 3, 5, 3), np.uint8)}, r'x_test: got uint8 \(0, 3'),
    (
      {'x_test': np.zeros((4, 3, 6, 3), np.uint8)},
      r'train images are \(3, 5, 3',
    ),
    (
      {'y_train': np.zeros(6)},
      r'y_train: got float64 \(6,\), expected integer',
    ),
    ({'y_train': np.eye(6, dtype=int)}, r'y_train: got int64 \(6, 6\)'),
    ({'y_train': np.int64(3)}, r'y_train: got int64 \(\), expected integers'),
    ({'y_train': np.zeros(6, object)}, r'y_train: got object \(6,\)'),
    ({'y_train': np.zeros(5, int)}, 'x_train holds 6 images, y_train 5 labels'),
    ({'y_test': np.full(4, -1)}, r'y_test: labels from -1 to -1, .* \[0, 3\)'),
    (
      {'y_test': np.full(4, 2**32), 'class_names': np.array(['a', 'b', 'c'])},
      r'y_test: labels from 4294967296 to 4294967296, expected in \[0, 3\)',
    ),
    (
      {'class_names': np.array(['a', 'b'])},
      r'y_train: labels from 0 to 2, .*2',
    ),
    (
      {'class_names': np.arange(3)},
      r'class_names: got int64 \(3,\), .*strings',
    ),
  ],
)
def test_names_array_and_mistake(tmp_path, change, message):
  arrays = make_arrays() | change
  path = write(tmp_path, {key: a for key, a in arrays.items() if a is not None})
  with pytest.raises(ValueError, match=message) as error:
    npz.load(path)
  assert str(error.value).startswith(path)
  assert '\n' not in str(error.value)


def test_no_such_file():
  with pytest.raises(FileNotFoundError, match='data_dir: /none is not a file'):
    npz.check_path('/none')


def write_folder(folder, arrays, names=('images', 'labels')):
  """Writes the arrays of Keras' names as train.npz and test.npz."""
  for split in ('train', 'test'):
    parts = {f'x_{split}': names[0], f'y_{split}': names[1]}
    content = {parts.get(key, key): a for key, a in arrays.items()}
    wanted = (*names, 'class_names')
    np.savez(
      folder / f'{split}.npz',
      **{key: a for key, a in content.items() if key in wanted},
    )
  return str(folder)


@pytest.mark.parametrize('names', [('images', 'labels'), ('image', 'label')])
def test_folder_with_a_file_for_each_split(tmp_path, names):
  arrays = make_arrays()
  path = write_folder(tmp_path, arrays, names)
  assert npz.check_path(path) == path
  assert npz.image_shape(path) == (3, 5, 3)
  dataset = npz.load(path)
  expected = npz.load(write(tmp_path, arrays))
  assert dataset.digests() == expected.digests()
  assert dataset.class_names == ('0', '1', '2')
  assert dataset.source == f'npz {path}'


def test_folder_with_class_names(tmp_path):
  names = np.array(['cat', 'dog', 'cow'])
  path = write_folder(tmp_path, make_arrays() | {'class_names': names})
  assert npz.load(path).class_names == ('cat', 'dog', 'cow')


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      {'x_test': np.zeros((4, 3, 6, 3), np.uint8)},
      r': train images are \(3, 5, 3\), test images \(3, 6, 3\)',
    ),
    ({'x_test': np.zeros(4)}, r'/test\.npz, images: got float64 \(4,\)'),
    (
      {'y_train': np.zeros(5, int)},
      r'train\.npz: images holds 6 images, labels',
    ),
    ({'y_test': np.full(4, 3)}, r'/test\.npz, labels: labels from 3 to 3'),
  ],
)
def test_mistakes_in_a_folder(tmp_path, change, message):
  path = write_folder(tmp_path, make_arrays() | change)
  with pytest.raises(ValueError, match=message) as error:
    npz.load(path, num_classes=3)
  assert str(error.value).startswith(path)
  assert '\n' not in str(error.value)


def test_folder_that_lacks_something(tmp_path):
  path = write_folder(tmp_path, make_arrays(), ('pictures', 'labels'))
  with pytest.raises(
    ValueError, match=r"holds \['pictures', .* one array 'image' or 'images'"
  ):
    npz.image_shape(path)
  (tmp_path / 'test.npz').unlink()
  with pytest.raises(ValueError, match=r'a folder without test\.npz, expected'):
    npz.check_path(path)
  # One file of one split: the error says what would do.
  with pytest.raises(ValueError, match=r'lacks .*folder with train\.npz and t'):
    npz.image_shape(str(tmp_path / 'train.npz'))
