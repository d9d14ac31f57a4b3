"""Checks that accuracies of sound attacks pass; each failure is a sentence.

Attacks that miss adversarial images make a network look robust. The signs of it
are those of Carlini et al. (2019), "On evaluating adversarial robustness", as
far as results.json shows them.
"""

import itertools
from collections.abc import Iterator

from dhat_jax.report.headline import autoattack_name, pgd_name
from dhat_jax.report.read import Output, Run
from dhat_jax.report.tables import percent

# Two sound attacks may differ by so much: a share of the images.
_TOLERANCE = 0.01
_LOSS_TOLERANCE = 0.02  # of the larger mean loss


def failures(run: Run) -> list[str]:
  """Returns a sentence for each check that an evaluated run fails."""
  return [
    sentence
    for output in run.outputs
    for check in (
      _guesses,
      _weaker_than_one_step,
      _weaker_than_pgd,
      _rises_with_epsilon,
      _falls_with_steps,
    )
    for sentence in check(run, output)
  ]


def warnings(run: Run) -> list[str]:
  """Returns what AutoAttack warned of itself, a sentence each."""
  return [
    f'{attack} on {output.phrase} warns: {warning}.'
    for output in run.outputs
    for attack, row in run.results.get('autoattack', {})
    .get(output.name, {})
    .items()
    for warning in row.get('warnings', ())
  ]


def _guesses(run: Run, output: Output) -> Iterator[str]:
  """An accuracy that naming the most frequent class reaches as well."""
  clean = run.results['accuracy'][output.name].get('clean')
  rows = run.results.get('per_class', {}).get(output.name, {})
  counts = [row['images'] for row in rows.values()]
  if clean is None or not sum(counts):
    return
  guessed = max(counts) / sum(counts)
  if clean <= guessed:
    yield (
      f'On clean images {output.phrase} is right on {percent(clean)} %, no '
      f'more than always naming one class ({percent(guessed)} %): it has '
      'learned nothing.'
    )


def _weaker_than_one_step(run: Run, output: Output) -> Iterator[str]:
  yield from _weaker(run, output, pgd_name(run), 'fgsm')


def _weaker_than_pgd(run: Run, output: Output) -> Iterator[str]:
  yield from _weaker(run, output, autoattack_name(run), pgd_name(run))


def _weaker(
  run: Run, output: Output, strong: str | None, weak: str | None
) -> Iterator[str]:
  """An attack that finds less than one that it should beat."""
  row = run.results['accuracy'][output.name]
  if strong is None or weak is None or not {strong, weak} <= row.keys():
    return
  # On its first images alone, an attack may meet easier ones.
  if 'images=' in strong:
    return
  if row[strong] > row[weak] + _TOLERANCE:
    yield (
      f'Against {output.phrase}, {strong} leaves {percent(row[strong])} % and '
      f'the weaker {weak} only {percent(row[weak])} %: the gradient may be '
      'hidden.'
    )


def _rises_with_epsilon(run: Run, output: Output) -> Iterator[str]:
  row = run.results.get('sweep', {}).get(output.name, {})
  points = sorted(
    (float(radius.partition('/')[0]), share) for radius, share in row.items()
  )
  for (smaller, before), (larger, after) in itertools.pairwise(points):
    if after > before + _TOLERANCE:
      yield (
        f'The accuracy of {output.phrase} rises from {percent(before)} % at '
        f'epsilon {smaller:g}/255 to {percent(after)} % at {larger:g}/255: '
        'the attack fails there.'
      )
      return


def _falls_with_steps(run: Run, output: Output) -> Iterator[str]:
  row = run.results.get('loss_by_steps', {}).get(output.name, {})
  points = sorted((int(steps), loss) for steps, (loss, _) in row.items())
  for (fewer, before), (more, after) in itertools.pairwise(points):
    if after < before * (1 - _LOSS_TOLERANCE):
      yield (
        f'The loss of {output.phrase} falls from {before:.3g} after {fewer} '
        f'attack steps to {after:.3g} after {more}: the attack fails.'
      )
      return
