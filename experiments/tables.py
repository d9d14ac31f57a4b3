"""The experiments' JSON as Markdown tables; docs/tools/tables.py calls it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dhat_jax.runtime import documents, provenance
from experiments import packing, statistics

# What is compared with what, in the table of differences.
CONTRASTS = (
  ('DH-AT, pairwise', 'single head'),
  ('DH-AT, pairwise', 'single head, wide'),
  ('DH-AT, pairwise', 'DH-AT, mean'),
  ('DH-AT, classwise', 'DH-AT, pairwise'),
  ('DH-AT, mean', 'single head'),
  ('DH-AT, mean', 'single head, wide'),
  ('single head, wide', 'single head'),
)
SUMMARY = 2  # the first of these, for a summary
TITLES = {
  'clean': 'clean',
  'pgd_40': 'PGD-40',
  'cw_40': 'CW-40',
  'autoattack': 'AutoAttack',
  'worst_case': 'worst case',
}


def title(attack: str) -> str:
  """Returns what a column is called; a budget of its own is said."""
  name, budget, _ = attack.partition('(')
  return TITLES.get(name, name) + (' (short)' if budget else '')


def attacks(record: Mapping[str, Any]) -> list[str]:
  """Returns the attacks of all rows, and the worst case of each row's."""
  names = dict.fromkeys(
    attack for row in record['rows'] for attack in row['accuracy']
  )
  return [*names, 'worst_case']


def _of(row: Mapping[str, Any], attack: str) -> float:
  """Returns an accuracy in percent; nan if a row lacks the attack."""
  known = {**row['accuracy'], 'worst_case': row['worst_case']}
  return 100 * known.get(attack, math.nan)


def _grouped(record: Mapping[str, Any]) -> dict[str, dict[str, list]]:
  """Returns {group: {variant: rows by seed}}, in the order of the JSON."""
  groups = {}
  for row in record['rows']:
    variants = groups.setdefault(row['group'], {})
    variants.setdefault(row['variant'], []).append(row)
  for variants in groups.values():
    for rows in variants.values():
      rows.sort(key=lambda row: row['seed'])
  return groups


def _mean(values: Sequence[float], digits: int = 1) -> str:
  mean, deviation = statistics.mean_and_deviation(values)
  if math.isnan(mean):
    return ''
  spread = '' if math.isnan(deviation) else f' ± {deviation:.{digits}f}'
  return f'{mean:.{digits}f}{spread}'


def _interval(
  rows: Sequence, baseline: Sequence, attack: str
) -> tuple[float, float, float]:
  """Returns a paired difference in points, over the seeds both have.

  (mean, low, high) over seeds, or over images where there is one seed; ends
  that are not known are nan.
  """
  seeds = {row['seed'] for row in rows} & {row['seed'] for row in baseline}
  rows, baseline = (
    [row for row in of if row['seed'] in seeds] for of in (rows, baseline)
  )
  if not seeds or any(
    math.isnan(_of(row, attack)) for row in (*rows, *baseline)
  ):
    return (math.nan,) * 3
  if len(seeds) > 1 or attack == 'worst_case':
    return statistics.over_seeds(
      *([_of(row, attack) for row in of] for of in (rows, baseline))
    )
  interval = statistics.over_images(
    *(packing.unpack(of[0]['images'][attack]) for of in (rows, baseline))
  )
  return tuple(100 * value for value in interval)


def _difference(mean: float, low: float, high: float) -> str:
  """Formats a difference; what is certain stands out."""
  if math.isnan(mean):
    return ''
  if math.isnan(low):
    return f'{mean:+.1f}'
  text = f'{mean:+.1f} [{low:+.1f}, {high:+.1f}]'
  return f'**{text}**' if low > 0 or high < 0 else text


def _flagged(rows: Sequence) -> str:
  """Formats how many of the rows' audits raised a red flag."""
  audited = [row for row in rows if row['red_flags'] is not None]
  flagged = sum(bool(row['red_flags']) for row in audited)
  return f'{flagged} of {len(audited)}' if audited else ''


