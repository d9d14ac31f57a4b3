"""The pages say what is true: programs run, lists are complete, links lead on.

A Python block of docs/*.md whose first line is `# name.py` is that file
(`test_recipes`); the others run as they stand, in order, on arrays `images` and
`labels`. README's programs run in `test_readme`.
"""

import os
import re

import numpy as np
import pytest

from dhat_jax import from_config
from dhat_jax.configs import cifar10
from dhat_jax.configs import digits as digits_config
from dhat_jax.datasets import digits
from dhat_jax.pytorch import state_dicts
from dhat_jax.training.stages import roles
from tests.docs.pages import DOCS, PAGES, ROOT, blocks, programs
from tests.helpers.tiny import random_variables


@pytest.fixture(scope='module')
def state_dict():
  """A PyTorch state dict of the digits network, random."""
  net = from_config.make_network(digits_config.get_config())
  variables = random_variables(net, np.zeros((1, 8, 8, 1), np.float32))
  return state_dicts.to_torch(variables, net)


def is_evaluated(names):
  """Whether a program leaves a result, robust flags or an accuracy."""
  if 'accuracy' in names:
    return 0 <= float(names['accuracy']) <= 1
  if 'result' in names:
    return names['result'].robust.shape == (24,)
  return names['robust'].shape == (24,) and names['robust'].dtype == bool


WITH_PROGRAMS = [
  page for page in PAGES if programs(page) and page.name != 'README.md'
]


@pytest.mark.parametrize('page', WITH_PROGRAMS, ids=lambda page: page.name)
def test_programs_run_as_they_stand(page, folder, state_dict):
  state_dicts.write_state_dict('model.npz', state_dict)
  test = digits.load().test
  names = {
    'images': np.float32(test.images[:24]) / 255,
    'labels': test.labels[:24],
  }
  for block in programs(page):
    exec(block, names)
    assert is_evaluated(names)
    assert names['images'].shape == (24, 8, 8, 1)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_files_of_the_project_are_there(page):
  paths = re.findall(
    r'`((?:dhat_jax|tests|experiments|launch)/[\w/.-]+\.\w+)`',
    page.read_text(),
  )
  assert [path for path in paths if not (ROOT / path).exists()] == []


def test_programs_of_readme_run_elsewhere():
  tests = (ROOT / 'tests' / 'docs' / 'test_readme.py').read_text()
  words = re.findall(r"program\('([\w.]+)'\)", tests)
  for block in blocks(ROOT / 'README.md', 'python'):
    assert any(word in block for word in words)


def test_api_lists_every_module_once():
  listed = [
    name
    for page in sorted((DOCS / 'api').glob('*.md'))
    for name in re.findall(r'automodule:: ([\w.]+)', page.read_text())
  ]
  modules = [
    '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    for path in (ROOT / 'dhat_jax').rglob('*.py')
    if path.name != '__init__.py'
  ]
  assert sorted(listed) == sorted(modules)


def test_pages_and_index_agree():
  """Each page is in the index twice: in its lists, and in its menu."""
  index = (DOCS / 'index.md').read_text()
  for page in DOCS.rglob('*.md'):
    if page.name != 'index.md' and '_build' not in page.parts:
      name = page.relative_to(DOCS).as_posix()
      assert f']({name})' in index
      assert f'\n{name.removesuffix(".md")}\n' in index


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
  text = re.sub(r'```.*?```', '', page.read_text(), flags=re.DOTALL)
  for target in re.findall(r'\]\(([^)\s]+)\)', text):
    if not re.match(r'https?:', target):
      assert os.path.exists(page.parent / target.partition('#')[0]), target


def test_stages_of_the_method_page():
  """Its table of stages is that of the config."""
  config = cifar10.get_config()
  text = (DOCS / 'method.md').read_text()
  for name, role in roles().items():
    (row,) = re.findall(rf'^\| `{name}` \|(.*)\|$', text, re.MULTILINE)
    trains, frozen, output, beta, epochs, drops = map(str.strip, row.split('|'))
    words = {'main_head': 'main head', 'second_head': 'second head'}
    assert trains == ', '.join(words.get(part, part) for part in role.trains)
    assert ('trunk' in frozen) == ('trunk' not in role.trains)
    assert f'`{role.output}`' in output
    assert float(beta) == config[name].loss.beta
    assert float(epochs) == config[name].epochs
    drop_epochs = [
      e for e in config[name].schedule.drop_epochs if e <= float(epochs)
    ]
    assert drops == ', '.join(str(epoch) for epoch in drop_epochs)
