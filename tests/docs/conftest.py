"""A folder that holds the files of the recipes and of README."""

import sys

import pytest

from dhat_jax.models.outputs import OUTPUTS
from tests.docs.pages import DOCS, ROOT, files

RECIPES = files(DOCS / 'recipes.md')
README_FILES = files(ROOT / 'README.md')


@pytest.fixture(scope='session')
def recipes_folder(tmp_path_factory):
  """One folder for all tests: a part is registered by one file alone."""
  path = tmp_path_factory.mktemp('recipes')
  for name in ('configs', 'docs', 'launch'):
    (path / name).symlink_to(ROOT / name)
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
