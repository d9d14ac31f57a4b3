"""Checks of arguments: numbers, flags, texts, tuples.

Each function returns its argument, or raises a ValueError of one line that
names the argument, what was given and what was expected. A bool, NaN and
infinity are not numbers, and 3.0 is not an integer.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

# What a step counter can hold, and what an array of float32 can.
LARGEST_INTEGER = 2**31 - 1
LARGEST_NUMBER = float(np.finfo(np.float32).max)
_LONGEST = 120


def shown(got: Any) -> str:
  """Returns a value for an error, on one short line."""
  text = ' '.join(repr(got).split())
  return text if len(text) <= _LONGEST else f'{text[: _LONGEST - 3]}...'


def mistake(name: str, got: Any, expected: str) -> ValueError:
  """Returns the error of an argument."""
  return ValueError(f'{name}: got {shown(got)}, expected {expected}')


def integer(
  name: str, got: Any, least: int | None = None, most: int = LARGEST_INTEGER
) -> int:
  """Returns an integer in [least, most], or raises.

  Args:
    name: of the argument, for the error.
    got: what was given; NumPy's integers too. A traced value passes, since it
      is known only when the compiled function runs.
    least: None: no bound.
    most: the largest one.
  """
  if isinstance(got, jax.core.Tracer):
    return got
  try:
    value = None if _is_flag(got) else operator.index(got)
  except TypeError:
    value = None
  if value is None or (least is not None and value < least) or value > most:
    bounds = '' if least is None else f' >= {least}'
    if value is not None and value > most:
      bounds = f' <= {most}' if least is None else f' in [{least}, {most}]'
    raise mistake(name, got, f'an integer{bounds}')
  return got


def number(
  name: str,
  got: Any,
  least: float | None = None,
  most: float | None = None,
  *,
  above: float | None = None,
  below: float | None = None,
) -> float:
  """Returns a finite number within bounds, or raises.

  Args:
    name: of the argument, for the error.
    got: what was given; NumPy's numbers too.
    least: the smallest one. None: no bound.
    most: the largest one.
    above: an exclusive bound.
    below: likewise.
  """
  value = _as_float(got)
  if (
    value is None
    or (least is not None and value < least)
    or (most is not None and value > most)
    or (above is not None and value <= above)
    or (below is not None and value >= below)
  ):
    raise mistake(name, got, _range(least, most, above, below))
  if isinstance(got, int) and abs(got) > LARGEST_INTEGER:
    # JAX would make an int32 of it.
    raise mistake(name, got, f'an integer <= {LARGEST_INTEGER}, or a float')
  return got


def _range(
  least: float | None,
  most: float | None,
  above: float | None,
  below: float | None,
) -> str:
  low, high = (
    (above if least is None else least),
    below if most is None else most,
  )
  if low is None and high is None:
    return 'a finite number'
  if high is None:
    return f'a finite number {">=" if above is None else ">"} {low}'
  if low is None:
    return f'a finite number {"<=" if below is None else "<"} {high}'
  opens, closes = '[' if above is None else '(', ']' if below is None else ')'
  return f'in {opens}{low}, {high}{closes}'


def _as_float(got: Any) -> float | None:
  """Returns a finite number as a float; None for anything else."""
  if _is_flag(got) or isinstance(got, str | bytes) or np.ndim(got):
    return None
  try:
    value = float(got)
  except (TypeError, ValueError, OverflowError):
    return None
  return (
    value if math.isfinite(value) and abs(value) <= LARGEST_NUMBER else None
  )


def _is_flag(got: Any) -> bool:
  dtype = getattr(got, 'dtype', None)
  return isinstance(got, bool | np.bool_) or dtype == np.dtype(bool)


def flag(name: str, got: Any) -> bool:
  """Returns a bool, or raises."""
  if not isinstance(got, bool | np.bool_):
    raise mistake(name, got, 'true or false')
  return got


def text(name: str, got: Any) -> str:
  """Returns a string, or raises."""
  if not isinstance(got, str):
    raise mistake(name, got, 'a string')
  return got


def function(name: str, got: Any) -> Callable:
  """Returns a callable, or raises."""
  if not callable(got):
    raise mistake(name, got, 'a function')
  return got


def sequence(
  name: str, got: Any, check: Callable[[str, Any], Any] | None = None
) -> Sequence[Any]:
  """Returns a tuple or list, or raises.

  Args:
    name: of the argument, for the error.
    got: what was given.
    check: (name, item) -> any, which raises for a wrong item.
  """
  if not isinstance(got, tuple | list):
    raise mistake(name, got, 'a tuple')
  for index, item in enumerate(got):
    if check is not None:
      check(f'{name}[{index}]', item)
  return got


def one_of(name: str, got: Any, choices: Any) -> Any:
  """Returns `choices[got]` (or `got`), or raises with the choices listed."""
  try:
    known = got in choices
  except (TypeError, ValueError):  # unhashable; an array
    known = False
  if not known:
    raise ValueError(f'{name}: got {shown(got)}, choices are {tuple(choices)}')
  return choices[got] if isinstance(choices, dict) else got
