"""Best known accuracy: the worst case over every attack that was run.

AutoAttack is a lower bound on what breaks. RobustBench reports as `external`
what other attacks leave where they find more.

A randomised network has none. Each attack is judged by evaluations of its own,
and the worst of many is luck: it falls with their number, without any attack.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from dhat_jax.evaluation.plan import Plan
from dhat_jax.evaluation.records import Record
from dhat_jax.models.outputs import OUTPUTS

WHOLE = 'autoattack'

Key = tuple[str, str]  # (target, attack) of a record


def is_autoattack(name: str) -> bool:
  """Returns whether an attack's name is AutoAttack's, of any budget."""
  return name.split('(')[0] == WHOLE


def report(
  plan: Plan,
  records: Mapping[Key, Record],
  labels: np.ndarray,
  outputs: Iterable[str],
) -> dict[str, dict[str, Any]]:
  """Computes the best known accuracy of the outputs that AutoAttack attacked.

  An image counts if it resists every attack in the ball of the evaluation,
  whichever target it was made against. The sweep and the audit's attack at a
  large radius are left out.

  Args:
    plan: what ran.
    records: {(target, attack): record}.
    labels: int [N].
    outputs: of the network.

  Returns:
    {output: numbers}, see `docs/results_schema.md`; {} without AutoAttack, and
    of a randomised network.
  """
  if any(record.correct for record in records.values()):
    return {}
  others = {attack.name for attack in plan.sweep.values()}
  if plan.audit is not None:
    others.add(plan.audit.largest.name)
  within = {key: r for key, r in records.items() if key[1] not in others}
  white_box = plan.audit.attack.name if plan.audit is not None else None
  return {
    output: _numbers(within, labels, (output, attack.name), white_box)
    for output in outputs
    for attack in plan.against(output)
    if is_autoattack(attack.name)
  }


def _numbers(
  records: Mapping[Key, Record],
  labels: np.ndarray,
  autoattack: Key,
  white_box: str | None,
) -> dict[str, Any]:
  """Returns the numbers of one output, on the images that all attacks saw."""
  output, attack = autoattack
  # Attacks on the output itself first: of equal ones they are named.
  keys = sorted(records, key=lambda key: key[0] != output)
  robust = {key: records[key].scored(output, labels) for key in keys}
  count = min(map(len, robust.values()))
  robust = {key: flags[:count] for key, flags in robust.items()}
  left = robust[autoattack]
  names = {key: _name(key, output, white_box) for key in robust}
  rows = [
    {'name': names[key], 'target': key[0], 'attack': key[1], **numbers}
    for key, numbers in _differences(left, robust).items()
  ]
  return {
    'accuracy': float(np.logical_and.reduce(list(robust.values())).mean()),
    'autoattack': float(left.mean()),
    'images': count,
    'made_the_difference': rows,
    'sentence': _sentence(rows, 'AutoAttack' if attack == WHOLE else attack),
  }


def _differences(
  left: np.ndarray, robust: Mapping[Key, np.ndarray]
) -> dict[Key, dict[str, int]]:
  """Picks the attacks that find more, greedily, until nothing is left.

  Args:
    left: bool [n], robust to AutoAttack.
    robust: {attack: bool [n]}.

  Returns:
    {attack: {images: that it breaks of these, further: that no attack before it
    broke}}, the one with the most further images first.
  """
  rows, remaining = {}, left
  while True:
    broken = {key: int((remaining & ~r).sum()) for key, r in robust.items()}
    key = max(broken, key=broken.get)
    if not broken[key]:
      return rows
    rows[key] = {
      'images': int((left & ~robust[key]).sum()),
      'further': broken[key],
    }
    remaining = remaining & robust[key]


def _name(key: Key, output: str, white_box: str | None) -> str:
  """Returns what an attack is called, as the audit calls it."""
  target, attack = key
  if target == output:
    return attack
  name = f'transfer_{target}' if target in OUTPUTS else target
  return name if attack == white_box else f'{name} ({attack})'


def _sentence(rows: list[dict[str, Any]], autoattack: str) -> str:
  """Returns which attacks made the difference, in words."""
  if not rows:
    return f'No other attack breaks an image that {autoattack} left robust.'
  first, *others = rows
  number = first['images']
  more = ''.join(f', {row["name"]} {row["further"]} more' for row in others)
  return (
    f'{first["name"]} breaks {number} image{"" if number == 1 else "s"} that '
    f'{autoattack} left robust{more}.'
  )
