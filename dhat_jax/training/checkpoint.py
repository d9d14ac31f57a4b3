"""Checkpoints by Orbax with checksums, and a resume that verifies them.

Orbax commits a checkpoint atomically, but a flipped byte in an array file
restores to wrong values without an error. So each checkpoint has the shape,
dtype and CRC-32 of every array. A checkpoint that does not match is skipped
with a warning, and the one before is used.
"""

import contextlib
import json
import os
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint.checkpoint_managers import preservation_policy

from dhat_jax.runtime import files, processes

# Orbax warns of every checkpoint without metrics: those between validations
# have none, on purpose.
logging.get_absl_logger().addFilter(
  lambda record: 'tracked_metric' not in str(record.msg)
)


def _is_key(leaf: Any) -> bool:
  return isinstance(leaf, jax.Array) and jnp.issubdtype(
    leaf.dtype, jax.dtypes.prng_key
  )


def flatten(tree: Any) -> dict[str, np.ndarray]:
  """Flattens a tree to {path: array}; typed keys become their key data."""
  flat = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    if _is_key(leaf):
      leaf = jax.random.key_data(leaf)
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    flat[name] = np.asarray(leaf)
  return flat


def unflatten(like: Any, flat: dict[str, np.ndarray]) -> Any:
  """Inverts `flatten`, given a tree of the same structure."""

  def pick(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if _is_key(leaf):
      return jax.random.wrap_key_data(
        flat[name], impl=jax.random.key_impl(leaf)
      )
    return flat[name]

  return jax.tree_util.tree_map_with_path(pick, like)


def fingerprint(flat: dict[str, np.ndarray]) -> dict[str, list]:
  """Returns {path: [shape, dtype, CRC-32]} as JSON values."""
  return {
    name: [
      list(array.shape),
      str(array.dtype),
      zlib.crc32(np.ascontiguousarray(array).tobytes()),
    ]
    for name, array in flat.items()
  }


def _check_fingerprint(stored: dict, current: dict, parts: slice) -> None:
  """Raises ValueError where the chosen parts of two fingerprints differ."""
  differing = [
    f'  {name}: got {stored.get(name)}, expected {current.get(name)}'
    for name in sorted(stored.keys() | current.keys())
    if stored.get(name, [None])[parts] != current.get(name, [None])[parts]
  ]
  if differing:
    raise ValueError(
      'arrays do not fit ([shape, dtype, CRC-32]):\n' + '\n'.join(differing[:5])
    )


def seal(info: dict[str, Any]) -> dict[str, Any]:
  """Adds a checksum of the values."""
  text = json.dumps(info, sort_keys=True)
  return {**info, 'checksum': zlib.crc32(text.encode())}


def unseal(sealed: dict[str, Any]) -> dict[str, Any]:
  """Inverts `seal`; ValueError where the checksum does not match."""
  info = {key: value for key, value in sealed.items() if key != 'checksum'}
  if seal(info) != sealed:
    raise ValueError('the checksum of the description does not fit')
  return info


class Checkpoints:
  """The checkpoints of one stage; use as a context manager.

  Leaving the context waits for the writes in the background. Without that the
  last checkpoint would be lost.

  Attributes:
    directory: where they are, one numbered folder each.
  """

  def __init__(self, directory: str, *, keep: int):
    """Opens or creates a directory of checkpoints.

    Args:
      directory: its path.
      keep: how many of the latest are kept, in addition to the best one.
    """
    self.directory = os.path.abspath(directory)
    self._keep = keep
    self._open()

  def _open(self) -> None:
    if processes.is_first():
      self._set_unreadable_metrics_aside()
    processes.wait_for_all('opening checkpoints')
    self._manager = ocp.CheckpointManager(
      self.directory,
      item_names=('state', 'info'),
      options=ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.AnyPreservationPolicy(
          [
            preservation_policy.LatestN(self._keep),
            preservation_policy.BestN(
              get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False
            ),
          ]
        ),
        # Without best_fn, Orbax does not write the metrics.
        best_fn=score,
        best_mode='max',
        cleanup_tmp_directories=True,
      ),
    )

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    # An error of the background that was raised already comes here again.
    raised = () if kind is None else (Exception,)
    with contextlib.suppress(*raised), self._writing():
      self._manager.close()

  def _writing(self) -> contextlib.AbstractContextManager:
    """Turns an error of the disk into one line, whenever Orbax reports it."""
    names = os.listdir(self.directory) if os.path.isdir(self.directory) else ()
    whole = [int(name) for name in names if name.isdigit()]
    return files.writing(
      self.directory,
      f'checkpoint {max(whole)}' if whole else 'what was saved before',
    )

  def steps(self) -> list[int]:
    """Returns the steps that have a checkpoint, in order."""
    return sorted(self._manager.all_steps())

  def save(
    self,
    step: int,
    state: Any,
    *,
    metrics: dict[str, float] | None = None,
    info: dict[str, Any] | None = None,
  ) -> None:
    """Starts writing a checkpoint in the background.

    Args:
      step: its number.
      state: tree of host arrays; they may be changed after the call.
      metrics: {'robust_accuracy': ..., 'clean_accuracy': ...} of a
        validation, which select the best; None without a validation.
      info: further JSON values.

    Raises:
      files.WriteError: the disk took neither this checkpoint nor the one
        before; errors in the background show late.
      RuntimeError: Orbax did not accept the checkpoint.
    """
    flat = flatten(state)
    with self._writing():
      saved = self._manager.save(
        step,
        metrics=None if metrics is None else {**metrics, 'step': step},
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(flat),
          info=ocp.args.JsonSave(
            seal({'arrays': fingerprint(flat), 'info': info or {}})
          ),
        ),
      )
    if not saved:
      raise RuntimeError(
        f'checkpoint {step} was not written to {self.directory}: it holds '
        f'{self.steps()}'
      )

  def wait(self) -> None:
    """Waits until everything is written; `files.WriteError` as in `save`."""
    with self._writing():
      self._manager.wait_until_finished()

  def restore_latest(self, like: Any) -> tuple[int, Any, dict] | None:
    """Restores the newest intact checkpoint.

    Damaged ones are moved with a warning to `damaged` beside the directory, so
    that training can write them again.

    Args:
      like: a tree of the expected structure, shapes and dtypes.

    Returns:
      (step, tree of arrays, info), or None if there is no checkpoint.

    Raises:
      ValueError: the checkpoint is intact, but of another network.
    """
    for step in reversed(self.steps()):
      restored = self._try_restore(step, like)
      if restored is not None:
        return step, *restored
      self._set_aside(step)
    return None

  def restore_best(self, like: Any) -> tuple[int, Any, dict] | None:
    """Restores the checkpoint with the best validation, else the newest.

    Best is the highest robust accuracy, then the highest clean accuracy, then
    the latest step. See `restore_latest`.
    """
    while (step := self._manager.best_step()) is not None:
      if self._manager.metrics(step) is None:
        break
      restored = self._try_restore(step, like)
      if restored is not None:
        return step, *restored
      self._set_aside(step)
    return self.restore_latest(like)

  def _try_restore(self, step: int, like: Any) -> tuple[Any, dict] | None:
    """Returns (tree, info), or None if it is damaged for any process."""
    restored = self._restore(step, like)
    return restored if processes.all_agree(restored is not None) else None

  def _restore(self, step: int, like: Any) -> tuple[Any, dict] | None:
    expected = flatten(like)
    try:
      sealed = self._manager.restore(
        step, args=ocp.args.Composite(info=ocp.args.JsonRestore())
      ).info
      info = unseal(sealed)
      stored = info['arrays']
    except Exception as error:
      return self._warn(step, error)
    # Whole but different: not damage, and nothing to set aside.
    _check_fingerprint(stored, fingerprint(expected), slice(0, 2))
    try:
      flat = self._manager.restore(
        step,
        args=ocp.args.Composite(state=ocp.args.StandardRestore(expected)),
      ).state
      _check_fingerprint(stored, fingerprint(flat), slice(0, 3))
    except Exception as error:
      return self._warn(step, error)
    return unflatten(like, flat), info['info']

  def _warn(self, step: int, error: Exception) -> None:
    logging.error(
      'checkpoint %s is damaged and is skipped: %s: %s',
      os.path.join(self.directory, str(step)),
      type(error).__name__,
      str(error).split('\n\n')[0][:500],
    )

  def _set_aside(self, step: int) -> None:
    self._manager.close()
    if processes.is_first():
      self._move_aside(step)
    self._open()

  def _set_unreadable_metrics_aside(self) -> None:
    """Moves files away that would keep Orbax from opening the directory."""
    if not os.path.isdir(self.directory):
      return
    for step in sorted(filter(str.isdigit, os.listdir(self.directory))):
      path = os.path.join(self.directory, step, 'metrics', 'metrics')
      if not os.path.exists(path):
        continue
      try:
        score(files.read_json(path))
      except (ValueError, KeyError, TypeError) as error:
        self._warn(int(step), error)
        self._move_aside(int(step))

  def _move_aside(self, step: int) -> None:
    base = os.path.join(os.path.dirname(self.directory), 'damaged')
    os.makedirs(base, exist_ok=True)
    name = f'{os.path.basename(self.directory)}_{step}'
    target, count = os.path.join(base, name), 1
    while os.path.exists(target):
      target, count = os.path.join(base, f'{name}_{count}'), count + 1
    os.rename(os.path.join(self.directory, str(step)), target)
    logging.error('moved to %s', target)


def score(metrics: dict[str, float]) -> tuple:
  """Returns what the best checkpoint maximises, in order of importance."""
  return (
    metrics['robust_accuracy'],
    metrics['clean_accuracy'],
    metrics['step'],
  )
