"""Registries: names in a config -> factories, whose arguments are its options.

A kind of part (losses, backbones, ...) has one registry. A factory takes
keyword arguments only; they are the options that a config may give. A name may
hold numbers, as 'wrn<depth>_<widen_factor>' or 'pgd_<steps>': they are passed
as arguments too. A user's config file registers its own parts:

    @losses.register('mine')
    def mine(*, weight):
      ...
"""

import difflib
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_NUMBER = r'(\d+(?:\.\d+)?)'
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
      kind: what the parts are, for errors: 'loss'.
      shared: arguments that the caller has for all parts: passed to a factory
        that takes them, no mistake if it does not.
    """
    self.kind = kind
    self.shared = shared
    self._factories: dict[str, Callable] = {}

  def register(self, name: str) -> Callable[[Callable], Callable]:
    """Returns a decorator that registers a factory under a name.

    Args:
      name: may hold numbers: 'wrn<depth>_<widen_factor>'.

    Raises:
      ValueError: the name is taken by a factory of another file, or the
        factory has arguments that cannot be given by keyword.
    """

    def add(factory: Callable) -> Callable:
      taken = self._factories.get(name)
      # The same file again, as a notebook or a second parse loads it: replaced.
      if taken is not None and _origin(taken) != _origin(factory):
        raise ValueError(
          f'{self.kind} {name!r}: registered already, by {_origin(taken)[0]}'
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
      self._factories[name] = factory
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
    if name in self._factories and '<' not in name:
      return self._factories[name], {}
    for registered, factory in self._factories.items():
      fields = _FIELD.findall(registered)
      pattern = _FIELD.sub('\0', registered)
      pattern = re.escape(pattern).replace(re.escape('\0'), _NUMBER)
      match = fields and re.fullmatch(pattern, str(name))
      if match:
        numbers = map(json.loads, match.groups())
        return factory, dict(zip(fields, numbers, strict=True))
    raise ValueError(
      f'{where or self.kind}: got {name!r}, choices are {listed(self)}'
      f'{nearest(name, self)}'
    )

  def options(self, name: str) -> dict[str, inspect.Parameter]:
    """Returns {argument: parameter} of what a config may give for a name."""
    factory, numbers = self.find(name)
    parameters = inspect.signature(factory).parameters
    return {
      key: parameter
      for key, parameter in parameters.items()
      if key not in self.shared and key not in numbers
    }

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
      options: its own arguments, as the config gives them.
      where: what gives them, for errors: 'config.main_head.loss'.
      **shared: values for `self.shared`.

    Returns:
      What the factory returns.

    Raises:
      ValueError: no such name; surplus or missing options.
    """
    where = where or self.kind
    factory, numbers = self.find(name, f'{where}.name' if options else where)
    known = self.options(name)
    options = dict(options or {})
    surplus = sorted(options.keys() - known.keys())
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
    taken = inspect.signature(factory).parameters
    given = {k: v for k, v in shared.items() if k in taken}
    return factory(**given, **options, **numbers)


def _origin(factory: Callable) -> tuple[str, str]:
  """Returns (file, name) of where a factory is written."""
  inner = inspect.unwrap(factory)
  code = getattr(inner, '__code__', None)
  file = code.co_filename if code else getattr(inner, '__module__', '')
  return str(file), getattr(inner, '__qualname__', repr(inner))
