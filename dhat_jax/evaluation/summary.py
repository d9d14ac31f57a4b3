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


def summary(results: Mapping[str, Any]) -> str:
  """Formats accuracies, the audit's red flags and the natural twin.

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
  if 'audit' in results:
    lines += ['', *_audit(results['audit']['flags'])]
  if 'natural' in results:
    lines += [
      '',
      'the same network trained without adversarial images',
      table(results['natural']['accuracy']),
    ]
  return '\n'.join(lines)
