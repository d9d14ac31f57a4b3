"""Results as text, for the console."""

from collections.abc import Mapping
from typing import Any

import tabulate


def table(accuracy: Mapping[str, Mapping[str, float]]) -> str:
  """Formats {output: {attack: accuracy in [0, 1]}} as text, in percent."""
  attacks = dict.fromkeys(name for row in accuracy.values() for name in row)
  rows = [
    [output, *(100 * row[a] if a in row else None for a in attacks)]
    for output, row in accuracy.items()
  ]
  return tabulate.tabulate(
    rows,
    headers=['', *attacks],
    tablefmt='plain',
    floatfmt='.2f',
    missingval='-',
    disable_numparse=[0],
  )


def _audit(flags: list[Mapping[str, Any]]) -> list[str]:
  verdict = f'{len(flags)} RED FLAGS' if flags else 'no red flag'
  return [
    f'audit of the aggregated output: {verdict}',
    *(f'  RED FLAG {flag["name"]}: {flag["sentence"]}' for flag in flags),
  ]


def _best_known(best: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """Returns a line for each output that other attacks break more of."""
  lines = [
    f'best known accuracy of {output}: {100 * row["accuracy"]:.2f}. '
    f'{row["sentence"]}'
    for output, row in best.items()
    if row['made_the_difference']
  ]
  return ['', *lines] if lines else []


def _randomized(numbers: Mapping[str, Any]) -> list[str]:
  """Formats the means of a randomised network; above are its majorities."""
  accuracy = numbers['accuracy']
  means = {
    output: {attack: row['mean'] for attack, row in rows.items()}
    for output, rows in accuracy.items()
  }
  spreads = [r['spread'] for rows in accuracy.values() for r in rows.values()]
  return [
    f'above: images that most of {numbers["samples"]} evaluations classify '
    'correctly; here: the mean accuracy of an evaluation (standard deviation '
    f'up to {100 * max(spreads):.2f})',
    table(means),
  ]


def _fewer_images(results: Mapping[str, Any]) -> list[str]:
  """Says which worst cases are of fewer images than the other accuracies."""
  counts = results.get('worst_case_images', {})
  fewer = {o: n for o, n in counts.items() if n < results['n_test']}
  return [
    f'worst case of {output}: of the first {count} images, which every attack '
    'saw'
    for output, count in fewer.items()
  ]


def summary(results: Mapping[str, Any]) -> str:
  """Formats accuracies, best known ones, red flags and the natural twin.

  Args:
    results: as in results.json.
  """
  epsilon = results['epsilon']
  accuracy = {
    output: {**row, 'worst case': results['worst_case'][output]}
    for output, row in results['accuracy'].items()
  }
  lines = [
    '',
    f'accuracy in % on {results["n_test"]} test images of '
    f'{results["dataset"]}, epsilon {epsilon:.4f} ({255 * epsilon:.1f}/255)',
    table(accuracy),
  ]
  lines += _fewer_images(results)
  lines += _best_known(results.get('best_known', {}))
  if 'randomized' in results:
    lines += ['', *_randomized(results['randomized'])]
  if 'audit' in results:
    lines += ['', *_audit(results['audit']['flags'])]
  if 'natural' in results:
    lines += [
      '',
      'the same network trained without adversarial images',
      table(results['natural']['accuracy']),
    ]
  return '\n'.join(lines)
