"""The four numbers at the top of a page: clean, PGD, AutoAttack, worst case."""

import re

from dhat_jax.report.read import Run
from dhat_jax.report.tables import (
  NOT_RUN,
  WORST,
  Table,
  accuracies,
  listed_attacks,
  percent,
)

_USUAL_PGD, _USUAL_AUTOATTACK = 'PGD-40', 'AutoAttack'


def pgd_name(*runs: Run) -> str | None:
  """Returns the PGD of most steps among the attacks of some runs, or None."""
  steps = [
    int(match[1])
    for name in listed_attacks(runs)
    if (match := re.fullmatch(r'pgd_(\d+)', name))
  ]
  return f'pgd_{max(steps)}' if steps else None


def autoattack_name(*runs: Run) -> str | None:
  """Returns AutoAttack among the attacks of some runs, or None.

  The standard one if it is there, else the first of another budget.
  """
  names = [n for n in listed_attacks(runs) if re.match(r'autoattack\b', n)]
  return min(names, key=len, default=None)


def columns(*runs: Run) -> dict[str, str | None]:
  """Returns {heading: attack} of the four numbers; None was not run.

  A star marks an AutoAttack of another budget than the standard one.
  """
  pgd, autoattack = pgd_name(*runs), autoattack_name(*runs)
  shortened = autoattack is not None and autoattack != 'autoattack'
  return {
    'clean': 'clean',
    pgd.upper().replace('_', '-') if pgd else _USUAL_PGD: pgd,
    f'{_USUAL_AUTOATTACK}{"*" if shortened else ""}': autoattack,
    WORST: WORST,
  }


def footnote(*runs: Run) -> str:
  """Returns what the star of `columns` means; '' where there is none."""
  name = autoattack_name(*runs)
  if name in (None, 'autoattack'):
    return ''
  return f'* Not the standard AutoAttack: {name}.'


def table(run: Run) -> Table:
  """Returns the four numbers of each output of a run, in %."""
  heads = columns(run)
  rows = []
  for output in run.outputs:
    row = accuracies(run, output.name)
    cells = [
      percent(row[attack]) if attack in row else NOT_RUN
      for attack in heads.values()
    ]
    rows.append([output.label, *cells])
  return Table(['output', *heads], rows)


def best_known(run: Run) -> tuple[str, str] | None:
  """Returns (title, text) of the best known accuracy.

  Returns:
    None where it was not computed, or is AutoAttack's.
  """
  known = run.results.get('best_known', {})
  outputs = [o for o in run.outputs if o.name in known]
  if not outputs:
    return None
  final = run.final_output
  output = final if final in outputs else outputs[-1]
  numbers = known[output.name]
  lost = numbers['autoattack'] - numbers['accuracy']
  if lost <= 0:
    return None
  return (
    f'Best known accuracy: {percent(numbers["accuracy"])} %.',
    f'All attacks together leave {output.phrase} {100 * lost:.1f} points less '
    f'than AutoAttack alone, on {numbers["images"]} images: '
    f'{numbers["sentence"]}',
  )
