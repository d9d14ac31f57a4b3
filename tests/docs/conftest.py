"""A folder that holds the files of the recipes and of README."""

import sys

import numpy as np
import pytest

from dhat_jax.models.outputs import OUTPUTS
from tests.docs.pages import DOCS, ROOT, files

RECIPES = files(DOCS / 'recipes.md')
README_FILES = files(ROOT / 'README.md')


def write_arrays(folder):
  """Writes the npz files that commands of the recipes name."""
  images = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), np.uint8)
  labels = np.arange(30) % 10
  for name in ('my_arrays', 'generated'):
    (folder / name).mkdir()
  for name in ('my_arrays/train', 'my_arrays/test'):
    np.savez(folder / name, images=images, labels=labels)
  for part in (1, 2):
    np.savez(folder / f'generated/{part}', image=images, label=labels)


@pytest.fixture(scope='session')
def recipes_folder(tmp_path_factory):
  """One folder for all tests: a part is registered by one file alone."""
  path = tmp_path_factory.mktemp('recipes')
  for name in ('configs', 'docs', 'launch'):
    (path / name).symlink_to(ROOT / name)
  write_arrays(path)
  for name, text in {**RECIPES, **README_FILES}.items():
    (path / name).write_text(text)
  return path


@pytest.fixture
def folder(recipes_folder, monkeypatch):
  """The recipes' folder as the current one; no output of theirs stays."""
  monkeypatch.chdir(recipes_folder)
  monkeypatch.setattr(sys, 'path', [str(recipes_folder), *sys.path])
  names = set(OUTPUTS)
  yield recipes_folder
  for name in set(OUTPUTS) - names:
    del OUTPUTS[name]