def accuracies(record: Mapping[str, Any]) -> str:
  """Returns the accuracies of each variant, mean and standard deviation."""
  names = attacks(record)
  headers = (
    '',
    'variant',
    'parameters',
    'cost',
    *map(title, names),
    'audits with a flag',
    'seeds',
  )
  cells = []
  for group, variants in _grouped(record).items():
    least = next(iter(variants.values()))[0]['training_gmacs']
    for variant, rows in variants.items():
      cells.append(
        (
          group,
          variant,
          f'{rows[0]["parameters"]:,}',
          f'{rows[0]["training_gmacs"] / least:.2f}',
          *(_mean([_of(row, attack) for row in rows]) for attack in names),
          _flagged(rows),
          str(len(rows)),
        )
      )
  return documents.markdown_table(headers, cells, left=2)


def _contrasts(
  variants: Mapping[str, list], contrasts: Sequence[tuple[str, str]]
) -> list[tuple[str, str]]:
  """Returns the pairs to compare: the listed ones, or each with the first."""
  pairs = [pair for pair in contrasts if set(pair) <= set(variants)]
  first, *others = variants
  return pairs or [(variant, first) for variant in others]


def intervals(
  record: Mapping[str, Any], contrasts: Sequence[tuple[str, str]] = CONTRASTS
) -> list[tuple[str, dict[str, tuple[float, float, float]]]]:
  """Returns [('<group>: <variant> − <baseline>', {attack: interval})]."""
  return [
    (
      f'{group}: {variant} − {baseline}',
      {
        attack: _interval(variants[variant], variants[baseline], attack)
        for attack in attacks(record)
      },
    )
    for group, variants in _grouped(record).items()
    for variant, baseline in _contrasts(variants, contrasts)
  ]


def certain(
  record: Mapping[str, Any], contrasts: Sequence[tuple[str, str]] = CONTRASTS
) -> str:
  """Says how many intervals exclude 0, and how many would by chance."""
  known = [
    (low, high)
    for _, by_attack in intervals(record, contrasts)
    for _, low, high in by_attack.values()
    if not math.isnan(low)
  ]
  excluding = sum(low > 0 or high < 0 for low, high in known)
  return (
    f'**Bold**: the interval excludes 0, as {excluding} of {len(known)} do '
    f'(by chance alone about {0.05 * len(known):.0f} would).'
  )


def differences(
  record: Mapping[str, Any], contrasts: Sequence[tuple[str, str]] = CONTRASTS
) -> str:
  """Returns the paired differences in points, with 95 % intervals."""
  names = attacks(record)
  headers = '', 'difference', *map(title, names)
  cells = []
  for label, by_attack in intervals(record, contrasts):
    group, _, pair = label.partition(': ')
    ends = (_difference(*by_attack[attack]) for attack in names)
    cells.append((group, pair, *ends))
  return documents.markdown_table(headers, cells, left=2)


def caption(record: Mapping[str, Any]) -> str:
  """What a table is of."""
  rows = record['rows']
  epsilon = rows[0]['epsilon']
  seeds = sorted({row['seed'] for row in rows})
  budgets = [name for name in rows[0]['accuracy'] if '(' in name]
  text = (
    f'Accuracy in % on {rows[0]["n_test"]:,} test images of {record["data"]}; '
    f'epsilon {epsilon:.4g} ({255 * epsilon:.3g}/255); seeds '
    f'{", ".join(map(str, seeds))}; {provenance.describe(record["machine"])}.'
  )
  if budgets:
    text += f' AutoAttack here is `{budgets[0]}`.'
  if record['missing']:
    text += f' {record["missing"]} rows are not made yet.'
  return text


def table(record: Mapping[str, Any], view: str) -> list[str]:
  """Returns a view of an experiment as lines of Markdown, with its caption.

  Args:
    record: the experiment's JSON.
    view: 'accuracies', 'differences', or 'summary' for a few of these.
  """
  if view == 'accuracies':
    note = (
      ' *Cost*: multiply-adds of the training, beside the first row of the '
      'group. Mean ± standard deviation over seeds.'
    )
    return [accuracies(record), '', caption(record) + note]
  single = len({row['seed'] for row in record['rows']}) == 1
  note = (
    ' Points, same images: 95 % confidence for other images of the kind, for '
    'these networks (nothing is known of other seeds).'
    if single
    else ' Points, same seeds: 95 % confidence (Student), for other seeds on '
    'these images.'
  )
  contrasts = CONTRASTS[:SUMMARY] if view == 'summary' else CONTRASTS
  return [
    differences(record, contrasts),
    '',
    f'{caption(record)}{note} {certain(record, contrasts)}',
  ]
