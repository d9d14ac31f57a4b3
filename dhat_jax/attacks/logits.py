"""The network's side of an attack: images [B, ...] -> logits [B, K].

Every attack wraps the network in `checked`, with one shape and one dtype. An
error is one line that names what was returned.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dhat_jax.arguments import integer
from dhat_jax.attacks import arguments


class Problem(NamedTuple):
  """The checked arguments of every attack on logits.

  Attributes:
    logits_fn: images -> logits [B, K] of the images' dtype.
    images: float [B, ...], float32 or more.
    labels: int32 [B].
  """

  logits_fn: Callable
  images: chex.Array
  labels: chex.Array


def _describe(output: Any) -> str:
  """Describes what a network returned, in a few words."""
  kind = type(output).__name__
  if hasattr(output, 'shape') and hasattr(output, 'dtype'):
    return f'{output.dtype} {tuple(output.shape)}'
  if isinstance(output, Mapping):
    return f'{kind} with the keys {sorted(map(str, output))}'
  if isinstance(output, tuple | list):
    return f'{kind} of {len(output)}'
  return kind


def _two_logits(output: Any, batch_size: int) -> str:
  """Says how one logit an image becomes two; '' for any other output.

  [-z / 2, z / 2] and [0, z] are the same to every attack: their losses depend
  on differences of logits alone. The difference is z in both, and the softmax
  is the sigmoid of z.
  """
  dtype = getattr(output, 'dtype', None)
  if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
    return ''
  joins = {
    (batch_size,): 'stack([-z / 2, z / 2], axis=1)',
    (batch_size, 1): 'concatenate([-z / 2, z / 2], axis=1)',
  }
  join = joins.get(tuple(output.shape))
  if join is None:
    return ''
  return f'; a binary classifier of one logit z (no sigmoid) returns jnp.{join}'


def as_logits(output: Any, images: chex.Array) -> chex.Array:
  """Returns a network's output as logits of the images' dtype, or raises.

  Args:
    output: what the network returned.
    images: float [B, ...], what it was given.

  Raises:
    ValueError: not an array of floats [B, K] with K >= 2.
  """
  batch_size = images.shape[0]
  shape = getattr(output, 'shape', ())
  dtype = getattr(output, 'dtype', None)
  if len(shape) != 2 or shape[0] != batch_size or dtype is None:
    how = _two_logits(output, batch_size) or ', e.g. `.main` of the outputs'
    raise ValueError(
      f'logits_fn: got {_describe(output)} for {batch_size} images, expected '
      f'an array [{batch_size}, K]{how}'
    )
  if shape[1] < 2 or not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(
      f'logits_fn: got {_describe(output)}, expected float [{batch_size}, K] '
      f'with at least 2 classes{_two_logits(output, batch_size)}'
    )
  dtype = arguments.float32_or_more(images.dtype)
  return jnp.asarray(output).astype(dtype)


def _check_arguments(name: str, logits_fn: Callable, *args: Any) -> None:
  """Raises TypeError for a network that takes other arguments."""
  try:
    signature = inspect.signature(logits_fn)
  except (TypeError, ValueError):  # unknown
    return
  try:
    signature.bind(*args)
  except TypeError as error:
    keyed = len(args) > 1
    got = '(images, key)' if keyed else '(images)'
    other = '' if keyed else '; one that also takes a key needs randomized=True'
    raise TypeError(
      f'{name}: got a function with {signature}, expected one of {got}{other}'
    ) from error


def checked(logits_fn: Callable, name: str = 'logits_fn') -> Callable:
  """Returns a network whose output is checked and cast, see `as_logits`.

  Args:
    logits_fn: images -> logits, or (images, key) -> logits.
    name: of the argument.

  Raises:
    TypeError: it is not callable; or, in a call, it cannot be traced.
  """
  arguments.function(name, logits_fn)

  def call(images, *keys):
    _check_arguments(name, logits_fn, images, *keys)
    try:
      output = logits_fn(images, *keys)
    except jax.errors.JAXTypeError as error:
      raise TypeError(
        f'{name}: got {type(error).__name__}, expected jax.numpy alone, '
        'without NumPy or branches that depend on values'
      ) from error
    return as_logits(output, images)

  return call


def check_finite(logits: np.ndarray, where: str) -> None:
  """Raises ValueError for logits [B, K] that are not all finite."""
  wrong = int(np.sum(~np.all(np.isfinite(logits), axis=1)))
  if wrong:
    raise ValueError(
      f'logits: got NaN or infinity on {wrong} of {len(logits)} images '
      f'({where}), valid images in [0, 1]; the flags would mean nothing'
    )


def problem(
  logits_fn: Callable,
  images: chex.Array,
  labels: chex.Array,
  *,
  rng: chex.PRNGKey | None = None,
  rank: int | None = None,
) -> Problem:
  """Checks the arguments of an attack on logits.

  Where the images are known, not traced, the network predicts them once.

  Args:
    logits_fn: images -> logits [B, K]; with `rng`, (images, key).
    images: float [B, ...] in [0, 1].
    labels: int [B].
    rng: typed key of the network's noise; None for a network without.
    rank: of the images, if the attack needs one.

  Raises:
    ValueError: images, labels or logits of another shape or dtype. Where the
      values are known: images outside [0, 1], labels that are not classes, or
      logits of clean images that are not finite.
    TypeError: logits_fn cannot be called.
  """
  logits_fn = checked(logits_fn)
  known = not arguments.is_traced(images)
  images = arguments.float_images(images, rank)
  count = images.shape[0]
  num_classes = None
  if known:
    logits = logits_fn(images) if rng is None else logits_fn(images, rng)
    num_classes = logits.shape[1]
    if not arguments.is_traced(logits):
      check_finite(np.asarray(logits), 'clean')
  labels = arguments.classes('labels', labels, count, num_classes)
  return Problem(logits_fn, images, labels)


def ranked_classes(logits: chex.Array, rank: chex.Numeric) -> chex.Array:
  """Class with the rank-th largest logit; rank 1 is the prediction.

  Args:
    logits: float [B, K].
    rank: int scalar in [1, K]; may be traced.

  Returns:
    int [B].
  """
  ascending = jnp.argsort(logits, axis=1)  # [B, K]
  return jnp.take(ascending, logits.shape[1] - rank, axis=1)


def target_classes(
  logits_fn: Callable, images: chex.Array, rank: chex.Numeric
) -> chex.Array:
  """Class with the rank-th largest clean logit of each image: int [B].

  Args:
    logits_fn: images -> logits [B, K].
    images: float [B, ...] in [0, 1].
    rank: int in [2, K]; may be traced.

  Raises:
    ValueError: as `problem`, or a rank out of range.
  """
  predicted = checked(logits_fn)(arguments.float_images(images))  # [B, K]
  integer('target_rank', rank, least=2, most=predicted.shape[1])
  return ranked_classes(predicted, rank)
