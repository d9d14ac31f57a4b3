"""Command lines: every spelling, any order; mistakes are one line each."""

import pytest
from absl import flags

from dhat_jax.runtime import cli

CONFIG = """
import enum
from ml_collections import ConfigDict, config_dict

class Colour(enum.Enum):
  RED = 1
  BLUE = 2

def get_config(variant='plain'):
  attack = {'steps': 10, 'epsilon': config_dict.placeholder(float)}
  return ConfigDict({
    'name': variant,
    'seed': 0,
    'on': True,
    'sizes': (1, 2),
    'colour': Colour.RED,
    'list': [1, 2],
    'nothing': None,
    'main': {
      'attack': attack, 'schedule': {'learning_rate': 0.1, 'name': 'step'},
    },
    'second': {'attack': attack},
    'third': {'attack': attack},
    'options': {},
  })
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr('sys.path', [str(tmp_path)])
  (tmp_path / 'c.py').write_text(CONFIG)
  return tmp_path


def parse(*arguments, default=None):
  values = cli.new_flags(
    'What it does.', takes_config=True, default_config=default
  )
  cli.define_path(values, 'out', 'A path.')
  cli.define_path(values, 'in', 'Paths.', several=True)
  flags.DEFINE_integer('count', 1, '', lower_bound=1, flag_values=values)
  flags.DEFINE_bool('fast', False, '', flag_values=values)
  cli.parse(values, ['program', *arguments])
  return values


@pytest.mark.parametrize(
  'arguments',
  [
    ['--config=c.py'],
    ['-config=c.py'],
    ['--config', 'c.py'],
    ['-config', 'c.py'],
    ['--config=./c.py:plain'],
    ['--fast', '--config', 'c.py', '--nofast'],
    ['--out', 'x', '-config=c.py', '--count=3'],
    [],
  ],
)
def test_spellings_of_config(arguments, folder):
  values = parse(*arguments, default='c.py')
  assert values.config.name == 'plain'
  assert values.config.is_locked
  assert not values.fast


@pytest.mark.parametrize(
  ('arguments', 'expected'),
  [
    (['--config.seed=3'], {'seed': 3}),
    (['-config.seed=3'], {'seed': 3}),
    (['--config.seed', '-3'], {'seed': -3}),
    (['--config.seed', '3', '--fast'], {'seed': 3}),
    (['--config.name='], {'name': ''}),
    (['--config.name=a=b c'], {'name': 'a=b c'}),
    (['--config.name', '--config.seed=3'], {'name': '--config.seed=3'}),
    (['--config.on=false'], {'on': False}),
    (['--noconfig.on'], {'on': False}),
    (['--noconfig.on', '--config.on'], {'on': True}),
    (['--config.on', '--config.seed=3'], {'on': True, 'seed': 3}),
    (['--config.sizes=(8,)'], {'sizes': (8,)}),
    (['--config.sizes=8'], {'sizes': (8,)}),
    (['--config.sizes=()'], {'sizes': ()}),
    (['--config.sizes=("a","b")'], {'sizes': ('a', 'b')}),
    (['--config.main.attack.epsilon=8'], {'main.attack.epsilon': 8.0}),
    (['--config.list[1]=5'], {'list': [1, 5]}),
    # Of two the last counts, whatever the type.
    (['--config.seed=3', '--config.seed=4'], {'seed': 4}),
    (['--config.sizes=(4,)', '--config.sizes=(8,)'], {'sizes': (8,)}),
    (['--config.sizes=4', '-config.sizes', '8'], {'sizes': (8,)}),
    # A group, and a key that it brings, in any order.
    (['--config.main.schedule={"a": 1}'], {'main.schedule': {'a': 1}}),
    (
      ['--config.main.schedule.a=2', '--config.main.schedule={"a": 1}'],
      {'main.schedule': {'a': 2}},
    ),
  ],
)
def test_overrides(arguments, expected, folder):
  for line in (['--config=c.py', *arguments], [*arguments, '--config=c.py']):
    config = parse(*line).config
    for path, value in expected.items():
      node = config
      for key in path.split('.'):
        node = node[key]
      assert getattr(node, 'to_dict', lambda node=node: node)() == value
      assert type(node) is type(value) or isinstance(value, dict)


def test_one_override_changes_one_value(folder):
  config = parse(
    '--config=c.py',
    '--config.main.attack.steps=1',
    '--config.second.attack.steps=3',
    '--config.second.attack.epsilon=2',
  ).config
  stages = [config[name].attack for name in ('main', 'second', 'third')]
  assert [attack.steps for attack in stages] == [1, 3, 10]
  assert [attack.epsilon for attack in stages] == [None, 2.0, None]


def test_flags_from_a_file(folder):
  (folder / 'flags.txt').write_text('--config=c.py\n--config.seed=3\n# no\n')
  assert parse('--flagfile=flags.txt').config.seed == 3


def test_paths_expand(folder, monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  values = parse('--config=c.py', '--out=~/x', '--in=~/y', '--in=z~')
  assert values.out == '/home/me/x'
  assert values['in'].value == ['/home/me/y', 'z~']
  values = parse('--config=c.py')
  assert (values.out, values['in'].value) == (None, [])


def test_other_commands_flags_stay_as_they_are(folder):
  parse('--config=c.py')
  assert 'config' not in flags.FLAGS
  assert 'count' not in flags.FLAGS


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--config=a.py', '--config=b.py'], "--config: got 'a.py' and 'b.py', ex"),
    (['--config=c.py', '--config', 'c.py'], "got 'c.py' and 'c.py'"),
    ([], '--config: got nothing, expected FILE.py'),
    (['--config.seed=3'], '--config: got nothing, expected FILE.py'),
    (['--config'], 'Missing value for flag --config'),
    (['--config=c.py', '--conut=3'], '--conut: no such flag; nearest is --cou'),
    (['--config=c.py', '--xyzzy'], '--xyzzy: no such flag'),
    (
      ['--config=c.py', '--configs.seed=3'],
      '--configs.seed: no such flag; nearest is --config.seed\n',
    ),
    (
      ['--config=c.py', '--conut.seed=3'],
      '--conut.seed: no such flag; nearest is --count\n',
    ),
    (['--config=c.py', '--xyzzy.seed=3'], '--xyzzy.seed: no such flag\n'),
    (['--config=c.py', '--count=0'], '--count=0: 0 is not a positive integer'),
    (
      ['--config=c.py', 'a', '--fast', 'b'],
      "arguments: got ['a', 'b'], expect",
    ),
    (['--config=c.py', '--config.on', 'no'], "arguments: got ['no'], expected"),
    (['--config=c.py', '--', 'a'], "arguments: got ['--', 'a'], expected"),
    (['--config=c.py', '--config.seed'], 'config.seed: got nothing, expected'),
    (
      ['--config=c.py', '--noconfig.on=1'],
      '--noconfig.on=1: expected no value',
    ),
    (['--config=c.py', '--flagfile=none.txt'], 'none.txt'),
  ],
)
def test_mistakes(arguments, message, folder, capsys):
  assert_fails(arguments, message, capsys)


@pytest.mark.parametrize(
  ('override', 'message'),
  [
    ('--config.seed=x', "config.seed: got 'x', expected an integer"),
    ('--config.seed=1.5', "config.seed: got '1.5', expected an integer"),
    ('--noconfig.seed', "config.seed: got 'false', expected an integer"),
    ('--config.on=3', "config.on: got '3', expected true or false"),
    ('--config.sizes=(1,', "config.sizes: got '(1,', expected a tuple, as"),
    (
      '--config.main.attack.epsilon=big',
      "config.main.attack.epsilon: got 'big', expected a number",
    ),
    ('--config.main=3', "config.main: got '3', expected a dict, as"),
    (
      '--config.list=3',
      "config.list: got '3' for a list, which no flag can ch",
    ),
    (
      '--config.nothing=3',
      "config.nothing: got '3' for None, which has no typ",
    ),
    ('--config.colour=green', "config.colour: got 'green': "),
    (
      '--config.main.lr=1',
      'config.main.lr: no such key; nearest is '
      'config.main.schedule.learning_rate\n',
    ),
    (
      '--config.sed=1',
      'config.sed: no such key; nearest are config.seed, config.',
    ),
    (
      '--config.main.atack.steps=1',
      'no such key; nearest are config.main.attack.steps, config.',
    ),
    (
      '--config.main.schedule.xyzzy=1',
      'no such key; config.main.schedule has learning_rate, name; to replace '
      "it: --config.main.schedule='{...}'\n",
    ),
    ('--config.options.xyzzy=1', 'no such key; config.options has no keys\n'),
    ('--config.seed.real=1', 'config.seed.real: no such key'),
    ('--config.sizes.x=1', 'config.sizes.x: no such key'),
    ('--config.list[7]=1', 'config.list[7]: no such key'),
    ('--config.=1', 'config.: no such key'),
    ('--config.a b=1', 'config.a b: no such key'),
    ('--config.lock=1', 'config.lock: no such key'),
  ],
)
def test_mistakes_in_overrides(override, message, folder, capsys):
  for line in (['--config=c.py', override], [override, '--config=c.py']):
    assert_fails(line, message, capsys)


def assert_fails(arguments, message, capsys):
  with pytest.raises(SystemExit) as stopped, cli.mistakes_in_one_line():
    parse(*arguments)
  assert stopped.value.code == 2
  printed = capsys.readouterr().err
  assert printed.startswith('error: ')
  assert printed.count('\n') == 1
  assert message in printed


def test_a_value_that_must_be_given(folder, capsys):
  path = folder / 'c.py'
  path.write_text(
    CONFIG.replace("'seed': 0", "'seed': config_dict.required_placeholder(int)")
  )
  assert_fails(
    ['--config=c.py'], 'config.seed: got nothing, give --config.seed=', capsys
  )
  assert parse('--config=c.py', '--config.seed=1').config.seed == 1


@pytest.mark.parametrize('flag', ['--help', '-h', '-help'])
def test_help(flag, folder, capsys):
  with pytest.raises(SystemExit) as stopped:
    parse('--config=none.py', flag)
  assert stopped.value.code == 0
  assert capsys.readouterr().out == 'What it does.\n'


def test_without_a_config(capsys):
  values = cli.new_flags('')
  flags.DEFINE_bool('fast', False, '', flag_values=values)
  cli.parse(values, ['program', '--fast'])
  assert values.fast
  with pytest.raises(ValueError, match='--config: no such flag'):
    cli.parse(values, ['program', '--config=c.py'])


def test_a_bug_is_no_mistake():
  for error in (AttributeError, KeyError, TypeError):
    with pytest.raises(error), cli.mistakes_in_one_line():
      raise error
  with pytest.raises(SystemExit), cli.mistakes_in_one_line(KeyError):
    raise KeyError


@pytest.mark.parametrize('error', [OSError, ImportError, ValueError])
def test_mistakes_end_in_exit_code_2(error, capsys):
  with pytest.raises(SystemExit) as stopped, cli.mistakes_in_one_line():
    raise error('what is wrong')
  assert stopped.value.code == 2
  assert capsys.readouterr().err == 'error: what is wrong\n'


def test_a_value_that_an_override_took_away_need_not_be_given(folder):
  (folder / 'c.py').write_text(
    CONFIG.replace(
      "'name': 'step'", "'name': config_dict.required_placeholder(str)"
    )
  )
  config = parse('--config=c.py', '--config.main.schedule={"a": 1}').config
  assert config.main.schedule.to_dict() == {'a': 1}
