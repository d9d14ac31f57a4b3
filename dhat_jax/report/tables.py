"""Tables of accuracies: for the page, as Markdown, LaTeX and CSV."""

import csv
import io
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import tabulate

from dhat_jax.report.read import Run

WORST = 'worst case'
NOT_RUN = 'not run'  # in place of a number


class Table(NamedTuple):
  """Text in cells.

  Attributes:
    header: the columns' names.
    rows: one text for each column; at least one row.
  """

  header: list[str]
  rows: list[list[str]]

  @property
  def alignments(self) -> list[str]:
    """For each column 'right' if it holds numbers, else 'left'."""
    columns = zip(*self.rows, strict=True)
    return [
      'right' if all(map(_numeric, column)) else 'left' for column in columns
    ]


def _numeric(cell: str) -> bool:
  return cell in ('', NOT_RUN) or cell[0] in '0123456789-+'


def percent(share: float | None) -> str:
  """Formats a share in [0, 1] in percent."""
  return '' if share is None else f'{100 * share:.1f}'


def mean_and_deviation(shares: Sequence[float]) -> str:
  """Formats shares as percent: the mean, and ± the standard deviation.

  The deviation is that of a sample (divided by n - 1), if there are several.
  """
  text = percent(statistics.mean(shares))
  if len(shares) > 1:
    text += f' ± {100 * statistics.stdev(shares):.1f}'
  return text


def accuracies(run: Run, output: str) -> dict[str, float]:
  """Returns {attack: accuracy} of an output, the worst case last."""
  row = dict(run.results['accuracy'].get(output, {}))
  worst = run.results.get('worst_case', {}).get(output)
  return row if worst is None else {**row, WORST: worst}


def listed_attacks(runs: Sequence[Run]) -> list[str]:
  """Returns the attacks of some runs, clean images too, without duplicates."""
  rows = (
    run.results['accuracy'][output.name]
    for run in runs
    for output in run.outputs
  )
  return list(dict.fromkeys(name for row in rows for name in row))


def attack_names(runs: Sequence[Run]) -> list[str]:
  """Returns the columns of some runs: their attacks, the worst case last."""
  known = (
    WORST in accuracies(run, output.name)
    for run in runs
    for output in run.outputs
  )
  return [*listed_attacks(runs), *([WORST] if any(known) else [])]


def _comparable(run: Run, output: str, first: str) -> bool:
  """Whether the worst cases of two outputs are of the same attacks, images."""
  accuracy = run.results['accuracy']
  images = run.results.get('worst_case_images', {})
  attacks = (set(accuracy.get(name, ())) for name in (output, first))
  return (
    images.get(output) == images.get(first)
    and len(set(map(frozenset, attacks))) == 1
  )


def with_differences(run: Run) -> Table:
  """One run: each output's accuracies, and how far from the first one's.

  Worst cases of other attacks, or of fewer images, have no difference.
  """
  names = attack_names([run])
  first_name = run.first_output.name
  first = accuracies(run, first_name)
  rows = []
  for output in run.outputs:
    row = accuracies(run, output.name)
    cells = []
    for name in names:
      cell = percent(row.get(name))
      same = name != WORST or _comparable(run, output.name, first_name)
      if name in row and name in first and output.name != first_name and same:
        cell += f' ({100 * (row[name] - first[name]):+.1f})'
      cells.append(cell)
    rows.append([output.label, *cells])
  twin = run.results.get('natural', {}).get('accuracy', {})
  for output, row in twin.items():
    label = f'{run.label(output)}, trained on clean images only'
    rows.append([label, *(percent(row.get(name)) for name in names)])
  return Table(['output', *names], rows)


def by_attack(run: Run) -> Table:
  """One run, an attack in each row: accuracies, and how far from the first's.

  Narrower than `with_differences`, which has an output in each row.
  """
  table = with_differences(run)
  rows = table.rows[: len(run.outputs)]
  header = ['attack', *(row[0] for row in rows)]
  columns = [table.header[1:], *(row[1:] for row in rows)]
  return Table(header, [list(row) for row in zip(*columns, strict=True)])


def _attack_by_output(
  run: Run, accuracy: Mapping[str, Mapping[str, Any]], cell: Callable
) -> Table | None:
  """Returns {output: {attack: numbers}} as a table, or None if it is empty."""
  if not accuracy:
    return None
  names = dict.fromkeys(name for row in accuracy.values() for name in row)
  rows = [
    [name, *(cell(row.get(name)) for row in accuracy.values())]
    for name in names
  ]
  return Table(['attack', *map(run.label, accuracy)], rows)


def natural(run: Run) -> Table | None:
  """Accuracies of the network trained on clean images only, or None."""
  accuracy = run.results.get('natural', {}).get('accuracy', {})
  return _attack_by_output(run, accuracy, percent)


def randomized(run: Run) -> Table | None:
  """Means of a randomised network's evaluations, or None without noise."""
  accuracy = run.results.get('randomized', {}).get('accuracy', {})
  return _attack_by_output(run, accuracy, _sampled)


def _sampled(numbers: Mapping[str, float] | None) -> str:
  """Formats a mean, its spread, and the worst of all evaluations."""
  if numbers is None:
    return percent(None)
  spread, worst = 100 * numbers['spread'], percent(numbers['worst'])
  return f'{percent(numbers["mean"])} ± {spread:.1f} (worst {worst})'


def same_but_seed(runs: Sequence[Run]) -> list[list[Run]]:
  """Groups runs of one config that differ in their seed alone."""
  groups: dict[str, list[Run]] = {}
  for run in runs:
    # That of the results: an evaluation may have had another epsilon.
    config = run.results.get('config') or run.config
    config = {k: v for k, v in config.items() if k != 'seed'}
    key = json.dumps(config, sort_keys=True) if config else run.directory
    groups.setdefault(key, []).append(run)
  return list(groups.values())


def comparison(runs: Sequence[Run]) -> Table:
  """Several runs side by side; those that differ by the seed in one row."""
  runs = [run for run in runs if run.outputs]
  names = attack_names(runs)
  rows = []
  for group in same_but_seed(runs):
    run_names = ', '.join(run.name for run in group)
    for output in group[0].outputs:
      seeds = [accuracies(run, output.name) for run in group]
      cells = []
      for name in names:
        shares = [row[name] for row in seeds if name in row]
        cells.append(mean_and_deviation(shares) if shares else '')
      rows.append([run_names, output.label, str(len(group)), *cells])
  return Table(['run', 'output', 'seeds', *names], rows)


def to_csv(table: Table) -> str:
  """Formats a table as CSV."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerows([table.header, *table.rows])
  return text.getvalue()


# What would end a cell, or be taken for HTML.
_MARKDOWN = str.maketrans({'|': r'\|', '<': '&lt;', '\n': ' '})


def to_markdown(table: Table) -> str:
  """Formats a table as Markdown."""
  header, *rows = (
    [cell.translate(_MARKDOWN) for cell in row]
    for row in (table.header, *table.rows)
  )
  return _tabulate(Table(header, rows), 'pipe', table.alignments)


def to_latex(table: Table) -> str:
  """Formats a table for LaTeX with the package booktabs."""
  text = _tabulate(table, 'latex_booktabs', table.alignments)
  return text.replace('±', r'$\pm$')


def _tabulate(table: Table, style: str, alignments: list[str]) -> str:
  text = tabulate.tabulate(
    table.rows,
    table.header,
    tablefmt=style,
    disable_numparse=True,
    colalign=alignments,
  )
  return text + '\n'
