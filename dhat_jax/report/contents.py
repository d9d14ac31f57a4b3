"""What the sections show, computed from a run as plain data.

Each function returns an empty list where a run lacks what it shows.
"""

from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from dhat_jax.report import broken, headline, pairs, tables, theme
from dhat_jax.report.blocks import Block, Grid, Picture, Sentence
from dhat_jax.report.read import Run
from dhat_jax.report.tables import Table, percent

# Which heads are right: the keys of the results' `agreement`.
_AGREEMENT = {
  'both': 'both heads right',
  'all': 'all heads right',
  'several': 'several heads right',
  'neither': 'no head right',
}


def accuracy(run: Run) -> list[Block]:
  """The accuracies of every output under every attack."""
  if not run.outputs:
    return []
  blocks: list[Block] = [
    Grid(
      tables.by_attack(run),
      file_name=f'{run.name}_accuracy',
      copied=tables.with_differences(run),
      caption=f'In brackets: points from {run.first_output.phrase}.'
      if len(run.outputs) > 1
      else '',
    )
  ]
  differences = _differences(run)
  if differences:
    caption = (
      f'“{run.final_output.label}” minus “{run.first_output.label}”, in points.'
    )
    blocks.append(Grid(differences, caption=caption))
  randomized = tables.randomized(run)
  if randomized:
    samples = run.results['randomized']['samples']
    caption = (
      f'A randomised network: the mean of {samples} evaluations, with their '
      'standard deviation; worst: images that are right in all of them. Above, '
      'an image counts if most of them are right.'
    )
    blocks.append(Grid(randomized, caption=caption))
  natural = tables.natural(run)
  if natural:
    caption = 'The same network, trained on clean images only.'
    blocks.append(Grid(natural, caption=caption))
  return blocks


def _differences(run: Run) -> Table | None:
  """How far the final output is from the first, with intervals."""
  final, first = run.final_output, run.first_output
  if final == first:
    return None
  differences = {
    name: pairs.difference(run, final.name, first.name, name)
    for name in tables.attack_names([run])
  }
  rows = [
    [name, f'{row.points:+.1f}', row.interval, 'yes' if row.sign else 'no']
    for name, row in differences.items()
    if row is not None and row.is_known
  ]
  header = ['attack', 'difference', '95 % interval', 'beyond noise']
  return Table(header, rows) if rows else None


def picture(
  draw: Callable[[Run, float], Figure | None], alt: str
) -> Callable[[Run], list[Block]]:
  """Returns a function that shows the figure of a run.

  Args:
    draw: (run, inches of width) -> figure, None where there is nothing to
      show; its name becomes part of the file's.
    alt: what is seen, for readers who do not see it.
  """

  def show(run: Run) -> list[Block]:
    with matplotlib.rc_context(theme.STYLE):
      wide = draw(run, theme.WIDE_INCHES)
      if wide is None:
        return []
      narrow = draw(run, theme.NARROW_INCHES)
    return [
      Picture(
        wide=theme.to_svg(wide),
        narrow=theme.to_svg(narrow),
        png=theme.to_png(wide),
        alt=f'{alt}: {run.name}',
        file_name=f'{run.name}_{draw.__name__}',
      )
    ]

  return show


def autoattack(run: Run) -> list[Block]:
  """How many images each attack broke, which ones, and the first of each."""
  name = headline.autoattack_name(run)
  output = broken.attacked(run, name)
  if output is None:
    return []
  details = run.results.get('autoattack', {}).get(output, {}).get(name)
  shown: list[Block] = []
  if details:
    caption = (
      f'Of the output “{run.label(output)}”, {details["images"]} images.'
    )
    shown.append(Grid(broken.counts(details), caption=caption))
  table = broken.table_of(run, output, name)
  if table is None:
    text = (
      'Which images these are is not known: their record is missing, of an '
      'earlier version, or not of these results.'
    )
    return [*shown, Sentence(text)]
  return [*shown, *_first_images(run, output, name), _listed(run, output, name)]


def _first_images(run: Run, output: str, name: str) -> list[Block]:
  """The figure of the first image that each attack broke."""

  def first_images(run: Run, width: float) -> Figure | None:
    return broken.first_images(run, output, name, width)

  alt = 'The first image that each attack broke, before and after'
  return picture(first_images, alt)(run)


