"""Checks of the arguments of an attack, before anything runs.

An error is one line with the argument, what was given and what is expected.
Traced values pass, since they are known only when the compiled function runs.
"""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np


def is_traced(value: Any) -> bool:
  """Returns whether a value is known only when the compiled function runs."""
  return isinstance(value, jax.core.Tracer)


def _is_bool(value: Any) -> bool:
  return isinstance(value, bool) or getattr(value, 'dtype', None) == np.bool_


def _as_float(got: Any) -> float:
  """Returns a real number as a float, and NaN for anything else."""
  if _is_bool(got) or isinstance(got, str | bytes):
    return math.nan
  if getattr(got, 'shape', ()) != ():
    return math.nan
  try:
    return float(got)
  except (TypeError, ValueError, OverflowError):
    return math.nan


def share(name: str, got: Any) -> Any:
  """Returns a number in [0, 1], or raises ValueError."""
  if not is_traced(got) and not 0 <= _as_float(got) <= 1:
    raise ValueError(f'{name}: got {got!r}, expected a number in [0, 1]')
  return got


def positive(name: str, got: Any) -> Any:
  """Returns a finite number > 0, or raises ValueError."""
  if not is_traced(got) and not 0 < _as_float(got) < math.inf:
    raise ValueError(f'{name}: got {got!r}, expected a finite number > 0')
  return got


def length(name: str, got: Any, norm: str, *, zero: bool = True) -> Any:
  """Returns a radius or a step in units of [0, 1], or raises.

  Args:
    name: of the argument.
    got: a number; in Linf at most 1, the width of the box.
    norm: 'linf', or a norm without such a bound.
    zero: whether it may be 0.

  Raises:
    ValueError: not a number, or out of range.
  """
  if is_traced(got):
    return got
  value = _as_float(got)
  most = 1.0 if norm == 'linf' else math.inf
  if not (0 <= value <= most and value < math.inf and (zero or value > 0)):
    least = '[0' if zero else '(0'
    upper = '1]' if norm == 'linf' else 'inf)'
    raise ValueError(
      f'{name}: got {got!r}, expected in {least}, {upper}, in units of [0, 1], '
      'not of 255'
    )
  return got


def like(value: Any, images: chex.Array) -> Any:
  """Returns an array in the images' dtype; Python's numbers adapt anyway."""
  return jnp.asarray(value, images.dtype) if hasattr(value, 'dtype') else value


def flag(name: str, got: Any) -> Any:
  """Returns True or False, or raises ValueError for anything else."""
  if not is_traced(got) and not (_is_bool(got) and np.ndim(got) == 0):
    raise ValueError(f'{name}: got {got!r}, expected True or False')
  return got


def function(name: str, got: Any) -> Any:
  """Returns a callable, or raises TypeError."""
  if not callable(got):
    raise TypeError(f'{name}: got {type(got).__name__}, expected a function')
  return got


def float32_or_more(dtype: Any) -> Any:
  """Returns the precision of the attack: float64 for float64, else float32."""
  return jnp.float64 if dtype == jnp.float64 else jnp.float32


def float_images(got: Any, rank: int | None = None, xp: Any = jnp) -> Any:
  """Returns images as floats of at least float32, or raises.

  Args:
    got: float [B, ...] in [0, 1].
    rank: the number of axes, where an attack needs one.
    xp: `jax.numpy`, or `numpy` for an array that stays on the host.

  Raises:
    ValueError: not floats, another rank, or values outside [0, 1], where they
      are known.
  """
  shape, dtype = _shape_and_dtype('images', got)
  fits = len(shape) >= 2 if rank is None else len(shape) == rank
  if not jnp.issubdtype(dtype, jnp.floating) or not fits or 0 in shape:
    axes = '[B, H, W, C]' if rank == 4 else '[B, ...]'
    raise ValueError(
      f'images: got {dtype} {shape}, expected float {axes} in [0, 1]'
    )
  if not is_traced(got):
    in_box('images', np.asarray(got))
  return xp.asarray(got).astype(
    float32_or_more(jax.dtypes.canonicalize_dtype(dtype))
  )


def in_box(name: str, got: np.ndarray) -> None:
  """Raises ValueError unless all values are in [0, 1]."""
  if not (np.min(got) >= 0 and np.max(got) <= 1):
    raise ValueError(
      f'{name}: got values in [{np.min(got)}, {np.max(got)}], expected '
      '[0, 1]; normalisation belongs into logits_fn'
    )


def classes(
  name: str,
  got: Any,
  batch_size: int,
  num_classes: int | None = None,
  xp: Any = jnp,
) -> Any:
  """Returns classes as int32 [B], or raises.

  Args:
    name: of the argument: 'labels' or 'targets'.
    got: int [B].
    batch_size: B.
    num_classes: K, where it is known.
    xp: `jax.numpy`, or `numpy` for an array that stays on the host.

  Raises:
    ValueError: not integers, another shape, or values out of [0, K), where they
      are known.
  """
  shape, dtype = _shape_and_dtype(name, got)
  if shape != (batch_size,) or not jnp.issubdtype(dtype, jnp.integer):
    raise ValueError(
      f'{name}: got {dtype} {shape}, expected int [{batch_size}]'
    )
  if not is_traced(got):
    known = np.asarray(got)
    most = np.iinfo(np.int32).max if num_classes is None else num_classes - 1
    if known.min() < 0 or known.max() > most:
      why = '' if num_classes is None else f': there are {num_classes} logits'
      if np.isin(known, (-1, 1)).all():
        why += f'; of -1 and 1, take ({name} + 1) // 2'
      raise ValueError(
        f'{name}: got {known.min()} to {known.max()}, expected 0 to {most}{why}'
      )
  return xp.asarray(got).astype(jnp.int32)


def _shape_and_dtype(name: str, got: Any) -> tuple[tuple[int, ...], Any]:
  """Returns the shape and dtype of an array, list or another's tensor."""
  known = isinstance(getattr(got, 'dtype', None), np.dtype)
  known = known or isinstance(got, jax.Array)  # also keys
  if not known or not hasattr(got, 'shape'):
    try:
      got = np.asarray(got)
    except ValueError as error:  # a ragged list
      raise ValueError(f'{name}: got no array: {error}') from error
  return tuple(got.shape), got.dtype
