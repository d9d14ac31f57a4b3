"""Finds and loads config files, and unshares their parts."""

import copy
import difflib
import importlib
import importlib.machinery
import importlib.util
import inspect
import logging
import os
import sys
import traceback
import types
from typing import Any

from ml_collections import (
  ConfigDict,
  FieldReference,
  FrozenConfigDict,
  config_dict,
)

from dhat_jax.runtime import files

# The package's own configs: of the wheel, or of the checkout by a link.
INSTALLED = os.path.join(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'configs'
)
_MODULE = 'dhat_jax_config_file'


def read(argument: str) -> ConfigDict:
  """Returns the config that --config names, ready for overrides.

  Args:
    argument: 'FILE.py' or 'FILE.py:variant'.

  Raises:
    ValueError: no such file, no such variant, or an error in the file.
  """
  path, colon, variant = argument.partition(':')
  return unshare(load(locate(path), variant if colon else None))


def locate(path: str) -> str:
  """Returns the absolute path of a config file.

  Args:
    path: relative to the current folder. If there is no such file and it ends
      in 'configs/<name>.py', the installed config of that name is used.

  Raises:
    ValueError: no such file, or not Python.
  """
  where = '--config: got '
  expanded = files.user_path(path)
  if not expanded.endswith('.py') or os.path.isdir(expanded):
    raise ValueError(
      f'{where}{path!r}, expected FILE.py or FILE.py:variant{_choices(path)}'
    )
  if os.path.isfile(expanded):
    return os.path.abspath(expanded)
  folder, name = os.path.split(expanded)
  ours = os.path.join(INSTALLED, name)
  if os.path.basename(folder) == 'configs' and os.path.isfile(ours):
    logging.getLogger('dhat_jax').warning(
      '--config: no file %r here, taking the installed %s', path, ours
    )
    return ours
  raise ValueError(f'{where}{path!r}, which is no file{_choices(path)}')


def list_installed() -> list[str]:
  """Returns the names of the package's configs, as --config takes them."""
  names = []
  for name in sorted(os.listdir(INSTALLED)):
    if name.endswith('.py'):
      with open(os.path.join(INSTALLED, name), encoding='utf-8') as file:
        if 'def get_config(' in file.read():
          names.append(f'configs/{name}')
  return names


def _choices(path: str) -> str:
  """Returns '; choices are ...' if one of our configs may be meant."""
  names = list_installed() if os.path.isdir(INSTALLED) else []
  folder, name = os.path.split(path)
  close = difflib.get_close_matches(
    name.removesuffix('.py'),
    [os.path.basename(ours).removesuffix('.py') for ours in names],
  )
  if not names or not (close or os.path.basename(folder) == 'configs'):
    return ''
  return f'; choices are {", ".join(names)}'


def load(path: str, variant: str | None = None) -> ConfigDict:
  """Runs a config file and returns what its `get_config` returns.

  Args:
    path: the file.
    variant: the argument of `get_config`; None: no argument.

  Raises:
    ValueError: an error in the file. Unless it is a ValueError too, its
      traceback is printed first, for the author of the file.
  """
  with_variant = () if variant is None else (variant,)
  try:
    module = _run(path)
    get_config = getattr(module, 'get_config', None)
    if get_config is None:
      raise ValueError('no function get_config in it')
    if not callable(get_config):
      raise ValueError(
        f'get_config: got {type(get_config).__name__}, expected a function'
      )
    _check_takes(get_config, with_variant)
    config = get_config(*with_variant)
    if not isinstance(config, ConfigDict | dict):
      raise ValueError(
        f'get_config: got {type(config).__name__}, expected to return a '
        'ConfigDict'
      )
    if isinstance(config, FrozenConfigDict | dict):
      config = ConfigDict(config)
    return config
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error
  except (Exception, SystemExit) as error:
    _print_traceback(error, path)
    raise ValueError(f'{path}: {type(error).__name__}: {error}') from error


def _check_takes(get_config: Any, arguments: tuple[str, ...]) -> None:
  try:
    inspect.signature(get_config).bind(*arguments)
  except TypeError as error:
    got = f'variant {arguments[0]!r}' if arguments else 'no variant'
    raise ValueError(
      f'got {got}, but get_config{inspect.signature(get_config)} is in it'
    ) from error


def _print_traceback(error: Exception, path: str) -> None:
  """Prints the traceback of an error, from the config file's line on."""
  rest = error.__traceback__
  while rest and rest.tb_frame.f_code.co_filename != path:
    rest = rest.tb_next
  if rest is None and getattr(error, 'filename', None) != path:
    return  # it says no more than the one line that follows
  traceback.print_exception(type(error), error, rest)


