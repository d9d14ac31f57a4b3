"""The code of attacks that a user registers, on which their records depend."""

import inspect
import pathlib
import sys
import sysconfig
from collections.abc import Callable, Mapping
from typing import Any


def code_of(factory: Callable) -> dict[str, str]:
  """Returns {name: text} of a factory's module and of the modules it imports.

  Installed packages and this one are left out; every record has their versions.
  """
  factory = inspect.unwrap(factory)
  found: dict[str, str] = {}
  names = getattr(factory, '__globals__', None)
  if names is None:  # an object that can be called
    names = vars(sys.modules[type(factory).__module__])
  _collect(names, found)
  return found


def _collect(names: Mapping[str, Any], found: dict[str, str]) -> None:
  """Adds the texts of a module and of its imports."""
  path = names.get('__file__')
  if not path or not pathlib.Path(path).is_file() or _is_installed(path):
    return
  name = names['__name__']
  if name in found:
    return
  found[name] = pathlib.Path(path).read_text(encoding='utf-8')
  for value in list(names.values()):
    module = value if inspect.ismodule(value) else inspect.getmodule(value)
    if module is not None:
      _collect(vars(module), found)


def _is_installed(path: str) -> bool:
  libraries = ('stdlib', 'purelib', 'platlib')
  folders = [sysconfig.get_path(name) for name in libraries]
  folders.append(str(pathlib.Path(__file__).parent.parent))
  return any(pathlib.Path(path).is_relative_to(folder) for folder in folders)
