"""Config files: found, loaded, no part shared; errors are one line."""

import logging
import os
import sys

import pytest
from ml_collections import ConfigDict, FrozenConfigDict, config_dict

from dhat_jax.runtime import config_file


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """An empty current folder; modules that files in it import are forgotten."""
  before = set(sys.modules)
  package = sys.modules.pop('configs', None)
  hidden = {n: m for n, m in sys.modules.items() if n.startswith('configs.')}
  for name in hidden:
    del sys.modules[name]
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', [str(tmp_path), *sys.path])
  yield tmp_path
  for name in set(sys.modules) - before:
    if name.startswith(('configs', 'helper', 'project')):
      del sys.modules[name]
  sys.modules.pop('configs', None)
  if package is not None:
    sys.modules.update(configs=package, **hidden)


def write(path, body, head=''):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f'{head}\ndef get_config(variant="a"):\n  {body}\n')
  return str(path)


def error_of(argument):
  """What `read` says, which is one line."""
  with pytest.raises(ValueError, match=r'\A[^\n]+\Z') as error:
    config_file.read(argument)
  return str(error.value)


# Where a file is.


@pytest.mark.parametrize(
  'path', ['configs/cifar10.py', './configs/svhn.py', 'x/configs/digits.py']
)
def test_installed_config_takes_the_place_of_a_missing_one(
  path, folder, caplog
):
  with caplog.at_level(logging.WARNING):
    config = config_file.read(path)
  assert config.name == os.path.basename(path).removesuffix('.py')
  assert f"no file '{path}' here, taking the installed /" in caplog.text


def test_file_in_the_current_folder_comes_first(folder, caplog):
  write(folder / 'configs/digits.py', 'return {"name": "mine"}')
  assert config_file.read('configs/digits.py').name == 'mine'
  assert not caplog.text


def test_home_and_variant(folder, monkeypatch):
  monkeypatch.setenv('HOME', str(folder))
  write(folder / 'x.py', 'return {"name": variant}')
  assert config_file.read('~/x.py').name == 'a'
  assert config_file.read('~/x.py:b').name == 'b'
  assert config_file.read('~/x.py:b:c').name == 'b:c'
  assert config_file.read('~/x.py:').name == ''


CHOICES = (
  'configs/cifar10.py, configs/cifar100.py, configs/cifar10_generated.py, '
  'configs/cifar10_modern.py, configs/digits.py, configs/digits_modern.py, '
  'configs/svhn.py'
)


@pytest.mark.parametrize(
  ('path', 'message'),
  [
    ('configs/nothing.py', f'which is no file; choices are {CHOICES}'),
    ('configs/nothing.py:x', "got 'configs/nothing.py', which"),
    ('cifar.py', f'which is no file; choices are {CHOICES}'),
    ('digits', f'expected FILE.py or FILE.py:variant; choices are {CHOICES}'),
    ('', "--config: got '', expected FILE.py"),
    ('run/config.json', 'expected FILE.py'),
    ('configs', 'expected FILE.py'),
    ('folder.py', 'expected FILE.py'),
  ],
)
def test_missing_file(path, message, folder):
  (folder / 'folder.py').mkdir()
  assert message in error_of(path)


def test_ours_are_no_choice_where_something_else_is_meant(folder):
  assert error_of('nothing.py') == (
    "--config: got 'nothing.py', which is no file"
  )


# What a file may import.


@pytest.mark.parametrize('with_init', [False, True])
def test_configs_of_a_user_beside_ours(with_init, folder):
  body = 'c = digits.get_config(); c.name = helper.NAME; return c'
  path = write(
    folder / 'far/configs/mine.py', body, 'from configs import digits, helper'
  )
  (folder / 'far/configs/helper.py').write_text('NAME = "helped"')
  if with_init:
    (folder / 'far/configs/__init__.py').write_text('')
  assert config_file.read(path).name == 'helped'


def test_configs_of_the_current_folder_beside_ours(folder):
  """The config itself lies elsewhere."""
  (folder / 'configs').mkdir()
  (folder / 'configs/__init__.py').write_text('WORD = "initialised"')
  (folder / 'configs/helper.py').write_text('NAME = "helped"')
  path = write(
    folder / 'project/mine.py',
    'return {"name": f"{WORD} {helper.NAME} {digits.get_config().name}"}',
    'from configs import WORD, digits, helper',
  )
  assert config_file.read(path).name == 'initialised helped digits'


def test_neighbours_import_each_other(folder):
  (folder / 'far/project').mkdir(parents=True)
  (folder / 'far/project/helper.py').write_text('NAME = "helped"')
  path = write(
    folder / 'far/project/mine.py',
    'return {"name": helper.NAME}',
    'from project import helper',
  )
  assert config_file.read(path).name == 'helped'


def test_a_dataclass_in_a_config_file(folder):
  head = 'import dataclasses\n@dataclasses.dataclass\nclass A:\n  x: "int" = 1'
  path = write(folder / 'x.py', 'return {"name": A().x}', head)
  assert config_file.read(path).name == 1


# What it returns, and how it fails.


@pytest.mark.parametrize('kind', ['dict', 'ConfigDict', 'FrozenConfigDict'])
def test_kinds_of_configs(kind, folder):
  path = write(
    folder / 'x.py',
    f'return {kind}({{"a": {{"b": 1}}}})',
    'from ml_collections import ConfigDict, FrozenConfigDict',
  )
  config = config_file.read(path)
  assert type(config) is ConfigDict
  assert not isinstance(config, FrozenConfigDict)
  config.a.b = 2


