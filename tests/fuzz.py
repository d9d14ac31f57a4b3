"""Mutated command lines and configs: each is accepted, or refused in one line.

    python -m tests.fuzz --seed=0 --cases=300

Every case is parsed as its command does it, and its config is checked as at the
start of a run: everything short of data and compilation. What is left of a case
is 'accepted' or one line; anything else is a find, and the exit code is 1:
another exception, several lines, a warning, a case that takes too long, and a
value that is accepted though its type is wrong.
"""

import argparse
import collections
import contextlib
import dataclasses
import io
import math
import os
import random
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from dhat_jax import convert, from_config, main
from dhat_jax.benchmark import __main__ as benchmark
from dhat_jax.configs import cifar10, cifar100, digits, recipes, svhn
from dhat_jax.report import __main__ as report
from dhat_jax.runtime import cli, config_file
from tests.helpers.fuzz_inputs import FILES, FLAGS, TEXTS, VALUES

LONGEST_SECS = 20
COMMANDS = {
  'main': main.parse,
  'convert': convert._parse,
  'benchmark': benchmark._parse,
  'report': report._parse,
}


@dataclasses.dataclass(frozen=True)
class Case:
  """One input.

  Attributes:
    title: what it is, to be printed.
    call: runs it as the command does, short of data and compilation.
    impossible: whether it must be refused.
    file: text that stands in a traceback which may be printed: that of a user's
      own file, for its author.
  """

  title: str
  call: Callable[[], Any]
  impossible: bool = False
  file: str | None = None


def leaves(config: ConfigDict, prefix: str = '') -> list[str]:
  """Returns the dotted keys of a config's values, and of its sections."""
  paths = []
  for key in config:
    paths.append(f'{prefix}{key}')
    if isinstance(config.get(key), ConfigDict):
      paths += leaves(config[key], f'{prefix}{key}.')
  return paths


def _node(config: ConfigDict, path: str) -> tuple[ConfigDict, str]:
  *groups, key = path.split('.')
  for group in groups:
    config = config[group]
  return config, key


def change(config: ConfigDict, path: str, value: Any) -> None:
  """Sets a dotted key, whatever its type."""
  node, key = _node(config, path)
  with node.unlocked():
    if key in node:
      del node[key]  # a float's place would make 1.0 of True
    node[key] = value


def is_of_type(value: Any, like: Any) -> bool:
  """Whether a value is what a config may have in the place of another."""
  if isinstance(like, bool):
    return isinstance(value, bool)
  if isinstance(like, int):
    return isinstance(value, int) and not isinstance(value, bool)
  if isinstance(like, float) or like is None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return (number and math.isfinite(value)) or (like is None and value is None)
  if isinstance(like, tuple):
    if not isinstance(value, tuple | list):
      return False
    return not like or all(is_of_type(item, like[0]) for item in value)
  if isinstance(like, ConfigDict):
    return isinstance(value, ConfigDict | dict)
  return isinstance(value, str)


