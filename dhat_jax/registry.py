"""Registries: names in a config -> factories, whose arguments are options.

A kind of part (losses, backbones, ...) has one registry. A factory takes
keyword arguments only; they are the options that a config may give. A name may
hold numbers, as 'wrn<depth>_<widen_factor>' or 'pgd_<steps>'; they are passed
as arguments too. A user's config file registers its own parts:

    @losses.register('mine')
    def mine(*, weight):
      ...
"""

import difflib
import inspect
import os
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_NUMBER = r'([0-9]+(?:\.[0-9]+)?)'
_FIELD = re.compile(r'<(\w+)>')


def listed(names: Any) -> str:
  """Formats choices, as in every error: ('a', 'b')."""
  return str(tuple(names))


def nearest(got: str, names: Any) -> str:
  """Returns '; did you mean ...?' for a name like `got`, or ''."""
  close = difflib.get_close_matches(str(got), [str(n) for n in names], n=1)
  return f'; did you mean {close[0]!r}?' if close else ''


class Registry(Mapping):
  """Factories of one kind of part, by name.

  As a mapping: {registered name: factory}, in the order of registration.
  """

  def __init__(self, kind: str, *, shared: tuple[str, ...] = ()):
    """Creates an empty registry.

    Args:
      kind: what the parts are called in errors: 'loss'.
      shared: arguments that the caller has for all parts. A factory gets those
        that it takes.
    """
    self.kind = kind
    self.shared = shared
    self._factories: dict[str, Callable] = {}
    self._origins: dict[str, str] = {}

  def register(self, name: str) -> Callable[[Callable], Callable]:
    """Returns a decorator that registers a factory under a name.

    The same file may register a name again, as a notebook or a second parse of
    a config does. The newer factory replaces the older one.

    Args:
      name: may hold numbers: 'wrn<depth>_<widen_factor>'.

    Raises:
      ValueError: the name was registered by another file, or the factory has
        arguments that cannot be given by keyword.
    """
    # The file that calls, because a class or a partial does not know its own.
    origin = _origin(sys._getframe(1))

    def add(factory: Callable) -> Callable:
      taken_by = self._origins.get(name, origin)
      if taken_by != origin:
        raise ValueError(
          f'{self.kind} {name!r}: registered already, by {taken_by}'
        )
      for argument in inspect.signature(factory).parameters.values():
        if argument.kind in (
          argument.POSITIONAL_ONLY,
          argument.VAR_POSITIONAL,
          argument.VAR_KEYWORD,
        ):
          raise ValueError(
            f'{self.kind} {name!r}: got argument {argument}, expected '
            'arguments that can be given by keyword, and no others'
          )
      missing = set(_FIELD.findall(name)) - set(_parameters(factory))
      if missing:
        raise ValueError(
          f'{self.kind} {name!r}: got a factory without {sorted(missing)}, '
          'expected an argument for each number in the name'
        )
      self._factories[name] = factory
      self._origins[name] = origin
      return factory

    return add

  def __getitem__(self, name: str) -> Callable:
    return self._factories[name]

  def __iter__(self) -> Iterator[str]:
    return iter(self._factories)

  def __len__(self) -> int:
    return len(self._factories)

  def find(self, name: Any, where: str = '') -> tuple[Callable, dict[str, Any]]:
    """Returns (factory, numbers in the name) of a name.

    Args:
      name: 'trades', 'wrn34_10', ...
      where: what gave the name, for the error: 'config.main_head.loss.name'.

    Raises:
      ValueError: no such name; the choices are listed.
    """
    text = name if isinstance(name, str) else ''
    if text in self._factories and not _FIELD.search(text):
      return self._factories[text], {}
    for registered, factory in self._factories.items():
      numbers = _numbers(registered, factory, text)
      if numbers:
        return factory, numbers
    raise ValueError(
      f'{where or self.kind}: got {name!r}, choices are {listed(self)}'
      f'{nearest(name, self)}'
    )

  def options(self, name: Any) -> dict[str, inspect.Parameter]:
    """Returns {argument: parameter} of what a config may give for a name."""
    factory, numbers = self.find(name)
    return {
      key: parameter
      for key, parameter in _parameters(factory).items()
      if key not in self.shared and key not in numbers
    }

  def check(
    self,
    name: Any,
    options: Mapping[str, Any] | None = None,
    /,
    *,
    where: str = '',
  ) -> None:
    """Raises what `make` raises of a wrong name or wrong options.

    Args:
      name: of the part.
      options: its own arguments, as the config gives them.
      where: what gives them, for errors: 'config.main_head.loss'.

    Raises:
      ValueError: no such name; surplus or missing options.
    """
    where = where or self.kind
    self.find(name, where if options is None else f'{where}.name')
    known = self.options(name)
    options = {} if options is None else options
    if not isinstance(options, Mapping):
      raise ValueError(f'{where}: got {options!r}, expected a dict of options')
    surplus = sorted(map(str, options.keys() - known.keys()))
    if surplus:
      raise ValueError(
        f'{where}: got {listed(surplus)}, choices for {name!r} are '
        f'{listed(known)}{nearest(surplus[0], known)}'
      )
    missing = [
      key
      for key, parameter in known.items()
      if parameter.default is parameter.empty and key not in options
    ]
    if missing:
      raise ValueError(f'{where}: {name!r} lacks {listed(missing)}')

  def make(
    self,
    name: Any,
    options: Mapping[str, Any] | None = None,
    /,
    *,
    where: str = '',
    **shared: Any,
  ) -> Any:
    """Makes the part of a name.

    Args:
      name: of the part.
      options: its own arguments, as the config gives them; None where the
        config gives a name alone.
      where: what gives them, for errors: 'config.main_head.loss'.
      **shared: values for `self.shared`.

    Returns:
      What the factory returns.

    Raises:
      ValueError: no such name; surplus or missing options; or the factory's
        own, behind `where`.
    """
    self.check(name, options, where=where)
    factory, numbers = self.find(name)
    taken = _parameters(factory)
    given = {key: value for key, value in shared.items() if key in taken}
    lacking = [
      key
      for key, parameter in taken.items()
      if key in self.shared
      and parameter.default is parameter.empty
      and key not in given
    ]
    if lacking:
      raise ValueError(
        f'{where or self.kind}: {name!r} lacks {listed(lacking)}'
      )
    try:
      return factory(**given, **(options or {}), **numbers)
    except ValueError as error:
      raise ValueError(f'{where or self.kind}: {error}') from error


def _parameters(factory: Callable) -> Mapping[str, inspect.Parameter]:
  return inspect.signature(factory).parameters


def _numbers(
  registered: str, factory: Callable, name: str
) -> dict[str, int | float]:
  """Returns the numbers of a name; {} if it does not match."""
  fields = _FIELD.findall(registered)
  literals = [re.escape(text) for text in _FIELD.split(registered)[::2]]
  match = re.fullmatch(_NUMBER.join(literals), name)
  if not match:
    return {}
  numbers = {
    field: int(text) if text.isdigit() else float(text)
    for field, text in zip(fields, match.groups(), strict=True)
  }
  types_of = {key: p.annotation for key, p in _parameters(factory).items()}
  fractions = [key for key, value in numbers.items() if value != int(value)]
  if any(types_of[key] in (int, 'int') for key in fractions):
    return {}
  return numbers


def _origin(frame: types.FrameType) -> str:
  """Returns the file that a frame runs; a notebook's cells are one file."""
  names = frame.f_globals
  if names.get('__file__'):
    return os.path.abspath(names['__file__'])
  return str(names.get('__name__') or frame.f_code.co_filename)
