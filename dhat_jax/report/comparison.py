"""Several runs side by side: a sentence, and tables to sort."""

from collections.abc import Sequence

from dhat_jax.report import headline, pairs
from dhat_jax.report.blocks import Block, Grid, Sentence
from dhat_jax.report.read import Output, Run
from dhat_jax.report.sanity import failures
from dhat_jax.report.tables import (
  WORST,
  Table,
  accuracies,
  comparison,
  mean_and_deviation,
  percent,
  same_but_seed,
)


def blocks(runs: Sequence[Run]) -> list[Block]:
  """The accuracies of several runs side by side, [] without any results."""
  evaluated = [run for run in runs if run.outputs]
  if not evaluated:
    return []
  note = headline.footnote(*evaluated)
  return [
    *(Sentence(text, is_flag=True) for text in distrusted(evaluated)),
    *(Sentence(text) for text in [best(evaluated), *over_seeds(evaluated)]),
    Grid(
      four_numbers(evaluated),
      caption=f'The four numbers of each output. {note}'.strip(),
      is_sortable=True,
    ),
    *_gains(evaluated),
    Grid(
      comparison(evaluated),
      file_name='comparison',
      folded='All attacks',
      caption='Every attack.',
      is_sortable=True,
    ),
  ]


def distrusted(runs: Sequence[Run]) -> list[str]:
  """Returns a warning of runs with red flags or failed checks, if any."""
  names = [run.name for run in runs if run.red_flags or failures(run)]
  if not names:
    return []
  return [
    f'Do not trust the accuracies of {", ".join(names)}: the audit raised red '
    'flags or sanity checks failed, see below.'
  ]


def best(runs: Sequence[Run]) -> str:
  """Returns which output of which runs has the highest worst case."""
  differing = _differing(runs)
  if differing:
    return (
      f'These runs differ in {" and ".join(differing)}: their worst cases are '
      'not comparable.'
    )
  return f'{_highest(runs)}.'


def _differing(runs: Sequence[Run]) -> list[str]:
  """Returns in what the evaluations of some runs differ."""
  labels = {
    'dataset': 'data set',
    'n_test': 'number of test images',
    'epsilon': 'epsilon',
  }
  differing = [
    label
    for key, label in labels.items()
    if len({run.results.get(key) for run in runs}) > 1
  ]
  attacks = {
    frozenset(row) for run in runs for row in run.results['accuracy'].values()
  }
  return differing + ['attacks'] * (len(attacks) > 1)


def _highest(runs: Sequence[Run]) -> str:
  rows = [
    (_mean(group, output, WORST), output, group)
    for group in same_but_seed(runs)
    for output in group[0].outputs
  ]
  known = [row for row in rows if row[0] is not None]
  if not known:
    return 'No worst case is known'
  share, output, group = max(known, key=lambda row: row[0])
  return (
    f'Highest worst case: {percent(share)} %, {output.phrase} of '
    f'{_names(group)}'
  )


def _names(group: Sequence[Run]) -> str:
  return ', '.join(run.name for run in group)


def _mean(group: Sequence[Run], output: Output, attack: str) -> float | None:
  shares = _shares(group, output.name, attack)
  return sum(shares) / len(shares) if shares else None


def _shares(group: Sequence[Run], output: str, attack: str) -> list[float]:
  rows = (accuracies(run, output) for run in group)
  return [row[attack] for row in rows if attack in row]


def four_numbers(runs: Sequence[Run]) -> Table:
  """Returns clean, PGD, AutoAttack and worst case of each run's outputs."""
  heads = headline.columns(*runs)
  rows = []
  for group in same_but_seed(runs):
    for output in group[0].outputs:
      cells = [
        _cell(_shares(group, output.name, attack)) if attack else ''
        for attack in heads.values()
      ]
      rows.append([_names(group), output.label, *cells, _audits(group)])
  return Table(['run', 'output', *heads, 'red flags'], rows)


def _cell(shares: list[float]) -> str:
  return mean_and_deviation(shares) if shares else ''


def _audits(group: Sequence[Run]) -> str:
  """The red flags of some runs, '' where none was audited."""
  audited = [run for run in group if 'audit' in run.results]
  return str(sum(len(run.red_flags) for run in audited)) if audited else ''


def over_seeds(runs: Sequence[Run]) -> list[str]:
  """Returns what the final output gains, a sentence for each group of seeds."""
  sentences = []
  for group in _with_seeds(runs):
    final, first = group[0].final_output, group[0].first_output
    gain = _gain(group, final, first, WORST)
    if gain is not None:
      word = {1: 'more robust', -1: 'less robust'}.get(gain.sign)
      relation = (
        f'{final.phrase} is {word} than {first.phrase}'
        if word
        else f'{final.phrase} and {first.phrase} do not differ beyond noise'
      )
      sentences.append(
        f'Over {len(group)} seeds ({_names(group)}), {relation}: '
        f'{gain.points:+.1f} points in the worst case (95 % interval '
        f'{gain.interval}).'
      )
  return sentences


def _with_seeds(runs: Sequence[Run]) -> list[list[Run]]:
  """The groups of several seeds in which there are outputs to compare."""
  return [
    group
    for group in same_but_seed(runs)
    if len(group) > 1 and group[0].final_output != group[0].first_output
  ]


def _gains(runs: Sequence[Run]) -> list[Block]:
  """What the final output adds to the first, over seeds; [] for one seed."""
  heads = {name: a for name, a in headline.columns(*runs).items() if a}
  rows = []
  for group in _with_seeds(runs):
    final, first = group[0].final_output, group[0].first_output
    for heading, attack in heads.items():
      gain = _gain(group, final, first, attack)
      if gain is not None:
        cells = [f'{gain.points:+.1f}', gain.interval]
        rows.append([_names(group), heading, *cells])
  if not rows:
    return []
  table = Table(['run', 'accuracy', 'gain, points', '95 % interval'], rows)
  caption = 'The final output minus the first, with intervals over seeds.'
  return [Grid(table, file_name='gains', caption=caption, is_sortable=True)]


def _gain(
  group: Sequence[Run], final: Output, first: Output, attack: str
) -> pairs.Difference | None:
  """The mean difference of two outputs under an attack, None if not known."""
  rows = [
    [accuracies(run, output.name).get(attack) for output in (final, first)]
    for run in group
  ]
  known = [row for row in rows if None not in row]
  return pairs.over_seeds(*zip(*known, strict=True)) if known else None
