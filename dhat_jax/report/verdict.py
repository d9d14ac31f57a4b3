"""What a run shows, in a sentence, and what limits that."""

import re
from collections.abc import Iterator, Sequence

from dhat_jax.report import headline, pairs
from dhat_jax.report.read import Output, Run
from dhat_jax.report.tables import WORST, accuracies, percent

_WORD = {1: 'more robust than', -1: 'less robust than'}
_NO_ATTACK = 'No attack has been run: nothing is known about robustness.'
_CLEAN_WORD = {1: 'higher than', -1: 'lower than'}


def verdict(run: Run, failures: Sequence[str] = ()) -> str:
  """Returns what a run shows in one sentence, warnings first.

  Args:
    run: evaluated or not.
    failures: the sanity checks that it fails, a sentence each.
  """
  if not run.outputs:
    return _not_evaluated(run)
  distrust = _distrust(run, failures)
  if distrust:
    return distrust
  if run.final_output == run.first_output:
    return _capital(_alone(run))
  return _capital(_comparison(run))


def notes(run: Run, failures: Sequence[str] = ()) -> list[str]:
  """Returns the sentences below the verdict, the most important first.

  Args:
    run: evaluated or not.
    failures: as for `verdict`.
  """
  if not run.outputs:
    return []
  return [
    *_as_measured(run, failures),
    *_clean(run),
    *_limits(run),
  ]


def _not_evaluated(run: Run) -> str:
  text = 'This run has not been evaluated yet'
  if not run.records:
    return f'{text}.'
  last = run.records[-1]
  return f'{text}: its last record is step {last["step"]} of {last["stage"]}.'


def _distrust(run: Run, failures: Sequence[str]) -> str:
  """Returns a warning where red flags or failed checks need one, else ''."""
  flags = len(run.red_flags)
  reasons = []
  if flags:
    reasons.append(f'the audit raised {_count(flags, "red flag")}')
  if failures:
    reasons.append(f'{_count(len(failures), "sanity check")} failed')
  if not reasons:
    return ''
  text = f'Do not trust these accuracies: {" and ".join(reasons)}'
  if flags:
    text += f'; {run.final_output.phrase} may only hide its gradients'
  return f'{text}.'


def _count(number: int, noun: str) -> str:
  return f'{number} {noun}{"" if number == 1 else "s"}'


def _as_measured(run: Run, failures: Sequence[str]) -> Iterator[str]:
  """What the verdict would be, where a warning takes its place."""
  if not _distrust(run, failures):
    return
  alone = run.final_output == run.first_output
  yield f'As measured: {_alone(run) if alone else _comparison(run)}'
  if run.red_flags:
    share = run.results['audit']['worst_case']
    yield (
      f'Under all attacks of the audit, {run.final_output.phrase} keeps '
      f'{percent(share)} %.'
    )


def _alone(run: Run) -> str:
  """The verdict on a run of one output."""
  output = run.final_output
  row = accuracies(run, output.name)
  parts = []
  if 'clean' in row:
    parts.append(f'right on {percent(row["clean"])} % of the clean images')
  if _attacks(run, output) and WORST in row:
    parts.append(f'{percent(row[WORST])} % in the worst case')
  shown = ' and on '.join(parts) or 'not measured'
  text = f'only {output.phrase} was evaluated: it is {shown}'
  return f'{text}, with nothing to compare it with.'


def _attacks(run: Run, output: Output) -> list[str]:
  """The attacks on an output; clean images are none."""
  row = run.results['accuracy'][output.name]
  return [name for name in row if name != 'clean']


def _subject(run: Run) -> str:
  return 'DH-AT' if run.is_dual else run.final_output.phrase


def _capital(text: str) -> str:
  return text[:1].upper() + text[1:]


def _comparison(run: Run) -> str:
  """Compares the final output with the first in the worst case."""
  final, first = run.final_output, run.first_output
  if not (_attacks(run, final) and _attacks(run, first)):
    return _NO_ATTACK
  difference = pairs.difference(run, final.name, first.name, WORST)
  if difference is None:
    return (
      f'{_subject(run)} cannot be compared with {first.phrase}: the attacks on '
      'the two differ, or their worst cases are missing.'
    )
  if not difference.is_known:
    return (
      f'{_subject(run)} differs from {first.phrase} by {_points(difference)} '
      'in the worst case; whether that is noise is open without the records '
      'of the images.'
    )
  common = pairs.common_attacks(run, final.name, first.name)
  bare = headline.autoattack_name(run) not in common
  return (
    f'{"without AutoAttack, " if bare else ""}{_subject(run)} '
    f'{_relation(first, difference)}: {_numbers(run, difference, WORST)}.'
  )


