"""Small readers of config values, each with one clear error."""

import json
from typing import Any

import ml_collections


def as_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns a config as plain JSON values (tuples become lists)."""
  return json.loads(config.to_json())


def choose(name: str, got: Any, choices: Any) -> Any:
  """Returns `choices[got]` (or `got`), or raises with the choices listed."""
  if got not in choices:
    raise ValueError(f'{name}: got {got!r}, choices are {tuple(choices)}')
  return choices[got] if isinstance(choices, dict) else got


def at_least(name: str, got: float, least: float = 1) -> float:
  """Returns a number that is not below `least`, or raises."""
  if not got >= least:
    raise ValueError(f'{name}: got {got}, expected at least {least}')
  return got


def in_unit(
  spec: ml_collections.ConfigDict, name: str, where: str = ''
) -> float:
  """Returns `name` in [0, 1] units; `name_255`, where given, has precedence.

  With `lengths_255` the only place where numbers over 255 are converted.

  Args:
    spec: a group of the config.
    name: of the value in it.
    where: what the group is called, for errors: 'config.evaluation'.
  """
  over_255 = spec[f'{name}_255']
  value = spec[name] if over_255 is None else over_255 / 255
  path = f'{where}.{name}' if where else name
  if value is None:
    raise ValueError(f'{path}: got nothing; give {name} or {name}_255')
  if not 0 <= value <= 1:
    raise ValueError(
      f'{path}: got {value}, expected in [0, 1]; for lengths over 255 there is '
      f'{name}_255'
    )
  return value


def lengths_255(name: str, values: tuple[float, ...]) -> dict[str, float]:
  """Returns {'8/255': 8 / 255, ...} of different lengths over 255."""
  labels = {f'{value:g}/255': value / 255 for value in values}
  if len(labels) < len(values) or not all(0 <= v <= 255 for v in values):
    raise ValueError(
      f'{name}: got {tuple(values)}, expected different numbers in [0, 255]'
    )
  return labels
