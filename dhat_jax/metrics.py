"""Training metrics: sums on the device, JSON lines, TensorBoard, console."""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorboardX
import tqdm


class NonFiniteError(RuntimeError):
  """A loss or gradient that is not a finite number."""


def check_finite(records: list[tuple[int, Mapping]], where: str) -> None:
  """Raises `NonFiniteError` naming the first step that is not finite.

  Args:
    records: (step, {name: (sum, count)}) of host values, in order.
    where: what to say beside the step: the stage, the last good checkpoint.
  """
  for step, sums in records:
    bad = [name for name, (total, _) in sums.items() if not np.isfinite(total)]
    if bad:
      raise NonFiniteError(
        f'{", ".join(sorted(bad))} not finite at step {step} {where}'
      )


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
    """Opens the files, dropping what was written after `start_step`.

    Args:
      directory: the workdir.
      stage: the stage's name.
      start_step: the step that training continues from.
    """
    self.path = os.path.join(directory, 'metrics.jsonl')
    self._stage = stage
    self._drop_after(start_step)
    self._file = open(self.path, 'a', buffering=1)  # noqa: SIM115
    self._tensorboard = tensorboardX.SummaryWriter(
      os.path.join(directory, 'tensorboard', stage),
      purge_step=start_step + 1 if start_step else None,
    )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._file.close()
    self._tensorboard.close()

  def _drop_after(self, step: int) -> None:
    if not os.path.exists(self.path):
      return
    kept = [
      record
      for record in read_json_lines(self.path)
      if record['stage'] != self._stage or record['step'] <= step
    ]
    temporary = self.path + '.tmp'
    with open(temporary, 'w') as file:
      file.writelines(json.dumps(record) + '\n' for record in kept)
    os.replace(temporary, self.path)

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Writes one record of numbers at a step of the stage."""
    record = {'stage': self._stage, 'step': step, **values}
    self._file.write(json.dumps(record) + '\n')
    for name, value in values.items():
      self._tensorboard.add_scalar(name, value, step)

  def write_pictures(self, step: int, rows: Mapping[str, np.ndarray]) -> None:
    """Shows images in TensorBoard, one row of them for each name.

    Args:
      step: of the stage.
      rows: {name: float [n, H, W, C] in [0, 1]}, C 1 or 3.
    """
    for name, images in rows.items():
      row = np.concatenate(list(images), axis=1)  # [H, n W, C]
      row = np.repeat(row, 3 // row.shape[-1], axis=-1)
      row = np.round(255 * row.clip(0, 1)).astype(np.uint8)
      self._tensorboard.add_image(name, row, step, dataformats='HWC')


class NullWriter:
  """What processes other than the first have in place of a `Writer`."""

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Writes nothing."""

  def write_pictures(self, step: int, rows: Mapping[str, np.ndarray]) -> None:
    """Writes nothing."""


def read_json_lines(path: str) -> list[dict]:
  """Reads JSON lines; a last line cut off by a kill is left out."""
  records = []
  with open(path) as file:
    for line in file:
      try:
        records.append(json.loads(line))
      except ValueError:
        break
  return records


def progress_bar(
  title: str, total: int, initial: int, *, unit: str, disable: bool
) -> tqdm.tqdm:
  """Returns a progress bar with rate and time left."""
  return tqdm.tqdm(
    desc=title,
    total=total,
    initial=initial,
    unit=unit,
    dynamic_ncols=True,
    mininterval=0.5,
    disable=disable,
  )