def _listed(run: Run, output: str, name: str) -> Grid:
  """The list of images, which filters and sorts."""
  table = broken.table_of(run, output, name)
  listed = broken.listed(run, table)
  return Grid(
    listed,
    caption=broken.caption(
      f'evaluation/{output}/{name}.csv',
      len(listed.rows),
      len(table['broken_by']),
    ),
    is_sortable=True,
    filters=broken.FILTERS,
  )


def audit(run: Run) -> list[Block]:
  """The audit's verdict, and the accuracies that it rests on."""
  results = run.results.get('audit')
  if not results:
    return []
  flags = [
    Sentence(flag['sentence'], title=f'Red flag: {flag["name"]}.', is_flag=True)
    for flag in results['flags']
  ]
  white_box = results['white_box']
  attack = f'{results["attack"]}, with the gradients'
  rows = [
    [attack, percent(white_box['accuracy']), '', ''],
    ['the same on the margin', percent(white_box['margin_accuracy']), '', ''],
    *_other_white_box(white_box),
    *(
      [
        name,
        percent(row['accuracy']),
        str(row['missed']),
        str(row.get('images', '')),
      ]
      for name, row in results['attacks'].items()
    ),
    ['all of these together', percent(results['worst_case']), '', ''],
  ]
  missed = 'images that attacks with the gradients missed'
  header = ['attack', 'accuracy, %', missed, 'of images']
  caption = f'Of the output “{run.final_output.label}”.'
  return [
    *(flags or [Sentence('No red flag.')]),
    Grid(Table(header, rows), caption=caption),
  ]


def _other_white_box(white_box: dict) -> list[list[str]]:
  """The other attacks with the gradients; audits of old runs have none."""
  others = white_box.get('others', {})
  return [
    [name, percent(accuracy), '', ''] for name, accuracy in others.items()
  ]


def agreement(run: Run) -> list[Block]:
  """How many images each head gets right, and the final output of them."""
  attacks = run.results.get('heads', {}).get('agreement')
  if not attacks:
    return []
  rows = [
    [
      attack,
      _group_label(run, group),
      str(row.get('images', '')),
      str(row['aggregated_right']),
    ]
    for attack, groups in attacks.items()
    for group, row in groups.items()
  ]
  header = ['attack', 'heads', 'images', f'{run.final_output.label} right']
  return [Grid(Table(header, rows)), *_fitted(run)]


def _fitted(run: Run) -> list[Block]:
  """The numbers of an aggregator that was fitted, in one row."""
  numbers = run.results.get('heads', {}).get('fitted')
  if not numbers:
    return []
  row = [f'{value:.5g}' for value in numbers.values()]
  caption = 'Numbers of the aggregator, fitted on held-out images.'
  return [Grid(Table(list(numbers), [row]), caption=caption)]


def _group_label(run: Run, group: str) -> str:
  """Returns in words which heads are right."""
  name = group.removeprefix('only_')
  if name == group:
    return _AGREEMENT.get(group, group)
  phrases = {output.name: output.phrase for output in run.outputs}
  return f'only {phrases.get(name, name)} right'


def cost(run: Run) -> list[Block]:
  """The wall time and the speed of every part."""
  seconds = run.results.get('seconds', {})
  rows = []
  for part in dict.fromkeys([*run.stages, *seconds]):
    _, speeds = run.series(part, 'train/images_per_second')
    _, compile_secs = run.series(part, 'train/compile_seconds')
    rows.append(
      [
        part,
        f'{seconds[part]:.0f}' if part in seconds else '',
        f'{sorted(speeds)[len(speeds) // 2]:.0f}' if speeds else '',
        f'{sum(compile_secs):.1f}' if compile_secs else '',
      ]
    )
  header = ['part', 'seconds', 'images per second', 'seconds until first step']
  return [Grid(Table(header, rows))] if rows else []


def provenance(run: Run) -> list[Block]:
  """The versions and the config, folded."""
  return [
    Grid(Table(['key', 'value'], _flat(values)), folded=title)
    for title, values in (
      ('What it ran on', run.environment),
      ('Config', run.config),
    )
    if values
  ]


def _flat(value: Any, prefix: str = '') -> list[list[str]]:
  """Returns [dotted key, value] of everything in a tree of objects."""
  if not isinstance(value, dict):
    return [[prefix, str(value)]]
  return [
    row
    for key, item in value.items()
    for row in _flat(item, f'{prefix}.{key}' if prefix else str(key))
  ]
