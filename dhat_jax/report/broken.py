"""The section of AutoAttack: which image fell to what."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dhat_jax.report.examples import show_changes
from dhat_jax.report.read import Run
from dhat_jax.report.tables import Table, percent
from dhat_jax.report.theme import NARROW_INCHES, new_figure

# So many images are listed at most, to keep the page light.
LONGEST = 600
_NARROW_IMAGES = 4  # as many side by side can be seen on a phone
_IMAGE_INCHES = 1.3
_CLEAN = 'wrong when clean'
_TABLE = 'table/'  # of the names of the arrays per image
HEADER = [
  'image',
  'class',
  'robust',
  'broken by',
  'where',
  'clean prediction',
  'attacked prediction',
  'change',
  'margin before',
  'margin after',
]
FILTERS = ('robust', 'broken by', 'class')

Arrays = Mapping[str, np.ndarray]


def attacked(run: Run, name: str | None) -> str | None:
  """Returns the output that an attack is shown of: the final one if it can.

  Args:
    run: evaluated or not.
    name: of the attack, or None.
  """
  accuracy = run.results.get('accuracy', {})
  outputs = [o.name for o in run.outputs if name in accuracy[o.name]]
  if not outputs:
    return None
  final = run.final_output.name
  return final if final in outputs else outputs[-1]


def counts(details: Mapping[str, Any]) -> Table:
  """The images that each attack broke first, and what was left after it.

  Args:
    details: of an output and an attack, in the results' `autoattack`.
  """
  after = details['accuracy_after']
  shares = list(after.values())
  broken = details.get('broken_by') or {
    # Older results say it in shares alone.
    name: round(details['images'] * (before - left))
    for name, before, left in zip(after, [1.0, *shares], shares, strict=False)
  }
  rows = [
    [_CLEAN if name == 'clean' else name, str(broken[name]), percent(left)]
    for name, left in after.items()
  ]
  header = ['attack', 'images that it broke first', 'accuracy after it, %']
  return Table(header, rows)


def table_of(run: Run, output: str, name: str) -> Arrays | None:
  """Returns what a record says of each image: {name: [n]}.

  Returns:
    None where the record is missing, of an earlier version, or not of the
    results.
  """
  arrays = _below_table(run.arrays(output, name))
  known = 'broken_by' in arrays and run.robust(output, name) is not None
  return arrays if known else None


def _below_table(arrays: Arrays) -> dict[str, np.ndarray]:
  return {
    key.removeprefix(_TABLE): values
    for key, values in arrays.items()
    if key.startswith(_TABLE)
  }


def first_images(
  run: Run, output: str, name: str, width: float
) -> Figure | None:
  """The first image that each attack broke: clean, change, attacked.

  Args:
    run: with the arrays of its evaluation.
    output: that was attacked.
    name: of the ensemble.
    width: the most inches that it may take; in little room there are fewer
      images.
  """
  arrays = run.arrays(output, name)
  table = _below_table(arrays)
  places = arrays.get('picture_places', ())
  shown = slice(_NARROW_IMAGES if width <= NARROW_INCHES else None)
  places = places[shown]
  if not len(places):
    return None
  before, after = np.moveaxis(arrays['pictures'][shown].astype(float), 1, 0)
  needed = _IMAGE_INCHES * (len(places) + 0.5)  # and the titles at the left
  figure, grid = new_figure(
    3, len(places), width=min(width, needed), height=3.8
  )
  show_changes(grid, before, after, epsilon=run.results['epsilon'])
  for column, place in zip(grid.T, places, strict=True):
    column[0].set_title(
      f'{table["broken_by"][place]}\nimage {place}', fontsize=8
    )
    for cell, classes in ((column[0], 'labels'), (column[2], 'predictions')):
      text = _class(run, table[classes][place])
      cell.set_xlabel(text, fontsize=7)
  return figure


def _class(run: Run, index: int) -> str:
  names = run.class_names
  return names[index] if 0 <= index < len(names) else ''


def listed(run: Run, table: Arrays) -> Table:
  """A row per image, of so many images as the page can carry.

  Args:
    run: for the names of the classes.
    table: from `table_of`.
  """
  places = spread(table['broken_by'], LONGEST)
  rows = [
    _row(run, {name: values[place] for name, values in table.items()}, place)
    for place in places
  ]
  return Table(HEADER, rows)


def caption(path: str, shown: int, count: int) -> str:
  """Returns what the list holds.

  Args:
    path: of the file that has all images.
    shown: how many images are listed.
    count: how many there are.
  """
  if shown == count:
    return f'All {count} images; also in {path}.'
  return (
    f'{shown} of {count} images: the first ones of each attack, of the robust '
    f'ones and of those wrong before. {path} has all.'
  )


def spread(groups: np.ndarray, most: int) -> np.ndarray:
  """Chooses the first images of each group, equally many where there are.

  Args:
    groups: str [n], each image's group.
    most: how many to choose.

  Returns:
    int [m], places in order.
  """
  ranks = np.zeros(len(groups), int)  # [n], places within the groups
  for group in np.unique(groups):
    members = groups == group
    ranks[members] = np.arange(members.sum())
  return np.sort(np.argsort(ranks, kind='stable')[:most])


def _row(run: Run, image: Mapping[str, Any], place: int) -> list[str]:
  """Returns the cells of one image; '' where there is nothing to say."""
  attack = str(image['broken_by'])
  cells = [
    str(place),
    _class(run, image['labels']),
    'no' if attack else 'yes',
    _CLEAN if attack == 'clean' else attack,
    _where(run, attack, image),
    _class(run, image['clean_predictions']),
    *[''] * 2,
    f'{image["clean_margins"]:.3g}',
    '',
  ]
  if attack not in ('', 'clean'):
    cells[6:8] = [
      _class(run, image['predictions']),
      f'{image["changes"]:.4g}',
    ]
    cells[9] = f'{image["margins"]:.3g}'
  return cells


def _where(run: Run, attack: str, image: Mapping[str, Any]) -> str:
  """Returns the pass in which an image broke, in words."""
  number = int(image['broken_in'])
  if attack.endswith('-t'):
    return f'towards {_class(run, image["targets"])} (rank {number})'
  if attack == 'square':
    return f'piece {number}'
  return f'restart {number}' if attack not in ('', 'clean') else ''
