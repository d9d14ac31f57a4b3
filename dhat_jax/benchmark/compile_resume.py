"""Rows from which `--what=compile` and `--what=largest` continue.

They count only where the same config and the same compilers made them.
"""

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections

from dhat_jax.runtime import provenance

# Keys of config.model that a benchmark varies: its rows name them.
VARIED = {'compile': ('dtype',), 'largest': ('dtype', 'backbone')}
_ADVICE = 'choose another --out'


def identity(config: ml_collections.ConfigDict, what: str) -> dict[str, str]:
  """Returns what tells a document's config: its name, and a digest.

  The digest is of all keys but those that the rows name: `VARIED`, and the
  batch sizes of the stages.

  Args:
    config: the run's config.
    what: the benchmark.
  """
  fixed = copy.deepcopy(config).unlock()
  for key in VARIED[what]:
    del fixed.model[key]
  for stage in fixed.stages:
    del fixed[stage].batch_size
  text = fixed.to_json_best_effort(sort_keys=True)
  digest = hashlib.sha256(text.encode()).hexdigest()
  return {'config': config.name, 'config_digest': digest}


def rows(
  document: Mapping[str, Any],
  path: str,
  *,
  what: str,
  identity: Mapping[str, str],
  keys: Sequence[str],
  table: Callable[[Mapping[str, Any]], str],
) -> list[dict[str, Any]]:
  """Returns a document's rows, to continue from.

  Args:
    document: as it was read.
    path: where it lies.
    what: the benchmark.
    identity: of this call's config, see `identity`.
    keys: that every row has.
    table: of the benchmark: it shows every row that is whole.

  Raises:
    ValueError: it is of another benchmark, config, JAX or compiler, or damaged.
  """
  _same(path, 'what', document.get('what'), what)
  for name, expected in identity.items():
    _same(path, name, document.get(name), expected)
  built = _stored(document, 'machine', 'versions', 'jax')
  _same(path, 'jax', built, jax.__version__)
  compilers = _stored(document, 'compilers')
  if not isinstance(compilers, dict):
    raise _damaged(path, 'no compilers')
  for name, version in compilers.items():
    # What is not installed is reported later.
    _same(path, name, version, provenance.version(name) or version)
  return _whole(document.get('rows'), path, keys, table)


def _same(path: str, name: str, got: Any, expected: Any) -> None:
  if got != expected:
    raise ValueError(
      f'--resume: got {path} of {name} {got!r}, expected {expected!r}; '
      f'{_ADVICE}'
    )


def _damaged(path: str, problem: str) -> ValueError:
  return ValueError(
    f'--resume: got {path} with {problem}, expected what --out writes; '
    f'{_ADVICE}'
  )


def _stored(tree: Any, *keys: str) -> Any:
  """Returns a value of nested objects, or None."""
  for key in keys:
    tree = tree.get(key) if isinstance(tree, dict) else None
  return tree


def _whole(
  found: Any,
  path: str,
  keys: Sequence[str],
  table: Callable[[Mapping[str, Any]], str],
) -> list[dict[str, Any]]:
  """Returns rows; raises ValueError where one lacks something."""
  if not isinstance(found, list):
    raise _damaged(path, 'no rows')
  for number, row in enumerate(found):
    for key in keys:
      if _stored(row, key) is None:
        raise _damaged(path, f'no {key!r} in row {number}')
  try:
    table({'rows': found})
  except (ArithmeticError, LookupError, TypeError, AttributeError, ValueError):
    raise _damaged(path, 'damaged rows') from None
  return found
