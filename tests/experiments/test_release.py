"""Networks as files to give away."""

import numpy as np
import pytest

from dhat_jax import convert, load_run
from dhat_jax.runtime import files
from experiments import release
from tests.helpers.state_dicts import make, state_dict_of
from tests.helpers.tiny import flat


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A run whose second head is averaged, made of a state dict."""
  folder = tmp_path_factory.mktemp('release')
  state_dict = state_dict_of(make(num_classes=10), channels=1)
  np.savez(folder / 'model.npz', **state_dict)
  convert.main(
    [
      *('convert', '--config=configs/digits.py'),
      '--config.compare_with_natural=false',
      '--config.second_head.ema_decay=0.9',
      f'--from_torch={folder}/model.npz',
      f'--workdir={folder}/run',
    ]
  )
  return folder / 'run'


def test_release(workdir, tmp_path):
  pytest.importorskip('torch')
  out = tmp_path / 'model'
  size = release.release(str(workdir), str(out))
  paths = [path for path in out.rglob('*') if path.is_file()]
  assert sum(path.stat().st_size for path in paths) <= size
  for path in paths:  # nothing of this machine
    assert str(tmp_path).encode() not in path.read_bytes(), path
  first, second = load_run(str(workdir)), load_run(str(out / 'run'))
  assert first.output == second.output
  for name, array in flat(first.variables).items():
    np.testing.assert_array_equal(flat(second.variables)[name], array)
  config = files.read_json(str(out / 'run' / 'config.json'))
  assert config['dataset']['data_dir'] == 'images.npz'
  ours, theirs = (
    convert.state_dicts.read_state_dict(str(path))
    for path in (out / 'model.pt', workdir.parent / 'model.npz')
  )
  assert set(ours) == set(theirs)
  for name, array in theirs.items():
    np.testing.assert_array_equal(ours[name], array)
  with pytest.raises(ValueError, match='is there already'):
    release.release(str(workdir), str(out))


def test_a_large_network_is_refused(workdir, tmp_path):
  pytest.importorskip('torch')
  with pytest.raises(ValueError, match='expected at most 1,000'):
    release.release(str(workdir), str(tmp_path / 'model'), limit=1000)
