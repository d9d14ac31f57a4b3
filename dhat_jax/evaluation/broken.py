"""Which attack of an ensemble broke which image, in a record and as CSV."""

import os
from typing import Any

import numpy as np

from dhat_jax.attacks.autoattack import image_table
from dhat_jax.evaluation.records import Record
from dhat_jax.runtime import processes


def stored(result: Any, images: np.ndarray) -> dict[str, Any]:
  """Returns what a record holds of each image, and pictures of the first ones.

  Args:
    result: an `AutoAttackResult` on n images.
    images: float [n, H, W, C], the clean ones.

  Returns:
    The fields `per_image`, `picture_places` and `pictures` of `Record`.
  """
  places = _first_places(result.broken_by, tuple(result.flags))
  pictures = np.stack([images[places], result.images_adv[places]], axis=1)
  return {
    'per_image': result.per_image(),
    'picture_places': np.array(places, np.int32),
    'pictures': pictures.astype(np.float16),  # [A, 2, H, W, C]
  }


def _first_places(broken_by: np.ndarray, names: tuple[str, ...]) -> list[int]:
  """Returns the first image that each attack broke, in the attacks' order."""
  attacks = [name for name in names if name != 'clean' and name in broken_by]
  return [int(np.argmax(broken_by == name)) for name in attacks]


def counts(record: Record) -> dict[str, int]:
  """Counts the images that each attack broke first, as the table says.

  The image that an attack keeps of a randomised network may be robust again. So
  the flags alone would count some images twice.

  Args:
    record: of an ensemble; those of earlier versions have no table, but flags.

  Returns:
    {attack: number}, in the order of the attacks; 'clean' are the images that
    were wrong before.
  """
  if record.per_image:
    broken_by = record.per_image['broken_by']
    return {name: int((broken_by == name).sum()) for name in record.flags}
  lost, before = {}, True
  for name, robust in record.flags.items():
    lost[name] = int((before & ~robust).sum())
    before = robust
  return lost


def write_table(directory: str | None, name: str, record: Record) -> None:
  """Writes a row per image as CSV, where the record can tell.

  Args:
    directory: of the records; None writes nothing.
    name: of the file, below the folder, without suffix.
    record: of an ensemble; others, and those of earlier versions, cannot tell.
  """
  if directory is None or not record.per_image or not processes.is_first():
    return
  rows = image_table.rows(record.per_image)
  image_table.write_csv(os.path.join(directory, f'{name}.csv'), rows)