class Fuzz:
  """Cases, drawn from a seed, in a folder for the files that they need."""

  def __init__(self, seed: int, folder: str):
    self.random = random.Random(seed)
    self.folder = folder
    self.kinds = (
      self.command_line,
      self.command_line,
      self.override,
      self.override,
      self.value,
      self.value,
      self.value,
      self.missing,
      self.surplus,
      self.misspelt,
      self.file,
      self.stages,
    )

  def case(self) -> Case:
    """Draws the next case."""
    return self.random.choice(self.kinds)()

  def config(self) -> ConfigDict:
    """Draws a config x variant."""
    base = self.random.choice(recipes.BASES)
    module = self.random.choice((cifar10, cifar100, svhn, digits))
    backbone = self.random.choice((*recipes.BACKBONES, 'wrn10_1'))
    return config_file.unshare(module.get_config(f'{base}_{backbone}'))

  def typo(self, text: str) -> str:
    """Draws another text that is like the given one."""
    place = self.random.randrange(len(text))
    before, char, after = text[:place], text[place], text[place + 1 :]
    changes = (before + after, before + char * 2 + after, f'{before}~{after}')
    return self.random.choice([*changes, text.upper(), f'{text}s', f' {text}'])

  def command_line(self) -> Case:
    """Flags that are misspelt, doubled, without value, with strange ones."""
    command = self.random.choice(list(COMMANDS))
    known = FLAGS[command]
    count = self.random.randint(0, len(known))
    argv = self.random.sample(known, count)
    for _ in range(self.random.randint(1, 3)):
      flag = self.random.choice(known)
      name, _, value = flag.partition('=')
      argv.insert(
        self.random.randint(0, len(argv)),
        self.random.choice(
          (
            f'{self.typo(name)}={value}',
            self.typo(flag),
            flag,
            name,
            f'--no{name[2:]}',
            f'{name}={self.random.choice(TEXTS)}',
            f'{name}={self.random.choice(TEXTS)}',
            self.random.choice(TEXTS),
          )
        ),
      )
    return Case(f'{command} {argv}', lambda: run(command, argv))

  def override(self) -> Case:
    """A key of a config with a strange value, on the command line."""
    names = ('cifar10', 'cifar100', 'svhn', 'digits')
    path = self.random.choice(leaves(self.config()))
    argv = [
      f'--config=configs/{self.random.choice(names)}.py',
      f'--config.{path}={self.random.choice(TEXTS)}',
    ]
    return Case(f'main {argv}', lambda: run('main', argv))

  def value(self) -> Case:
    """A key of a config with a strange value, in a file."""
    config = self.config()
    path = self.random.choice(leaves(config))
    value = self.random.choice(VALUES)
    node, key = _node(config, path)
    # A rate may drop amidst of an epoch.
    like = (0.0,) if key == 'drop_epochs' else node[key]
    left_out = value is None and key.endswith('_dir')
    impossible = not left_out and not is_of_type(value, like)
    change(config, path, value)
    title = f'{config_name(config)}: {path}={value!r}'
    return Case(title, lambda: from_config.check(config), impossible)

  def missing(self) -> Case:
    """A config that lacks a key or a section."""
    config = self.config()
    path = self.random.choice(leaves(config))
    node, key = _node(config, path)
    with node.unlocked():
      del node[key]
    return Case(
      f'{config_name(config)}: without {path}',
      lambda: from_config.check(config),
    )

  def surplus(self) -> Case:
    """A config with a key that nobody reads."""
    config = self.config()
    path = self.random.choice(leaves(config))
    group, _, key = path.rpartition('.')
    wrong = f'{group}.{self.typo(key)}'.strip('.')
    if wrong == path:
      wrong += '_'
    change(config, wrong, self.random.choice((1, 0.1, 'x', (), {})))
    return Case(
      f'{config_name(config)}: with {wrong!r}',
      lambda: from_config.check(config),
      impossible=True,
    )

  def misspelt(self) -> Case:
    """A name of a registered part, misspelt."""
    config = self.config()
    paths = [
      path
      for path in leaves(config)
      if isinstance(_node(config, path)[0][path.rpartition('.')[2]], str)
      and not path.endswith('_dir')
      and path not in ('name', 'dataset.name')
    ]
    path = self.random.choice(paths)
    node, key = _node(config, path)
    name = f'{self.typo(node[key])}?'
    change(config, path, name)
    return Case(
      f'{config_name(config)}: {path}={name!r}',
      lambda: from_config.check(config),
      impossible=True,
    )

  def file(self) -> Case:
    """A config file that is broken, or holds no run."""
    name = self.random.choice(list(FILES))
    text = FILES[name]
    path = os.path.join(self.folder, f'{name}.py')
    with open(path, 'wb') as file:
      file.write(text if isinstance(text, bytes) else text.encode())
    command = self.random.choice(('main', 'convert', 'benchmark'))
    argv = [f'--config={path}{self.random.choice(("", ":", ":x"))}']
    if command == 'convert':
      argv += ['--workdir=w', '--from_torch=m.pt']
    return Case(
      f'{command} {argv}',
      lambda: run(command, argv),
      impossible=True,
      file=path,
    )

  def stages(self) -> Case:
    """Stages in another order, twice, or none."""
    config = self.config()
    names = [*config.stages, 'joint', 'third', '', None]
    stages = self.random.choices(names, k=self.random.randint(0, 4))
    value = self.random.choice((tuple, list))(stages)
    possible = config.stages[: len(stages)] == tuple(stages) and stages
    change(config, 'stages', value)
    return Case(
      f'{config_name(config)}: stages={value}',
      lambda: from_config.check(config),
      impossible=not possible,
    )


def config_name(config: ConfigDict) -> str:
  """Returns the name of a config, which may have none."""
  return str(config.get('name'))[:40]


def run(command: str, argv: list[str]) -> None:
  """Does what a command does before data and compilation."""
  with cli.mistakes_in_one_line():
    values = COMMANDS[command](['program', *argv])
    if command == 'benchmark':
      benchmark._check_config(values)
    elif command != 'report' and values.config is not None:
      from_config.check(values.config)
    if command == 'main':
      main.workdir_of(values)


def _too_long(*_) -> None:
  raise TimeoutError(f'took more than {LONGEST_SECS} s')


def find(case: Case) -> str:
  """Runs a case; returns what is wrong with it, '' for nothing."""
  printed = io.StringIO()
  before = signal.signal(signal.SIGALRM, _too_long)
  signal.setitimer(signal.ITIMER_REAL, LONGEST_SECS)
  accepted = False
  try:
    with (
      warnings.catch_warnings(record=True) as warned,
      contextlib.redirect_stderr(printed),
      contextlib.redirect_stdout(printed),
    ):
      warnings.simplefilter('always')
      case.call()
      accepted = True
  except SystemExit as stop:
    lines = printed.getvalue().rstrip('\n').split('\n')
    if stop.code != 2 or not lines[-1].startswith('error: '):
      return f'exit code {stop.code}: {lines[-1]!r}'
    own = case.file and any(case.file in line for line in lines[:-1])
    if len(lines) > 1 and not own:
      return f'{len(lines)} lines: {lines[:3]}'
  except ValueError as error:
    if '\n' in str(error) or not str(error):
      return f'not one line: {str(error)[:200]!r}'
  except BaseException as error:
    if isinstance(error, KeyboardInterrupt):
      raise
    at = traceback.extract_tb(error.__traceback__)[-1]
    return (
      f'{type(error).__name__}: {str(error)[:100]} '
      f'({os.path.basename(at.filename)}:{at.lineno})'
    )
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
  if warned:
    return f'{warned[0].category.__name__}: {warned[0].message}'
  return 'accepted' if accepted and case.impossible else ''


def fuzz(seed: int, cases: int) -> dict[str, str]:
  """Runs cases; returns {title: what is wrong} of the finds."""
  finds = {}
  with tempfile.TemporaryDirectory() as folder:
    drawn = Fuzz(seed, folder)
    for _ in range(cases):
      case = drawn.case()
      wrong = find(case)
      if wrong:
        finds[case.title] = wrong
  return finds


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--cases', type=int, default=300)
  arguments = parser.parse_args()
  found = fuzz(arguments.seed, arguments.cases)
  for title, wrong in found.items():
    print(f'{title[:300]}\n    {wrong}')
  kinds = collections.Counter(text.split(':')[0] for text in found.values())
  print(f'{arguments.cases} cases, {len(found)} finds {dict(kinds)}')
  sys.exit(bool(found))
