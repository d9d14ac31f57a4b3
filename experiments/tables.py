"""The experiments' JSON as Markdown tables; docs/tools/tables.py calls it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

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
CARD = '0/dual'  # whose network is in docs/models
SUMMARY = 2  # the first of these, for a summary
TITLES = {
  'clean': 'clean',
  'pgd_40': 'PGD-40',
  'cw_40': 'CW-40',
  'autoattack': 'AutoAttack',
  'worst_case': 'worst case',
}


def title(attack: str) -> str:
  """Returns what a column is called; a smaller budget is said.

  Fewer images are no smaller budget for an image.
  """
  name, _, budget = attack.rstrip(')').partition('(')
  smaller = [
    part for part in budget.split(',') if not part.startswith('images')
  ]
  return TITLES.get(name, name) + (' (short)' if any(smaller) else '')


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
  """Returns {group: {variant: rows by seed}}, in the order of the JSON.

  A row without one of the attacks has no worst case beside the others'.
  """
  groups, names = {}, set(attacks(record)) - {'worst_case'}
  for row in record['rows']:
    if not names <= row['accuracy'].keys():
      row = {**row, 'worst_case': math.nan}
    variants = groups.setdefault(row['group'], {})
    variants.setdefault(row['variant'], []).append(row)
  for variants in groups.values():
    for rows in variants.values():
      rows.sort(key=lambda row: row['seed'])
  return groups


def _mean(values: Sequence[float], digits: int = 1) -> str:
  """Formats a mean over seeds; how many are known, if not all are."""
  known = [value for value in values if not math.isnan(value)]
  if not known:
    return ''
  mean, deviation = statistics.mean_and_deviation(known)
  spread = '' if math.isnan(deviation) else f' ± {deviation:.{digits}f}'
  count = len(known)
  some = f' ({count} seed{"s" * (count != 1)})' if count < len(values) else ''
  return f'{mean:.{digits}f}{spread}{some}'


def _in_common(
  rows: Sequence, baseline: Sequence, attack: str
) -> tuple[list, list]:
  """Returns the rows of the seeds that both have under an attack."""
  known = [
    {row['seed']: row for row in of if not math.isnan(_of(row, attack))}
    for of in (rows, baseline)
  ]
  seeds = sorted(known[0].keys() & known[1].keys())
  return tuple([of[seed] for seed in seeds] for of in known)


def _interval(
  rows: Sequence, baseline: Sequence, attack: str, *, by_image: bool = False
) -> tuple[float, float, float]:
  """Returns a paired difference in points, over the seeds both have.

  (mean, low, high) over seeds, or over images where there is one seed or
  `by_image`: then an image counts with its mean over the seeds. Ends that are
  not known are nan.
  """
  pair = _in_common(rows, baseline, attack)
  if not pair[0]:
    return (math.nan,) * 3
  recorded = all(attack in row['images'] for of in pair for row in of)
  if recorded and (by_image or len(pair[0]) == 1):
    interval = statistics.over_images(
      *(
        np.mean([packing.unpack(row['images'][attack]) for row in of], axis=0)
        for of in pair
      )
    )
    return tuple(100 * value for value in interval)
  mean, low, high = statistics.over_seeds(
    *([_of(row, attack) for row in of] for of in pair)
  )
  return (mean, math.nan, math.nan) if by_image else (mean, low, high)


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


def small(record: Mapping[str, Any]) -> str:
  """Returns the accuracies of each variant, without what they cost."""
  names = attacks(record)
  cells = [
    (
      variant,
      *(_mean([_of(row, attack) for row in rows]) for attack in names),
      str(len(rows)),
    )
    for variants in _grouped(record).values()
    for variant, rows in variants.items()
  ]
  headers = 'variant', *map(title, names), 'seeds'
  return documents.markdown_table(headers, cells, left=1)


def _contrasts(
  variants: Mapping[str, list], contrasts: Sequence[tuple[str, str]]
) -> list[tuple[str, str]]:
  """Returns the pairs to compare: the listed ones, or each with the first."""
  pairs = [pair for pair in contrasts if set(pair) <= set(variants)]
  first, *others = variants
  return pairs or [(variant, first) for variant in others]


def intervals(
  record: Mapping[str, Any],
  contrasts: Sequence[tuple[str, str]] = CONTRASTS,
  *,
  by_image: bool = False,
) -> list[tuple[str, dict[str, tuple[float, float, float]]]]:
  """Returns [('<group>: <variant> − <baseline>', {attack: interval})].

  A label ends in the number of seeds, where some pairs have a single one.
  """
  found, counts = [], []
  for group, variants in _grouped(record).items():
    for variant, baseline in _contrasts(variants, contrasts):
      pair = variants[variant], variants[baseline]
      by_attack = {
        attack: _interval(*pair, attack, by_image=by_image)
        for attack in attacks(record)
      }
      counts.append(len(_in_common(*pair, attacks(record)[0])[0]))
      found.append((f'{group}: {variant} − {baseline}', by_attack))
  if len(set(counts)) == 1 or 1 not in counts:
    return found
  return [
    (f'{label} ({count} seed{"s" * (count != 1)})', by_attack)
    for (label, by_attack), count in zip(found, counts, strict=True)
  ]


def certain(found: Sequence) -> str:
  """Says how many of `intervals` exclude 0, and how many would by chance."""
  known = [
    (low, high)
    for _, by_attack in found
    for _, low, high in by_attack.values()
    if not math.isnan(low)
  ]
  excluding = sum(low > 0 or high < 0 for low, high in known)
  return (
    f'**Bold**: the interval excludes 0, as {excluding} of {len(known)} do '
    f'(by chance alone about {0.05 * len(known):.0f} would).'
  )


def differences(record: Mapping[str, Any], found: Sequence) -> str:
  """Returns the paired differences of `intervals` in points."""
  names = attacks(record)
  headers = '', 'difference', *map(title, names)
  cells = []
  for label, by_attack in found:
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
    view: 'accuracies', or 'small' without what they cost, or 'card' of the
      run in docs/models alone; 'differences', 'summary' for a few of these, or
      'images': all of them, by image alone.
  """
  if view == 'card':
    rows = [row for row in record['rows'] if row['run'] == CARD]
    record = {**record, 'rows': rows, 'missing': 0}
  if view in ('small', 'card'):
    return [small(record), '', caption(record)]
  if view == 'accuracies':
    note = (
      ' *Cost*: multiply-adds of the training, beside the first row of the '
      'group. Mean ± standard deviation over seeds.'
    )
    return [accuracies(record), '', caption(record) + note]
  contrasts = CONTRASTS[:SUMMARY] if view == 'summary' else CONTRASTS
  by_image = view == 'images'
  found = intervals(record, contrasts, by_image=by_image)
  return [
    differences(record, found),
    '',
    f'{caption(record)} {_note(record, by_image)} {certain(found)}',
  ]


def _note(record: Mapping[str, Any], by_image: bool) -> str:
  """Says what intervals cover."""
  by_seed = {}
  for row in record['rows']:
    by_seed.setdefault((row['group'], row['variant']), set()).add(row['seed'])
  counts = {len(seeds) for seeds in by_seed.values()}
  if by_image or counts == {1}:
    return (
      'Points, same images: 95 % confidence for other images of the kind, for '
      'these networks (nothing is known of other seeds).'
    )
  note = (
    'Points, same seeds: 95 % confidence (Student), for other seeds on these '
    'images.'
  )
  if 1 in counts:
    note += ' Of one seed: for other images of the kind, for these networks.'
  return note