def _run(path: str) -> types.ModuleType:
  """Runs a Python file as a new module and returns it."""
  _open_configs(os.path.dirname(path))
  loader = importlib.machinery.SourceFileLoader(_MODULE, path)
  spec = importlib.util.spec_from_loader(_MODULE, loader)
  module = importlib.util.module_from_spec(spec)
  sys.modules[_MODULE] = module  # as dataclasses in it expect
  loader.exec_module(module)
  return module


def _open_configs(folder: str) -> None:
  """Makes `configs.<name>` importable: a user's configs, and ours.

  A config file imports its neighbours as `<folder>.<name>`, and the package's
  configs as `configs.<name>`. This works even if its folder has that name too,
  and if the package is installed, where `configs` is not a top-level package.

  Args:
    folder: the config file's.
  """
  if (parent := os.path.dirname(folder)) not in sys.path:
    sys.path.insert(0, parent)
  try:
    package = importlib.import_module('configs')
  except ModuleNotFoundError as error:
    if error.name != 'configs':
      raise
    package = sys.modules['configs'] = types.ModuleType('configs')
  folders = [*getattr(package, '__path__', ()), INSTALLED]
  if os.path.basename(folder) == 'configs':
    folders.insert(0, folder)
  package.__path__ = list(dict.fromkeys(folders))


def unshare(config: ConfigDict) -> ConfigDict:
  """Gives every place in a config its own value; changes it in place.

  If a config file uses one dict for two stages, it is one node at two places,
  and an override of either changes both. The same holds for a placeholder. Both
  are copied here. Deliberate links stay: references that hold a value
  (`get_ref`, `FieldReference(value)`), also into copies.

  Args:
    config: any.

  Returns:
    The same object.

  Raises:
    ValueError: a node that contains itself.
  """
  return _Unsharing(config).visit(config, ())


class _Unsharing:
  """The walk of `unshare`."""

  def __init__(self, root: ConfigDict):
    self._root = root
    self._seen: dict[int, Any] = {}  # {id: object}, which keeps ids in use

  def visit(self, value: Any, above: tuple[int, ...]) -> Any:
    """Returns a value, or a copy if another place has it; visits its items."""
    if isinstance(value, tuple) and type(value) is tuple:
      items = [self.visit(item, above) for item in value]
      same = all(a is b for a, b in zip(items, value, strict=True))
      return value if same else tuple(items)
    if not isinstance(value, ConfigDict | FieldReference | dict | list):
      return value
    if id(value) in above:
      raise ValueError('config: a part of it contains itself')
    if id(value) in self._seen:
      return self._copy(value)
    self._seen[id(value)] = value
    above = (*above, id(value))
    if isinstance(value, FieldReference):
      if not value.empty():
        self.visit(value.get(), above)
      return value
    for key, child in _items(value):
      visited = self.visit(child, above)
      if visited is not child:
        _replace(value, key, visited)
    return value

  def _copy(self, value: Any) -> Any:
    if isinstance(value, FieldReference):
      return copy.copy(value) if value.empty() else value
    # deepcopy takes what its memo has: links to other places stay links.
    return copy.deepcopy(value, _links(self._root, without=value))


def _items(value: Any) -> list[tuple[Any, Any]]:
  """Returns the (key, child) pairs of a container, references unresolved."""
  if isinstance(value, ConfigDict):
    return list(value.items(preserve_field_references=True))
  if isinstance(value, dict):
    return list(value.items())
  return list(enumerate(value)) if isinstance(value, list | tuple) else []


def _replace(container: Any, key: Any, value: Any) -> None:
  """Sets an item; replaces a reference instead of writing through it."""
  if not isinstance(container, ConfigDict):
    container[key] = value
    return
  with container.unlocked():
    del container[key]
    container[key] = value


def _links(root: ConfigDict, *, without: Any) -> dict[int, FieldReference]:
  """Returns {id: reference} of references to a value outside of a part."""
  links, seen, pending = {}, {id(without)}, [root]
  while pending:
    value = pending.pop()
    if id(value) in seen:
      continue
    seen.add(id(value))
    if isinstance(value, FieldReference) and not value.empty():
      links[id(value)] = value
      pending.append(value.get())
    pending += [child for _, child in _items(value)]
  return links


def release_required(config: ConfigDict, prefix: str = '') -> list[str]:
  """Turns required placeholders into ones that flags can fill.

  Returns:
    Their dotted keys.
  """
  paths = []
  for key, value in _items(config):
    if isinstance(value, ConfigDict):
      paths += release_required(value, f'{prefix}{key}.')
    elif isinstance(value, FieldReference) and value.empty():
      try:
        value.get()
      except config_dict.RequiredValueError:
        paths.append(f'{prefix}{key}')
        _replace(config, key, config_dict.placeholder(value.get_type()))
  return paths
