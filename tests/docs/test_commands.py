"""Every command on a page is parsed by its program, its config checked."""

import configparser
import importlib
import re
import shlex

import pytest
from absl import flags

from dhat_jax import convert, from_config, main
from dhat_jax.benchmark import __main__ as benchmark
from tests.docs.conftest import RECIPES
from tests.docs.pages import PAGES, ROOT, commands
from tests.survival import campaign

PARSERS = {
  'dhat_jax.main': main.parse,
  'dhat_jax.convert': convert._parse,
  'dhat_jax.benchmark': benchmark._parse,
}


def check_command(words):
  """Raises unless a command would start."""
  if words[0] == 'pip':
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    assert words[1:3] == ['install', '-e']
    (extras,) = re.fullmatch(r'\.(?:\[([\w,-]+)\])?', words[3]).groups()
    assert not extras or set(extras.split(',')) <= set(
      setup['options.extras_require']
    )
  elif words[:2] == ['python', '-m'] and words[2] in PARSERS:
    config = PARSERS[words[2]](words[2:]).config
    assert config is not None
    from_config.check(config)
  elif words[:3] == ['python', '-m', campaign.__name__]:
    campaign.parser().parse_args(words[3:])
  elif words[:2] == ['python', '-m'] and words[2].startswith('experiments.'):
    importlib.import_module(words[2]).parse(words[3:])
  elif words[0] == 'launch/check.sh':
    assert words[1:] in ([], ['docs'], ['lint'], ['quick'], ['package'])
  elif words[:3] == ['python', '-m', 'dhat_jax.report']:
    assert words[3:]
    assert all(w.startswith(('--workdir=', '--out=')) for w in words[3:])
  elif words[0] == 'python' and words[1:] != ['-m', 'pytest']:
    (name,) = words[1:]
    assert "__name__ == '__main__'" in RECIPES[name]
  else:
    assert words == ['python', '-m', 'pytest']


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_commands_would_start(page, folder):
  for words in commands(page):
    check_command(words)


@pytest.mark.parametrize(
  'line',
  [
    'python -m dhat_jax.main --config=configs/digits.py --config.sed=1',
    'python -m dhat_jax.main --config=configs/digits.py --mode=test',
    'python -m dhat_jax.main --config=configs/digits.py '
    '--config.model.attach=block9',
    'python -m dhat_jax.convert --config=configs/digits.py --workdir=x',
    'python -m dhat_jax.nothing',
    'python my_loss.py',
    "pip install -e '.[nothing]'",
    'python -m experiments.digits --seed=x',
    'python -m experiments.cifar10 --scale=huge --data_dir=x',
  ],
)
def test_mistakes_in_commands_are_found(line, folder):
  mistakes = (AssertionError, AttributeError, ValueError, flags.Error)
  with pytest.raises((*mistakes, SystemExit)):
    check_command(shlex.split(line))
