"""Every path that a user gives: ~ is the home, and no folder's name."""

import os

import numpy as np
import pytest

import dhat_jax
from dhat_jax import convert
from dhat_jax.attacks.autoattack import autoattack
from dhat_jax.benchmark import __main__ as benchmark
from dhat_jax.datasets import cache, image_folder, npz
from dhat_jax.pytorch import state_dicts
from dhat_jax.report.write import write
from dhat_jax.run import check_workdir, prepare_workdir
from experiments import cifar10, digits
from tests.helpers import tiny_run


@pytest.fixture
def home(tmp_path, monkeypatch):
  """An empty home; the current folder is another one, which stays empty."""
  (tmp_path / 'home').mkdir()
  (tmp_path / 'here').mkdir()
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  monkeypatch.chdir(tmp_path / 'here')
  yield tmp_path / 'home'
  assert not list((tmp_path / 'here').iterdir())


def test_functions(home):
  config = tiny_run.get_config()
  prepare_workdir(config, '~/run')
  assert (home / 'run' / 'config.json').exists()
  check_workdir(config, '~/run')
  with pytest.raises(ValueError, match='holds no run that can be evaluated'):
    dhat_jax.train_and_evaluate(config, '~/nothing', mode='evaluate')
  with pytest.raises(ValueError, match="stage 'aggregator' is not trained"):
    dhat_jax.load_run('~/run')
  with pytest.raises(ValueError, match="stage 'aggregator' is not trained"):
    convert.export_workdir('~/run')
  (home / 'run' / 'checkpoints' / 'main_head').mkdir(parents=True)
  with pytest.raises(ValueError, match='is there already'):
    convert.import_workdir({}, config, '~/run', source='nowhere')
  assert write(['~/run']) == str(home / 'run' / 'report.html')
  assert write(['~/run'], '~/out') == str(home / 'out' / 'report.html')
  state_dicts.write_state_dict('~/x.npz', {'a': np.ones(2)})
  assert list(state_dicts.read_state_dict('~/x.npz')) == ['a']


def test_state_of_an_attack(home):
  images = np.full((4, 2, 2, 1), 0.5, np.float32)
  autoattack(
    lambda x: x.reshape(len(x), -1),
    images,
    np.zeros(4, np.int32),
    epsilon=0.01,
    version='custom',
    attacks=('apgd-ce',),
    n_iter=2,
    state_dir='~/state',
  )
  assert (home / 'state' / 'problem.json').exists()


def test_data(home):
  np.savez(home / 'x.npz', x_train=np.ones(1))
  assert npz.check_path('~/x.npz') == str(home / 'x.npz')
  assert image_folder.check_folder('~/images') == str(home / 'images')
  assert cache.folder('~/cache') == str(home / 'cache')


def test_flags(home):
  values = benchmark._parse(
    [
      *('benchmark', '--config=configs/digits.py'),
      *('--workdir=~/run', '--out=~/x.json'),
    ]
  )
  assert values.workdir == str(home / 'run')
  assert values.out == str(home / 'x.json')
  options = digits.parse(['--workdir=~/runs', '--json=~/x.json'])
  assert options.workdir == str(home / 'runs')
  assert options.json == str(home / 'x.json')
  os.makedirs(home / 'images')
  options = cifar10.parse(['--data_dir=~/images'])
  assert options.data_dir == str(home / 'images')
