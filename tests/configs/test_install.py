"""Configs come with the package: from a wheel, in a folder with nothing."""

import email
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent

# Packaging's own messages are not what is tested.
QUIET = {'capture_output': True, 'text': True, 'check': True}


def copy_of_checkout(folder):
  """What a wheel is built of, so that building leaves nothing in the tree."""
  for name in ('dhat_jax', 'configs'):
    shutil.copytree(
      ROOT / name,
      folder / name,
      symlinks=True,
      ignore=shutil.ignore_patterns('__pycache__'),
    )
  for name in ('setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, folder / name)
  return folder


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
  """A folder with the unpacked wheel, as in site-packages."""
  folder = tmp_path_factory.mktemp('install')
  source = copy_of_checkout(folder / 'source')
  build = (
    'import os, sys; from setuptools import build_meta; '
    'os.chdir(sys.argv[1]); print(build_meta.build_{}(sys.argv[2]))'
  )
  # The wheel of the sdist, as an index would have it.
  for kind in ('sdist', 'wheel'):
    subprocess.run(
      [sys.executable, '-c', build.format(kind), str(source), str(folder)],
      **QUIET,
    )
    if kind == 'sdist':
      (archive,) = folder.glob('*.tar.gz')
      shutil.unpack_archive(archive, folder / 'unpacked', filter='data')
      (source,) = (folder / 'unpacked').iterdir()
  (wheel,) = folder.glob('*.whl')
  with zipfile.ZipFile(wheel) as file:
    file.extractall(folder / 'site')
  return folder / 'site'


def run(module, *arguments, installed, cwd):
  return subprocess.run(
    [sys.executable, '-m', module, *arguments],
    cwd=cwd,
    env={**os.environ, 'PYTHONPATH': str(installed)},
    capture_output=True,
    text=True,
    check=False,
    timeout=120,
  )


@pytest.mark.slow
def test_wheel_holds_the_configs_and_no_top_level_ones(installed):
  configs = installed / 'dhat_jax' / 'configs'
  assert {path.name for path in configs.iterdir()} == {
    path.name for path in (ROOT / 'configs').glob('*.py')
  }
  assert not configs.is_symlink()
  assert not (installed / 'configs').exists()


@pytest.mark.slow
def test_metadata_that_an_index_shows(installed):
  (path,) = installed.glob('dhat_jax-*.dist-info/METADATA')
  metadata = email.message_from_string(path.read_text())
  assert metadata['License'] == 'Apache-2.0'
  assert metadata['Author']
  assert metadata['Description-Content-Type'] == 'text/markdown'
  readme = (ROOT / 'README.md').read_text().strip()
  assert metadata.get_payload().strip() == readme
  extras = set(metadata.get_all('Provides-Extra'))
  assert {'test', 'gpu', 'tpu'} <= extras


@pytest.mark.slow
def test_installed_config_in_an_empty_folder(installed, tmp_path):
  done = run(
    'dhat_jax.main',
    *('--config=configs/cifar10.py', '--only_check_args'),
    installed=installed,
    cwd=tmp_path,
  )
  assert done.returncode == 0, done.stderr
  assert str(installed / 'dhat_jax/configs/cifar10.py') in done.stderr


@pytest.mark.slow
def test_own_folder_of_configs(installed, tmp_path):
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs/__init__.py').write_text('')
  (tmp_path / 'configs/base.py').write_text('NAME = "mine"\n')
  (tmp_path / 'configs/mine.py').write_text(
    'from configs import base, digits\n'
    'def get_config():\n'
    '  config = digits.get_config()\n'
    '  config.name = base.NAME\n'
    '  return config\n'
  )
  done = run(
    'dhat_jax.main',
    *('--config=configs/mine.py', '--config.seed=3', '--only_check_args'),
    installed=installed,
    cwd=tmp_path,
  )
  assert (done.returncode, done.stderr) == (0, '')