@pytest.mark.parametrize(
  ('text', 'argument', 'message'),
  [
    ('def get_config(v="a"):\n  raise ValueError(f"no {v}")', ':x', 'no x'),
    ('raise ValueError("bad table")', '', 'bad table'),
    ('x = 1', '', 'no function get_config in it'),
    ('def get_config():\n  pass', '', 'got NoneType, expected to return a Con'),
    ('def get_config():\n  pass', ':x', "got variant 'x', but get_config() is"),
    ('def get_config(v):\n  pass', '', 'got no variant, but get_config(v) is'),
    (
      'def get_config():\n  c = {}; c["c"] = c; return c',
      '',
      'a part of it contains itself',
    ),
  ],
)
def test_what_the_file_says_is_one_line(
  text, argument, message, folder, capsys
):
  (folder / 'x.py').write_text(text)
  assert message in error_of(f'x.py{argument}')
  assert capsys.readouterr().err == ''


@pytest.mark.parametrize(
  ('text', 'last', 'line'),
  [
    ('import no_such_module', 'ModuleNotFoundError: No module', 'import no_'),
    ('def get_config():\n  return 1 / 0', 'ZeroDivisionError: div', '1 / 0'),
    ('def get_config():\n  return {}["a"]', "KeyError: 'a'", '{}["a"]'),
    ('def get_config(:', 'SyntaxError: ', 'def get_config(:'),
    ('from configs import none', 'ImportError: cannot import', 'from configs'),
  ],
)
def test_a_bug_in_the_file_shows_its_traceback(
  text, last, line, folder, capsys
):
  (folder / 'x.py').write_text(text)
  error = error_of('x.py')
  assert last in error
  assert error.startswith(f'{folder}/x.py: ')
  printed = capsys.readouterr().err
  assert line in printed
  assert last in printed
  # From the author's own line on, not through our files.
  assert 'config_file.py' not in printed


# Nothing is shared.


def nodes(config):
  """Every ConfigDict and FieldReference below a config, as often as met."""
  for value in config.values(preserve_field_references=True):
    if isinstance(value, config_dict.FieldReference):
      yield value
    elif isinstance(value, ConfigDict):
      yield value
      yield from nodes(value)


def assert_nothing_shared(config):
  ids = [id(node) for node in nodes(config)]
  assert len(ids) == len(set(ids))


def test_one_dict_at_two_places():
  common = {'steps': 10, 'deep': {'size': 1}}
  config = ConfigDict({'a': common, 'b': common, 'c': {'d': common}})
  assert config.a is config.b
  config_file.unshare(config)
  assert_nothing_shared(config)
  config.a.steps, config.b.steps = 1, 3
  config.a.deep.size = 2
  assert (config.a.steps, config.b.steps, config.c.d.steps) == (1, 3, 10)
  assert (config.b.deep.size, config.c.d.deep.size) == (1, 1)


def test_one_placeholder_at_two_places():
  common = {'epsilon': config_dict.placeholder(float)}
  config = ConfigDict({'a': {**common}, 'b': {**common}, 'c': common})
  config_file.unshare(config)
  assert_nothing_shared(config)
  config.a.epsilon = 1
  assert (config.a.epsilon, config.b.epsilon, config.c.epsilon) == (
    1.0,
    None,
    None,
  )
  with pytest.raises(TypeError):
    config.b.epsilon = 'x'


def test_required_placeholders_stay_required():
  common = {'x': config_dict.required_placeholder(int)}
  config = config_file.unshare(ConfigDict({'a': {**common}, 'b': {**common}}))
  with pytest.raises(config_dict.RequiredValueError):
    _ = config.b.x
  assert config_file.release_required(config) == ['a.x', 'b.x']
  config.a.x = 1
  assert config.b.x is None


def test_links_stay():
  config = ConfigDict({'a': {'lr': 0.1}, 'b': {'lr': 0.2, 'half': 0.0}})
  config.b.lr = config.a.get_ref('lr')
  config.b.half = config.a.get_ref('lr') / 2
  config_file.unshare(config)
  config.a.lr = 0.4
  assert (config.b.lr, config.b.half) == (0.4, 0.2)


def test_a_link_to_a_whole_node_stays():
  config = ConfigDict({'a': {'x': {'y': 1}}})
  config.b = config.get_ref('a')
  config_file.unshare(config)
  config.a.x.y = 2
  assert config.b.x.y == 2


def test_links_inside_and_out_of_a_shared_node():
  config = ConfigDict({'steps': 10})
  common = ConfigDict({'epsilon': 8.0, 'steps': config.get_ref('steps')})
  common.step_size = common.get_ref('epsilon') / 4
  config.a = common
  config.b = common
  config_file.unshare(config)
  config.b.epsilon = 4.0
  # Of its own, with the link inside it.
  assert (config.a.step_size, config.b.step_size) == (2.0, 1.0)
  # Of the whole config, as the file says.
  config.steps = 7
  assert (config.a.steps, config.b.steps) == (7, 7)


def test_nodes_in_lists_and_tuples():
  common = ConfigDict({'x': [1]})
  config = ConfigDict({'a': [common, common], 'b': (common, (1, 2)), 'c': 'c'})
  config_file.unshare(config)
  config.a[0].x[0] = 2
  assert (config.a[1].x, config.b[0].x) == ([1], [1])
  assert config.b[1] == (1, 2)


def test_values_types_and_locks_stay():
  common = {'x': 1, 'y': (1, 'a'), 'f': abs}
  config = ConfigDict({'a': common, 'b': common}).lock()
  before = config.to_dict()
  assert config_file.unshare(config) is config
  assert config.to_dict() == before
  assert config.is_locked
  assert config.b.is_locked
  with pytest.raises(TypeError):
    config.b.x = 'text'
