"""The command line of every command: flags, configs, overrides, mistakes.

A command creates its flags with `new_flags`, adds its own, and calls `parse`
inside of `mistakes_in_one_line`. Then `values.config` is the config.

`--config FILE` and `-config=FILE` mean `--config=FILE`. Flags may have any
order. If an override is given twice, the last one counts.
"""

import contextlib
import difflib
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from dhat_jax.runtime import config_file, files, signals

_OVERRIDE = re.compile(
  r'--?(?P<no>no)?config\.(?P<path>[^=]*)(=(?P<value>.*))?', re.DOTALL
)
_EXPECTED = {
  bool: 'true or false',
  int: 'an integer',
  float: 'a number',
  tuple: "a tuple, as '(1, 2)' or '(\"a\",)'",
  ConfigDict: 'a dict, as \'{"key": 1}\'',
}
_FIXED = {
  list: 'a list, which no flag can change; make it a tuple in the config file',
  type(None): (
    'None, which has no type; make it a placeholder(type) in the config file'
  ),
}


class _PathParser(flags.ArgumentParser):
  """A path that a user gives."""

  def parse(self, argument: str) -> str:
    return files.user_path(argument)

  def flag_type(self) -> str:
    return 'path'


def new_flags(
  usage: str, *, takes_config: bool = False, default_config: str | None = None
) -> flags.FlagValues:
  """Returns a new set with the flags of every command.

  Args:
    usage: what --help prints.
    takes_config: whether it has --config and overrides.
    default_config: the default of --config; None: it must be given.
  """
  values = flags.FlagValues()
  flags.DEFINE_bool('help', False, usage, short_name='h', flag_values=values)
  if takes_config:
    flags.DEFINE_multi_string(
      'config',
      [default_config] if default_config else [],
      'Config file, FILE.py or FILE.py:variant.',
      flag_values=values,
    )
  # Flags are flags wherever they are.
  values.set_gnu_getopt(True)
  return values


def define_path(
  values: flags.FlagValues,
  name: str,
  help_string: str,
  *,
  several: bool = False,
) -> None:
  """Defines a flag for a path, or for a list of them, in which ~ works."""
  parser, serializer = _PathParser(), flags.ArgumentSerializer()
  if several:
    flags.DEFINE_multi(
      parser, serializer, name, [], help_string, flag_values=values
    )
  else:
    flags.DEFINE(
      parser,
      name,
      None,
      help_string,
      flag_values=values,
      serializer=serializer,
    )


def parse(
  values: flags.FlagValues,
  argv: Sequence[str],
  *,
  needs_config: bool = True,
  describe: Callable[[ConfigDict], str] | None = None,
) -> None:
  """Parses a command line; sets `values.config` to the overridden config.

  Args:
    values: of `new_flags`, with the command's flags.
    argv: the command line; argv[0] is the program.
    needs_config: whether --config must be given; else `values.config` is None
      without it.
    describe: config -> what --help prints of its keys, below the usage.

  Raises:
    SystemExit: --help was given; the usage is printed.
    ValueError, absl.flags.Error: a mistake in it, or in the config file.
  """
  rest = values(list(argv), known_only=True)[1:]
  if values.help:
    print(values['help'].help.strip())
    if describe is not None and values.config:
      print(f'\n{_keys_help(values.config[-1], describe)}')
    sys.exit(0)
  if 'config' not in values:
    _refuse(rest, values)
    return
  paths = values.config
  if len(paths) > 1:
    raise ValueError(
      f'--config: got {" and ".join(map(repr, paths))}, expected one'
    )
  if not paths and not needs_config:
    _refuse(rest, values)
    values.config = None
    return
  if not paths:
    raise ValueError('--config: got nothing, expected FILE.py')
  config = config_file.read(paths[0])
  _override(config, _split_overrides(rest, values, config))
  values.config = config


def _keys_help(path: str, describe: Callable[[ConfigDict], str]) -> str:
  """Returns the keys of a config file, with its values."""
  return f'Every key of {path}, with its value:\n\n' + describe(
    config_file.read(path)
  )


def _refuse(arguments: Iterable[str], values: flags.FlagValues) -> None:
  """Raises ValueError for arguments that are not flags of a command."""
  positional = []
  for argument in arguments:
    name = argument.lstrip('-').partition('=')[0]
    if argument.startswith('-') and name:
      raise ValueError(f'--{name}: no such flag{_nearest_flag(name, values)}')
    positional.append(argument)
  if positional:
    raise ValueError(f'arguments: got {positional}, expected flags only')


def _nearest_flag(name: str, values: flags.FlagValues) -> str:
  """Returns '; nearest is --flag' for a wrong flag, or ''."""
  flag, dot, key = name.partition('.')
  names = _closest(flag, list(values))
  if not names:
    return ''
  rest = f'{dot}{key}' if names[0] == 'config' else ''
  return f'; {nearest_are([f"--{names[0]}{rest}"])}'


