"""What the sections show, computed from a run as plain data.

Each function returns an empty list where a run lacks what it shows.
"""

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure

from dhat_jax.report import plots, tables
from dhat_jax.report.blocks import Block, Grid, Picture, Sentence
from dhat_jax.report.read import Output, Run
from dhat_jax.report.tables import Table, percent

# Which heads are right: the keys of the results' `agreement`.
_AGREEMENT = {
  'both': 'both heads right',
  'all': 'all heads right',
  'several': 'several heads right',
  'neither': 'no head right',
}


def summary(run: Run) -> str:
  """Returns the results in a sentence or two."""
  if not run.outputs:
    return 'This run has not been evaluated yet.'
  outputs = dict.fromkeys((run.final_output, run.first_output))
  return ' '.join(
    [*(_right_on(run, output) for output in outputs), *_audit_summary(run)]
  )


def _right_on(run: Run, output: Output) -> str:
  attacks = dict(run.results['accuracy'][output.name])
  clean = attacks.pop('clean', None)
  parts = []
  if clean is not None:
    parts.append(f'{percent(clean)} % of the clean images')
  if attacks:
    worst = min(attacks, key=attacks.get)
    parts.append(f'{percent(attacks[worst])} % under {worst}, its worst attack')
  return f'The {output.label} output is right on {" and on ".join(parts)}.'


def _audit_summary(run: Run) -> list[str]:
  if 'audit' in run.results:
    count = len(run.results['audit']['flags'])
    if not count:
      return ['The audit raised no red flag.']
    return [
      f'The audit raised {count} red flag{"s" if count > 1 else ""}: the '
      'robustness of the aggregated output is not to be believed.'
    ]
  if any(output.name == 'aggregated' for output in run.outputs):
    return ['The aggregated output was not audited.']
  return []


def comparison(runs: Sequence[Run]) -> list[Block]:
  """The accuracies of several runs side by side."""
  evaluated = [run for run in runs if run.outputs]
  if not evaluated:
    return []
  return [Grid(tables.comparison(evaluated), file_name='comparison')]


def accuracy(run: Run) -> list[Block]:
  """The accuracies of every output under every attack."""
  if not run.outputs:
    return []
  return [Grid(tables.with_differences(run), file_name=f'{run.name}_accuracy')]


def picture(
  draw: Callable[[Run], Figure | None], alt: str
) -> Callable[[Run], list[Block]]:
  """Returns a function that shows the figure of a run.

  Args:
    draw: makes the figure, None where there is nothing to show; its name
      becomes part of the file's.
    alt: what is seen, for readers who do not see it.
  """

  def show(run: Run) -> list[Block]:
    png = plots.png(draw, run)
    if png is None:
      return []
    return [Picture(png, alt, file_name=f'{run.name}_{draw.__name__}')]

  return show


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
    [attack, percent(white_box['accuracy']), ''],
    ['the same on the margin', percent(white_box['margin_accuracy']), ''],
    *(
      [name, percent(row['accuracy']), str(row['missed'])]
      for name, row in results['attacks'].items()
    ),
    ['all of these together', percent(results['worst_case']), ''],
  ]
  header = ['attack', 'accuracy, %', 'broken although the first failed']
  verdict = flags or [Sentence('No red flag.')]
  return [*verdict, Grid(Table(header, rows))]


def agreement(run: Run) -> list[Block]:
  """How many images each head gets right, and the aggregated output of them."""
  attacks = run.results.get('heads', {}).get('agreement')
  if not attacks:
    return []
  rows = [
    [
      attack,
      _group_label(run, group),
      str(row['images']),
      str(row['aggregated_right']),
    ]
    for attack, groups in attacks.items()
    for group, row in groups.items()
  ]
  return [
    Grid(Table(['images', 'heads', 'how many', 'aggregated right'], rows))
  ]


def _group_label(run: Run, group: str) -> str:
  """Returns in words which heads are right."""
  labels = {output.name: output.label for output in run.outputs}
  name = group.removeprefix('only_')
  if name == group:
    return _AGREEMENT.get(group, group)
  label = labels.get(name, name)
  # Older results name their outputs alone.
  return f'only the {label if label != name else f"{name} head"} right'


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