def _relation(first: Output, difference: pairs.Difference) -> str:
  word = _WORD.get(difference.sign)
  if word is None:
    return f'and {first.phrase} do not differ in robustness beyond noise'
  return f'is {word} {first.phrase}'


def _numbers(run: Run, difference: pairs.Difference, attack: str) -> str:
  """The two accuracies, and how far they differ."""
  final, first = (
    accuracies(run, output.name).get(attack)
    for output in (run.final_output, run.first_output)
  )
  same = pairs.have_same_attacks(
    run, run.final_output.name, run.first_output.name
  )
  if attack == WORST and (not same or final is None or first is None):
    where = 'under the attacks that both saw'
    return f'{_points(difference)} {where}{_interval(difference)}'
  where = ' in the worst case' if attack == WORST else ''
  return (
    f'{percent(final)} % against {percent(first)} %{where}, '
    f'{_points(difference)}{_interval(difference)}'
  )


def _points(difference: pairs.Difference) -> str:
  return f'{difference.points:+.1f} points'


def _interval(difference: pairs.Difference) -> str:
  """The interval in brackets, '' where it is unknown."""
  if not difference.is_known:
    return ''
  return f' (95 % interval {difference.interval})'


def _clean(run: Run) -> Iterator[str]:
  """Compares the two on clean images."""
  if run.final_output == run.first_output:
    return
  names = (run.final_output.name, run.first_output.name)
  difference = pairs.difference(run, *names, 'clean')
  if difference is None:
    return
  word = _CLEAN_WORD.get(difference.sign)
  sentence = (
    f'Clean accuracy is {word} that of {run.first_output.phrase}'
    if word
    else 'Clean accuracy does not differ beyond noise'
  )
  if not difference.is_known:
    sentence = (
      f'Whether clean accuracy differs from that of {run.first_output.phrase} '
      'beyond noise is unknown'
    )
  yield f'{sentence}: {_numbers(run, difference, "clean")}.'


def _limits(run: Run) -> Iterator[str]:
  """What the accuracies leave open."""
  if run.final_output == run.first_output and not _attacks(
    run, run.final_output
  ):
    yield _NO_ATTACK
  yield from _autoattack_limit(run)
  yield from _images_limit(run)
  if run.is_dual and 'audit' not in run.results:
    yield 'There was no audit: hidden gradients are not ruled out.'
  elif run.is_dual and not run.red_flags:
    yield 'The audit raised no red flag.'
  if run.final_output != run.first_output and _has_intervals(run):
    yield 'Intervals cover other test images of the kind, not other seeds.'


def _has_intervals(run: Run) -> bool:
  names = (run.final_output.name, run.first_output.name)
  differences = (
    pairs.difference(run, *names, attack) for attack in ('clean', WORST)
  )
  return any(row is not None and row.is_known for row in differences)


def _autoattack_limit(run: Run) -> Iterator[str]:
  final = run.final_output
  attacks = _attacks(run, final)
  if attacks and headline.autoattack_name(run) not in attacks:
    yield (
      f'AutoAttack was not run against {final.phrase}: under stronger attacks '
      'the worst case may be lower.'
    )
  elif headline.footnote(run):
    yield headline.footnote(run)


def _images_limit(run: Run) -> Iterator[str]:
  count = run.results.get('worst_case_images', {}).get(run.final_output.name)
  total = run.results.get('n_test')
  if count is not None and total is not None and count < total:
    names = [*_attacks_of_first(run, count), 'the worst case']
    listed = ' and '.join(filter(None, [', '.join(names[:-1]), names[-1]]))
    verb = 'is' if len(names) == 1 else 'are'
    yield (f'{_capital(listed)} {verb} of the first {count} of {total} images.')


def _attacks_of_first(run: Run, count: int) -> list[str]:
  """The attacks on the final output that saw so many images only."""
  found = []
  for name in _attacks(run, run.final_output):
    if re.search(rf'\bimages={count}\b', name):
      title = name.partition('(')[0]
      found.append({'autoattack': 'AutoAttack'}.get(title, title))
  return found