def _split_overrides(
  arguments: Iterable[str], values: flags.FlagValues, config: ConfigDict
) -> dict[str, str]:
  """Returns {dotted key: text} of the overrides; the last of two counts."""
  overrides, others = {}, []
  iterator = iter(arguments)
  for argument in iterator:
    match = _OVERRIDE.fullmatch(argument)
    if match is None:
      others.append(argument)
      continue
    path, value = match['path'], match['value']
    if match['no'] and value is None:
      value = 'false'
    elif match['no']:
      raise ValueError(f'{argument}: expected no value')
    elif value is None and _type_of(path, config) is bool:
      value = 'true'
    elif value is None:
      value = next(iterator, None)
    if value is None:
      raise ValueError(f'config.{path}: got nothing, expected a value')
    overrides.pop(path, None)
    overrides[path] = value
  _refuse(others, values)
  return overrides


def _type_of(path: str, config: ConfigDict) -> type | None:
  """Returns the type of a config's key; None if absent or inside of a value."""
  *groups, key = path.split('.')
  for group in groups:
    config = config.get(group) if isinstance(config, ConfigDict) else None
  if isinstance(config, ConfigDict) and key in config:
    return config.get_type(key)
  return None


def _override(config: ConfigDict, overrides: dict[str, str]) -> None:
  """Applies the overrides of the command line to a config, and locks it."""
  required = config_file.release_required(config)
  # A group before the keys in it, which it may bring.
  for path in sorted(overrides, key=lambda path: path.count('.')):
    _override_one(config, path, overrides[path])
  for path in required:
    if _type_of(path, config) and config[path] is None:
      raise ValueError(f'config.{path}: got nothing, give --config.{path}=...')
  config.lock()


def _override_one(config: ConfigDict, path: str, value: str) -> None:
  field_type = _type_of(path, config)
  argv = ['', f'--config.{path}={value}']
  values = flags.FlagValues()
  try:
    config_flags.DEFINE_config_dict(
      'config', config, flag_values=values, lock_config=False, sys_argv=argv
    )
    values(argv)
  except (AttributeError, IndexError, KeyError) as error:
    raise _no_such_key(config, path) from error
  except (flags.Error, TypeError, ValueError) as error:
    if field_type is None and not isinstance(error, flags.Error):
      raise _no_such_key(config, path) from error
    where = f'config.{path}: got {value!r}'
    if field_type in _FIXED:
      raise ValueError(f'{where} for {_FIXED[field_type]}') from error
    if field_type in _EXPECTED:
      raise ValueError(f'{where}, expected {_EXPECTED[field_type]}') from error
    raise ValueError(f'{where}: {_one_line(error)}') from error


def _no_such_key(config: ConfigDict, path: str) -> ValueError:
  """Returns an error that names the nearest keys."""
  names = _closest(path, list(_paths(config)))
  if names:
    hint = nearest_are([f'config.{name}' for name in names])
  else:
    group, node = 'config', config
    for key in path.split('.'):
      if not isinstance(node, ConfigDict) or key not in node:
        break
      group, node = f'{group}.{key}', node[key]
    hint = f'{group} has no keys'
    if isinstance(node, ConfigDict) and node:
      hint = f'{group} has {", ".join(node)}'
      if 'name' in node:  # of a part, whose options may be others
        hint += f"; to replace it: --{group}='{{...}}'"
  return ValueError(f'config.{path}: no such key; {hint}')


def _paths(config: ConfigDict, prefix: str = '') -> Iterator[str]:
  """Yields the dotted keys of a config, groups included."""
  for key in config:
    yield f'{prefix}{key}'
    value = config.get(key)
    if isinstance(value, ConfigDict):
      yield from _paths(value, f'{prefix}{key}.')


def _closest(wanted: str, names: list[str], count: int = 3) -> list[str]:
  """Returns the nearest dotted names, the likeliest first."""
  group, _, key = wanted.rpartition('.')

  def likeness(name: str) -> float:
    name_group, _, name_key = name.rpartition('.')
    similar = difflib.SequenceMatcher(None, key, name_key).ratio()
    # 'lr' is the learning_rate.
    initials = ''.join(word[:1] for word in name_key.split('_'))
    if len(key) > 1 and key in (initials, name_key[: len(key)]):
      similar = max(similar, 0.8)
    groups = difflib.SequenceMatcher(None, group, name_group).ratio()
    enough = 0.6 if group == name_group else 0.75
    return similar + 0.2 * groups if similar >= enough else 0.0

  scores = {name: likeness(name) for name in names}
  ranked = sorted(scores, key=scores.get, reverse=True)
  return [name for name in ranked[:count] if scores[name] > 0]


def nearest_are(names: Sequence[str]) -> str:
  """Formats the nearest names: 'nearest is a', 'nearest are a, b'."""
  return f'nearest {"is" if len(names) == 1 else "are"} {", ".join(names)}'


def _one_line(error: Exception) -> str:
  return ' '.join(str(error).split())


def fail(message: Any) -> NoReturn:
  """Ends the program with one line on stderr and exit code 2."""
  print(f'error: {message}', file=sys.stderr)
  sys.exit(2)


@contextlib.contextmanager
def mistakes_in_one_line(*others: type[Exception]) -> Iterator[None]:
  """Turns a user's mistake into one line on stderr and exit code 2.

  Ctrl-C gives one line too, and exit code 130.

  Args:
    *others: further exceptions that are a user's mistake.
  """
  try:
    yield
  except flags.Error as error:
    fail(_one_line(error))
  except (ImportError, OSError, ValueError, *others) as error:
    fail(error)
  except KeyboardInterrupt:
    print('stopped', file=sys.stderr)
    sys.exit(signals.exit_code(signal.SIGINT))
