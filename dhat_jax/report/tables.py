"""Accuracies as tables: for a page, for Markdown, for LaTeX, as CSV."""

import csv
import io
import json
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from dhat_jax.report.read import Run

WORST = 'worst case'


class Table(NamedTuple):
  """Text in cells.

  Attributes:
    header: the columns' names.
    rows: one text for each column.
  """

  header: list[str]
  rows: list[list[str]]


def percent(value: float | None) -> str:
  """Formats a share in [0, 1] in percent."""
  return '' if value is None else f'{100 * value:.1f}'


def accuracies(run: Run, output: str) -> dict[str, float]:
  """Returns {attack: accuracy} of an output, the worst case last."""
  row = dict(run.results['accuracy'].get(output, {}))
  worst = run.results.get('worst_case', {}).get(output)
  return row if worst is None else {**row, WORST: worst}


def attack_names(runs: Sequence[Run]) -> list[str]:
  """Returns the attacks of some runs, the worst case last."""
  names = dict.fromkeys(
    name
    for run in runs
    for output in run.outputs
    for name in accuracies(run, output)
  )
  return [n for n in names if n != WORST] + [n for n in names if n == WORST]


def with_differences(run: Run) -> Table:
  """One run: each output's accuracies, and how far from the main head's."""
  names = attack_names([run])
  main = accuracies(run, 'main')
  rows = []
  for output in run.outputs:
    row = accuracies(run, output)
    cells = []
    for name in names:
      cell = percent(row.get(name))
      if output != 'main' and name in row and name in main:
        cell += f' ({100 * (row[name] - main[name]):+.1f})'
      cells.append(cell)
    rows.append([output, *cells])
  natural = run.results.get('natural', {}).get('accuracy', {})
  for output, row in natural.items():
    rows.append(
      [f'{output}, trained on clean images only']
      + [percent(row.get(name)) for name in names]
    )
  return Table(['output', *names], rows)


def groups(runs: Sequence[Run]) -> list[list[Run]]:
  """Groups runs of one config that differ in their seed alone."""
  found = {}
  for run in runs:
    # That of the results: an evaluation may have had another epsilon.
    config = run.results.get('config') or run.config
    config = {k: v for k, v in config.items() if k != 'seed'}
    key = json.dumps(config, sort_keys=True) if config else run.directory
    found.setdefault(key, []).append(run)
  return list(found.values())


def mean_and_deviation(values: Sequence[float]) -> str:
  """Formats shares as percent: the mean, and +- the standard deviation.

  The deviation is that of a sample (divided by n - 1), if there are several.
  """
  text = percent(statistics.mean(values))
  if len(values) > 1:
    text += f' ± {100 * statistics.stdev(values):.1f}'
  return text


def comparison(runs: Sequence[Run]) -> Table:
  """Several runs side by side; those that differ by the seed in one row."""
  runs = [run for run in runs if run.outputs]
  names = attack_names(runs)
  rows = []
  for group in groups(runs):
    label = ', '.join(run.name for run in group)
    for output in group[0].outputs:
      cells = []
      for name in names:
        values = [
          row[name]
          for row in (accuracies(run, output) for run in group)
          if name in row
        ]
        cells.append(mean_and_deviation(values) if values else '')
      rows.append([label, output, str(len(group)), *cells])
  return Table(['run', 'output', 'seeds', *names], rows)


def to_csv(table: Table) -> str:
  """Formats a table as CSV."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerows([table.header, *table.rows])
  return text.getvalue()


def _numeric(cell: str) -> bool:
  return not cell or cell[0] in '0123456789-+'


def alignments(table: Table) -> list[bool]:
  """Returns for each column whether it holds numbers."""
  columns = zip(*table.rows, strict=True)
  return [all(map(_numeric, column)) for column in columns]


def to_markdown(table: Table) -> str:
  """Formats a table as Markdown."""
  rules = ['---:' if right else '---' for right in alignments(table)]
  rows = [table.header, rules, *table.rows]
  escaped = [[cell.replace('|', '\\|') for cell in row] for row in rows]
  return '\n'.join(f'| {" | ".join(row)} |' for row in escaped) + '\n'


_LATEX = {
  '\\': r'\textbackslash{}',
  '~': r'\textasciitilde{}',
  '^': r'\textasciicircum{}',
  '±': r'$\pm$',
  **{character: f'\\{character}' for character in '&%$#_{}'},
}


def latex_text(text: str) -> str:
  """Escapes what LaTeX would read as commands."""
  return ''.join(_LATEX.get(character, character) for character in text)


def to_latex(table: Table) -> str:
  """Formats a table for LaTeX with the package booktabs."""
  columns = ''.join('r' if right else 'l' for right in alignments(table))
  lines = [
    ' & '.join(latex_text(cell) for cell in row) + r' \\' for row in table.rows
  ]
  header = ' & '.join(latex_text(cell) for cell in table.header) + r' \\'
  return '\n'.join(
    [
      rf'\begin{{tabular}}{{{columns}}}',
      r'\toprule',
      header,
      r'\midrule',
      *lines,
      r'\bottomrule',
      r'\end{tabular}',
      '',
    ]
  )
