"""Training metrics: sums on the device, JSON lines, TensorBoard, console."""

import contextlib
import json
import os
import sysconfig
import time
import traceback
from collections.abc import Mapping
from typing import Any

import numpy as np

from dhat_jax.runtime import files, imports, pictures

# It looks for PyTorch, which takes seconds and 150 MB, for tensors of its own.
with imports.hidden('torch'):
  from tensorboardX import event_file_writer, summary
  from tensorboardX.proto import event_pb2


class NonFiniteError(RuntimeError):
  """A loss, a gradient or a parameter that is not a finite number."""


def check_finite(records: list[tuple[int, Mapping]], where: str) -> None:
  """Raises `NonFiniteError` naming the first step that is not finite.

  Args:
    records: (step, {name: (sum, count)}) of host values, in order.
    where: context for the message: the stage, the last good checkpoint.
  """
  for step, sums in records:
    bad = [name for name, (total, _) in sums.items() if not np.isfinite(total)]
    if bad:
      raise NonFiniteError(
        f'{", ".join(sorted(bad))} not finite at step {step} {where}'
      )


def check_finite_arrays(arrays: Mapping[str, Any], where: str) -> None:
  """Raises `NonFiniteError` naming the arrays that are not finite.

  Args:
    arrays: {name: host array}; only floating-point ones can fail.
    where: context for the message.
  """
  bad = [
    name
    for name, array in arrays.items()
    if np.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all()
  ]
  if bad:
    more = f' and {len(bad) - 3} more' if len(bad) > 3 else ''
    raise NonFiniteError(f'{", ".join(bad[:3])}{more} not finite {where}')


def nan_source(error: FloatingPointError) -> str:
  """Returns what `jax.debug_nans` reports, and the line that computed it.

  The line is the innermost one of this project or of a user's own files.
  """
  report = str(error).splitlines()[0]
  libraries = (sysconfig.get_path('purelib'), sysconfig.get_path('stdlib'))
  project = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
  for frame in reversed(traceback.extract_tb(error.__traceback__)):
    path = os.path.abspath(frame.filename)
    in_project = path.startswith(os.path.join(project, 'dhat_jax', ''))
    if in_project or not path.startswith(libraries):
      name = os.path.relpath(path, project) if in_project else path
      return f'{report}, in {name}:{frame.lineno}: {frame.line}'
  return report


def means(records: list[tuple[int, Mapping]]) -> dict[str, float]:
  """Divides sums by counts, once: {name: sum of sums / sum of counts}."""
  names = records[0][1] if records else ()
  return {
    name: float(
      sum(sums[name][0] for _, sums in records)
      / sum(sums[name][1] for _, sums in records)
    )
    for name in names
  }


class Writer:
  """Writes one stage's records; a resumed stage continues without repeats.

  Attributes:
    path: of the JSON lines, which all stages share.
  """

  def __init__(self, directory: str, stage: str, start_step: int):
    """Opens the files, and drops records after `start_step`.

    Args:
      directory: the workdir.
      stage: the stage's name.
      start_step: the step from which training resumes.
    """
    self.path = os.path.join(directory, 'metrics.jsonl')
    self._stage = stage
    with files.writing(self.path, 'every checkpoint'):
      self._drop_after(start_step)
      self._file = open(self.path, 'a', buffering=1)  # noqa: SIM115
      self._tensorboard = _TensorBoard(
        os.path.join(directory, 'tensorboard', stage),
        purge_step=start_step + 1 if start_step else None,
      )

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    # All is written already: what fails here was reported before.
    with contextlib.suppress(*(() if kind is None else (OSError,))):
      try:
        self._file.close()
      finally:
        self._tensorboard.close()

  def _drop_after(self, step: int) -> None:
    if not os.path.exists(self.path):
      return
    records = [
      record
      for record in files.read_json_lines(self.path)
      if _is_record(record)
      and (record['stage'] != self._stage or record['step'] <= step)
    ]
    with files.replacing(self.path, 'w') as file:
      file.writelines(json.dumps(record) + '\n' for record in records)

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Writes one record of numbers at a step of the stage."""
    record = {'stage': self._stage, 'step': step, **values}
    with files.writing(self.path, 'every checkpoint'):
      self._file.write(json.dumps(record) + '\n')
      self._tensorboard.write(step, values)

  def write_pictures(self, step: int, rows: Mapping[str, np.ndarray]) -> None:
    """Shows images in TensorBoard, one row of them for each name.

    Args:
      step: of the stage.
      rows: {name: float [n, H, W, C] in [0, 1]}.
    """
    shown = {}
    for name, images in rows.items():
      row = pictures.rgb(np.concatenate(list(images), axis=1))  # [H, n W, 3]
      shown[name] = np.round(255 * row.clip(0, 1)).astype(np.uint8)
    with files.writing(self.path, 'every checkpoint'):
      self._tensorboard.write_pictures(step, shown)


class _TensorBoard:
  """An event file that writes each record at once.

  `tensorboardX.SummaryWriter` writes in a thread. A full disk ends that thread,
  and the run waits for it forever.
  """

  def __init__(self, directory: str, *, purge_step: int | None):
    os.makedirs(directory, exist_ok=True)
    self._events = event_file_writer.EventsWriter(
      os.path.join(directory, 'events')
    )
    if purge_step is not None:
      restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._add(purge_step, session_log=restart)
    self._events.flush()

  def _add(self, step: int, **what) -> None:
    self._events.write_event(
      event_pb2.Event(wall_time=time.time(), step=step, **what)
    )

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
      self._add(step, summary=summary.scalar(name, value))
    self._events.flush()

  def write_pictures(self, step: int, pictures: Mapping[str, Any]) -> None:
    for name, picture in pictures.items():
      shown = summary.image(name, picture, dataformats='HWC')
      self._add(step, summary=shown)
    self._events.flush()

  def close(self) -> None:
    self._events.close()


class NullWriter:
  """The `Writer` of all processes except the first."""

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Writes nothing."""

  def write_pictures(self, step: int, rows: Mapping[str, np.ndarray]) -> None:
    """Writes nothing."""


def _is_record(value: Any) -> bool:
  """Whether a line of metrics.jsonl is a record of ours."""
  return isinstance(value, dict) and {'stage', 'step'} <= value.keys()
