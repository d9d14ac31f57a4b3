"""What docs/tools/scaling.py computes with, and where each figure is from.

Rows are those of JSON documents in docs/results/: of
`experiments/accelerator.py speed`, and of the benchmarks `--what=compile` and
`--what=largest`. What is not there is assumed.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dhat_jax.benchmark import compile_targets
from dhat_jax.runtime import documents

RESULTS = pathlib.Path(__file__).parents[1] / 'results'
MEASURED, COMPILED, ASSUMED = 'm', 'c', 'a'
EFFICIENCY = 0.4  # share of the peak, where nothing was measured; assumed

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Figure:
  """A number and where it is from.

  Attributes:
    value: the number.
    source: 'm', measured; 'c', compiled; 'a', assumed.
  """

  value: float
  source: str

  def text(self, digits: int) -> str:
    """Returns it with its source."""
    return f'{self.value:.{digits}f} {self.source}'


def weakest(figures: Sequence[Figure]) -> str:
  """Returns the source of what several figures make together."""
  return max(
    (figure.source for figure in figures),
    key=(MEASURED, COMPILED, ASSUMED).index,
  )


def read_rows(pattern: str, folder: pathlib.Path = RESULTS) -> list[Row]:
  """Returns the rows of all documents that match, but for errors.

  Each has its machine's device as `device`.
  """
  rows = []
  for path in sorted(folder.glob(pattern)):
    document = documents.read(str(path))
    rows += [
      {'device': document['machine']['device'], **row}
      for row in document['rows']
      if 'error' not in row
    ]
  return rows


@dataclasses.dataclass(frozen=True)
class Step:
  """A stage's training step of a network in bfloat16.

  Attributes:
    backbone: of the network.
    stage: its name.
    operations: that it needs per image.
  """

  backbone: str
  stage: str
  operations: float


def rate(
  rows: Sequence[Row], step: Step, device: str, images: int, peak: float
) -> Figure:
  """Returns the operations per second that a device does of a step.

  Measured at this batch, else at the nearest one, else a share of the peak.

  Args:
    rows: measured.
    step: what is trained.
    device: pattern of the device's name.
    images: per device.
    peak: operations per second, published.
  """
  wanted = step.backbone, step.stage, 'bfloat16'
  keys = 'network', 'stage', 'dtype'
  found = [
    row
    for row in rows
    if re.fullmatch(device, row['device'])
    and tuple(map(row.get, keys)) == wanted
  ]
  if not found:
    return Figure(EFFICIENCY * peak, ASSUMED)
  nearest = min(
    found, key=lambda row: abs(row['batch_size'] / row['devices'] - images)
  )
  per_device = nearest['images_per_second'] / nearest['devices']
  return Figure(per_device * step.operations, MEASURED)


def _compiled_steps(rows: Sequence[Row], step: Step, chip: str) -> list[Row]:
  """Returns the rows of `--what=compile` that are of a step.

  They do not name the network: what it needs per image tells.
  """
  return [
    row
    for row in rows
    if row.get('kind') == 'training'
    and not row.get('remat')
    and row['program'] == step.stage
    and row['dtype'] == 'bfloat16'
    and row['target'].partition(':')[0] == chip
    and math.isclose(
      row['needed_flops'] * row['devices'] / row['batch_size'],
      step.operations,
      rel_tol=1e-6,
    )
  ]


def traffic_seconds(
  rows: Sequence[Row], step: Step, chip: str, images: int
) -> Figure | None:
  """Returns what reading and writing the main memory takes at least.

  In proportion to the images, from the nearest batch; None where nothing was
  compiled.

  Args:
    rows: compiled.
    step: what is trained.
    chip: 'h100', ...
    images: per device.
  """
  found = {
    row['batch_size'] // row['devices']: row['traffic_bytes']
    for row in _compiled_steps(rows, step, chip)
  }
  if not found:
    return None
  size = min(found, key=lambda size: abs(size - images))
  seconds = found[size] / compile_targets.CHIPS[chip].bandwidth
  return Figure(seconds * images / size, COMPILED)


def all_reduces(
  rows: Sequence[Row], step: Step, chip: str
) -> tuple[int, int] | None:
  """Returns (number, bytes) of a compiled step's sums over devices, or None."""
  for row in _compiled_steps(rows, step, chip):
    if row['devices'] > 1:
      kinds = row['all_reduces'].values()
      return (
        sum(kind['number'] for kind in kinds),
        sum(kind['bytes'] for kind in kinds),
      )
  return None


def memory_bytes(
  rows: Sequence[Row], step: Step, chip: str, images: int
) -> Figure | None:
  """Returns what a compiled step holds at once on a device.

  For a batch that was not compiled, on the straight line through the two
  nearest ones; None where fewer were compiled.

  Args:
    rows: compiled.
    step: what is trained.
    chip: 'h100', ...
    images: per device.
  """
  sizes = {
    row['batch_size'] // row['devices']: row['memory']['total']
    for row in _compiled_steps(rows, step, chip)
  }
  sizes |= {
    row['batch_size']: row['bytes']
    for row in rows
    if (row.get('backbone'), row.get('stage')) == (step.backbone, step.stage)
    and row['dtype'] == 'bfloat16'
    and row['target'].partition(':')[0] == chip
    and row['bytes'] is not None
  }
  if images in sizes:
    return Figure(sizes[images], COMPILED)
  if len(sizes) < 2:
    return None
  near, far = sorted(sizes, key=lambda size: abs(size - images))[:2]
  slope = (sizes[far] - sizes[near]) / (far - near)
  return Figure(sizes[near] + slope * (images - near), COMPILED)
