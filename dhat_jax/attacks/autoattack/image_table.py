"""Which image fell to what: AutoAttack's result as a table."""

import csv
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from dhat_jax.runtime import files

COLUMNS = (
  'place',
  'label',
  'clean_prediction',
  'attacked_prediction',
  'robust',
  'broken_by',
  'target_class',
  'target_rank',
  'restart',
  'piece',
  'change',
  'clean_margin',
  'attacked_margin',
)

Row = dict[str, Any]


def broken_targets(
  broken_by: np.ndarray,
  broken_in: np.ndarray,
  rankings: Mapping[str, np.ndarray],
) -> np.ndarray:
  """Returns the target class of the pass that broke each image.

  Args:
    broken_by: str [N], the attack that broke the image first.
    broken_in: int [N], the pass; the rank of the class in a targeted attack.
    rankings: {targeted attack: int [N, K]}, the classes by their rank, from 1.

  Returns:
    int32 [N]; -1 where no targeted attack broke the image.
  """
  targets = np.full(len(broken_by), -1, np.int32)
  for attack, ranking in rankings.items():
    places = np.flatnonzero(broken_by == attack)
    targets[places] = ranking[places, broken_in[places] - 1]
  return targets


def changes(
  images: np.ndarray, images_adv: np.ndarray, norm: str
) -> np.ndarray:
  """Returns how far each image was changed: [N, ...], [N, ...] -> [N].

  Args:
    images: float.
    images_adv: float, of the same shape.
    norm: 'linf' or 'l2'.
  """
  order = {'linf': np.inf, 'l2': 2}[norm]
  # One after the other: the difference of all may not fit into memory.
  norms = [
    np.linalg.norm((changed - image).ravel(), order)
    for image, changed in zip(images, images_adv, strict=True)
  ]
  return np.array(norms, images.dtype)


def rows(arrays: Mapping[str, np.ndarray]) -> list[Row]:
  """Returns one row per image: {column: value}, None where there is none.

  Args:
    arrays: per image, see `AutoAttackResult`: labels, predictions, margins,
      clean_predictions, clean_margins, broken_by, broken_in, targets, changes.

  Returns:
    For each image the `COLUMNS`, None where there is no adversarial image:

    - place: in the arrays, from 0.
    - label, clean_prediction: classes.
    - attacked_prediction: the class of the adversarial image.
    - robust: whether no attack broke it, and it was right before.
    - broken_by: the attack that broke it first; 'clean' if it was wrong before,
      None if it is robust.
    - target_class, target_rank: of a targeted attack's pass. Rank 1 is the
      largest clean logit, so ranks begin at 2 here. In MALT's order 2 is the
      nearest class.
    - restart: of apgd-ce, apgd-dlr and fab, from 0.
    - piece: of Square's queries, from 0.
    - change: norm of the change, in the attack's norm.
    - clean_margin, attacked_margin: the label's logit less the largest other
      one, on the image and on the adversarial image.
  """
  values = {name: array.tolist() for name, array in arrays.items()}
  return [
    _row(place, {name: column[place] for name, column in values.items()})
    for place in range(len(values['labels']))
  ]


def _row(place: int, image: Mapping[str, Any]) -> Row:
  """Returns the row of one image, from its values in the arrays."""
  attack = image['broken_by']
  attacked = attack not in ('', 'clean')

  def only(condition: bool, name: str) -> Any:
    return image[name] if condition else None

  targeted = attack.endswith('-t')
  square = attack == 'square'
  return {
    'place': place,
    'label': image['labels'],
    'clean_prediction': image['clean_predictions'],
    'attacked_prediction': only(attacked, 'predictions'),
    'robust': attack == '',
    'broken_by': attack or None,
    'target_class': only(targeted, 'targets'),
    'target_rank': only(targeted, 'broken_in'),
    'restart': only(attacked and not targeted and not square, 'broken_in'),
    'piece': only(square, 'broken_in'),
    'change': only(attacked, 'changes'),
    'clean_margin': image['clean_margins'],
    'attacked_margin': only(attacked, 'margins'),
  }


def write_csv(path: str | os.PathLike, table: Iterable[Row]) -> None:
  """Writes rows as CSV with a header, atomically; None becomes empty.

  Numbers have seven digits, which is what float32 holds.

  Args:
    path: the file; its folder is created if necessary.
    table: from `rows`.

  Raises:
    WriteError: the disk refuses the file.
  """
  with files.replacing(files.user_path(os.fspath(path)), 'w') as file:
    writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
    writer.writeheader()
    writer.writerows(map(_texts, table))


def _texts(row: Row) -> dict[str, Any]:
  return {
    name: f'{value:.7g}' if isinstance(value, float) else value
    for name, value in row.items()
  }
