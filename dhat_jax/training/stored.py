"""Reading a stage's checkpoints without a state to restore them into.

Nothing is written or moved, because a run may be training meanwhile.
"""

import os
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from dhat_jax.runtime import files
from dhat_jax.training import checkpoint

# Orbax looks for metadata that only its checkpoint manager writes.
logging.get_absl_logger().addFilter(
  lambda record: 'Metadata file does not exist' not in str(record.msg)
)


def steps(directory: str) -> list[int]:
  """Returns the steps that have a checkpoint, in order."""
  names = os.listdir(directory) if os.path.isdir(directory) else ()
  return sorted(int(name) for name in names if name.isdigit())


def _score(directory: str, step: int) -> tuple:
  """Returns what the best checkpoint maximises; unvalidated ones have less.

  A validated checkpoint is best if there is one, otherwise the latest.
  """
  path = os.path.join(directory, str(step), 'metrics', 'metrics')
  try:
    return (1, *checkpoint.score(files.read_json(path)))
  except (OSError, ValueError, KeyError, TypeError):
    return 0, step


def _read(directory: str, step: int) -> dict[str, np.ndarray]:
  """Reads all arrays of a checkpoint; ValueError if they are damaged."""
  folder = os.path.abspath(os.path.join(directory, str(step)))
  info = files.read_json(os.path.join(folder, 'info', 'metadata'))
  stored = checkpoint.unseal(info)['arrays']
  state = os.path.join(folder, 'state')
  with ocp.PyTreeCheckpointer() as reader:
    as_numpy = {
      name: ocp.RestoreArgs(restore_type=np.ndarray)
      for name in reader.metadata(state).item_metadata.tree
    }
    flat = reader.restore(state, restore_args=as_numpy)
  if checkpoint.fingerprint(flat) != stored:
    raise ValueError('the checksums of the arrays do not fit')
  return flat


def read_state(directory: str, *, keep: str) -> dict[str, Any]:
  """Reads the arrays of a stage's checkpoint as nested dictionaries.

  Args:
    directory: `loop.checkpoint_folder` of the stage.
    keep: 'best' by validation, or 'last'. A damaged one is skipped, and the
      next in that order is read.

  Returns:
    {'params': {part: ...}, 'batch_stats': ..., 'ema_params': ..., ...} of
    NumPy arrays.

  Raises:
    ValueError: there is no intact checkpoint.
  """
  order = steps(directory)
  if keep == 'best':
    order = sorted(order, key=lambda step: _score(directory, step))
  problems = []
  for step in reversed(order):
    try:
      return _nested(_read(directory, step))
    except Exception as error:  # Orbax raises a great many types
      problems.append(f'{step}: {files.reason(error)}')
  reason = f' ({"; ".join(problems)})' if problems else ''
  raise ValueError(f'{directory}: holds no whole checkpoint{reason}')


def _nested(flat: dict[str, np.ndarray]) -> dict[str, Any]:
  """Turns {'a/b': array} into {'a': {'b': array}}."""
  tree = {}
  for path, array in flat.items():
    *groups, leaf = path.split('/')
    node = tree
    for group in groups:
      node = node.setdefault(group, {})
    node[leaf] = array
  return tree


def read_variables(
  directory: str, *, keep: str, averaged: bool = True
) -> dict[str, Any]:
  """Reads what `net.apply` takes.

  Args:
    directory: `loop.checkpoint_folder` of the stage.
    keep: as in `read_state`.
    averaged: whether to read the averages where there are any, or the values
      that train.

  Raises:
    ValueError: there is no intact checkpoint.
  """
  state = read_state(directory, keep=keep)
  return {
    group: {**state.get(group, {}), **(averages if averaged else {})}
    for group, averages in (
      ('params', state.get('ema_params', {})),
      ('batch_stats', state.get('ema_batch_stats', {})),
    )
  }
