"""Arrays in npz files, as maps of their bytes."""

import shlex
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from dhat_jax.datasets import npz_arrays


def write(folder, save=np.savez, **arrays):
  path = str(folder / 'mine.npz')
  save(path, **arrays)
  return path


@pytest.mark.parametrize(
  'array',
  [
    np.arange(120, dtype=np.uint8).reshape(5, 2, 4, 3),
    np.arange(7) - 3,
    np.arange(4, dtype='>i2'),
  ],
)
def test_a_map_is_the_array(tmp_path, array):
  path = write(tmp_path, first=np.ones((3, 5)), a_longer_name=array, last=[1.5])
  mapped = npz_arrays.memory_map(path, 'a_longer_name')
  assert isinstance(mapped, np.memmap)
  assert mapped.dtype == array.dtype
  assert not mapped.flags.writeable
  np.testing.assert_array_equal(mapped, array)


def test_what_another_program_zipped(tmp_path):
  """Local headers differ: without the extra field that NumPy forces."""
  np.save(tmp_path / 'image.npy', np.arange(9))
  path = str(tmp_path / 'mine.npz')
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('readme', 'an extra file')
    archive.write(tmp_path / 'image.npy', 'image.npy')
  np.testing.assert_array_equal(
    npz_arrays.memory_map(path, 'image'), np.arange(9)
  )
  assert npz_arrays.read_headers(path, ['image'])['image'].shape == (9,)


def test_compressed_and_what_the_error_says(tmp_path):
  array = np.arange(50).reshape(10, 5)
  path = write(tmp_path, np.savez_compressed, image=array)
  with pytest.raises(ValueError, match="'image' is compressed, so it") as error:
    npz_arrays.memory_map(path, 'image')
  assert '\n' not in str(error.value)
  run(str(error.value).partition('write it again: ')[2], tmp_path)
  mapped = npz_arrays.memory_map(str(tmp_path / 'NEW.npz'), 'image')
  np.testing.assert_array_equal(mapped, array)


def run(command, folder):
  """Runs the Python command of an error message."""
  python, *options = shlex.split(command)
  assert python == 'python'
  subprocess.run([sys.executable, *options], cwd=folder, check=True)


def test_fortran_order(tmp_path):
  path = write(tmp_path, image=np.asfortranarray(np.ones((3, 4))))
  with pytest.raises(ValueError, match="'image' is in Fortran order, expected"):
    npz_arrays.memory_map(path, 'image')


@pytest.mark.parametrize('size', [200, -100])
def test_a_file_that_was_cut(tmp_path, size):
  path = tmp_path / 'mine.npz'
  write(tmp_path, image=np.ones((50, 7)))
  path.write_bytes(path.read_bytes()[:size])
  with pytest.raises(ValueError, match=r'mine\.npz: is not a readable npz fil'):
    npz_arrays.memory_map(str(path), 'image')


@pytest.mark.parametrize('names', [('x',), ('image', 'images')])
def test_one_of_several_names(tmp_path, names):
  path = write(tmp_path, **dict.fromkeys(names, 3))
  with pytest.raises(
    ValueError, match=r"expected one array 'image' or 'images'"
  ):
    npz_arrays.choose(path, npz_arrays.IMAGES)
  assert npz_arrays.choose(path, ('y', names[0])) == names[0]
