"""Audits whether the aggregated output hides its gradients.

A network may look robust because gradient attacks cannot find the adversarial
images that exist. Attacks that do not need its gradients then find them:
transfer from the heads, the heads' gradients weighed anew (MORA), a backward
pass around the aggregator's ReLU, its surrogate, and random search. Each
finding beyond chance is a red flag.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dhat_jax import divergences
from dhat_jax.datasets.base import Split
from dhat_jax.datasets.batches import prepare
from dhat_jax.evaluation import judging
from dhat_jax.evaluation.audit_targets import BYPASS, SURROGATE
from dhat_jax.evaluation.evaluator import Target
from dhat_jax.evaluation.plan import AuditPlan
from dhat_jax.evaluation.records import Record
from dhat_jax.models.outputs import OUTPUTS
from dhat_jax.runtime import devices, streams

# Numbers of images: the larger of a share of all and a least number.
# An attack is suspicious if it leaves so many fewer robust than the white-box
# attack, which knows more, ...
BEATEN = (0.01, 3)
# ... or if it breaks so many that the white-box attack left robust: two honest
# attacks of one strength differ by less (3 of 360 digits were measured).
MISSED = (0.02, 5)
# A gradient counts as vanishing if it is below this share of the largest one.
TINY = 1e-8
# So many vanishing gradients (share of images) are suspicious.
VANISHING_SHARE = 0.05
# More robust at a larger radius, by this share of images: impossible.
RISE = 0.01
# Name of the attacks in the report.
TRANSFER = 'transfer_'


def gradient_sizes(target: Target, split: Split) -> np.ndarray:
  """Returns the largest entry of each image's gradient: float [N].

  It is the gradient of the cross entropy, at the image itself.
  """
  net, evaluator = target.evaluator.net, target.evaluator

  def sizes(variables, batch):
    batch = prepare(batch)
    count = len(batch['images'])
    rngs = devices.example_rngs(streams.key(0), count, devices.AXIS)
    logits_fn = judging.make_logits_fn(
      net, variables, target.output, rngs, evaluator.samples
    )

    def loss(images):
      logits = logits_fn(images)
      return divergences.cross_entropy(logits, batch['labels']).sum()

    gradient = jax.grad(loss)(batch['images'])  # [B, H, W, C]
    largest = jnp.abs(gradient).reshape(len(gradient), -1).max(axis=1)
    return devices.all_gather(largest, devices.AXIS)

  step = evaluator.compiled(
    ('gradient sizes', target.output),
    lambda: devices.pmap_eval_step(sizes, in_axes=(0, 0)),
  )
  rows = [
    devices.first_copy(step(target.variables, devices.shard(batch)))
    for batch in evaluator.batches(split)
  ]
  return np.concatenate(rows)[: len(split.labels)]


def report(
  plan: AuditPlan,
  records: Mapping[tuple[str, str], Record],
  labels: np.ndarray,
  *,
  output: str,
  gradient_sizes: np.ndarray,
  num_classes: int,
) -> dict[str, Any]:
  """Audits the aggregated output.

  Args:
    plan: what ran.
    records: {(target, attack): record}.
    labels: int [N].
    output: the audited one.
    gradient_sizes: float [N], see `gradient_sizes`.
    num_classes: K.

  Returns:
    All numbers, and `flags`, which is empty if nothing is suspicious; see
    `docs/results_schema.md`.
  """
  white = records[output, plan.attack.name].robust
  by_chance = judging.flips(
    records[output, plan.attack.name].correct.get(output)
  )
  margin = records[output, plan.margin.name].robust
  every_white = _together([records[output, a.name] for a in plan.white_box])
  others = _others(plan, records, labels, output)
  attacks = {name: _compare(white, robust) for name, robust in others.items()}
  worst = np.logical_and.reduce([every_white, *others.values()])
  for name, robust in _against_all(plan, records, output).items():
    attacks[name] = _compare(every_white[: len(robust)], robust)
    worst[: len(robust)] &= robust
  largest = records[output, plan.largest.name].robust
  numbers = {
    'attack': plan.attack.name,
    'white_box': {
      'accuracy': float(white.mean()),
      'margin_accuracy': float(margin.mean()),
      'accuracy_of_both': float((white & margin).mean()),
      'others': {
        attack.name: float(records[output, attack.name].robust.mean())
        for attack in plan.white_box
        if attack not in (plan.attack, plan.margin)
      },
      'accuracy_of_all': float(every_white.mean()),
    },
    'attacks': attacks,
    **({'by_chance': by_chance} if by_chance else {}),
    'worst_case': float(worst.mean()),
    'gradients': {
      'zero': float((gradient_sizes == 0).mean()),
      'vanishing': float(
        (gradient_sizes <= TINY * gradient_sizes.max()).mean()
      ),
    },
    'largest_epsilon': {
      'epsilon': plan.largest_epsilon,
      'accuracy': float(largest.mean()),
      'chance': 1 / num_classes,
    },
  }
  return {**numbers, 'flags': flags(numbers)}


def _others(
  plan: AuditPlan,
  records: Mapping[tuple[str, str], Record],
  labels: np.ndarray,
  output: str,
) -> dict[str, np.ndarray]:
  """Scores the audited output on images that attack other targets."""
  attacked = {
    target: record
    for (target, attack), record in records.items()
    if attack == plan.attack.name and target not in (output, SURROGATE)
  }
  return {
    target if target == BYPASS else f'{TRANSFER}{target}': record.scored(
      output, labels
    )
    for target, record in attacked.items()
  }


def _together(records: Sequence[Record]) -> np.ndarray:
  """Returns which images resist all attacks; some may see the first ones."""
  robust = records[0].robust.copy()
  for record in records[1:]:
    robust[: len(record.robust)] &= record.robust
  return robust


def _against_all(
  plan: AuditPlan, records: Mapping[tuple[str, str], Record], output: str
) -> dict[str, np.ndarray]:
  """Returns what to compare with all white-box attacks together.

  These are MORA, all on the surrogate, and Square, which uses the margin.
  """
  rows = {}
  if plan.mora is not None:
    rows['mora'] = records[output, plan.mora.name].robust
  through = [
    records[SURROGATE, attack.name]
    for attack in plan.surrogate
    if (SURROGATE, attack.name) in records
  ]
  if through:
    rows[SURROGATE] = _together(through)
  if plan.square is not None:
    rows['square'] = records[output, plan.square.name].robust
  return rows


def _compare(reference: np.ndarray, robust: np.ndarray) -> dict[str, Any]:
  """Counts images that an attack breaks and the reference attack does not."""
  return {
    'accuracy': float(robust.mean()),
    'missed': int((reference & ~robust).sum()),
    'beats_by': int(reference.sum()) - int(robust.sum()),
    'images': len(robust),
  }


def tolerance(rule: tuple[float, int], images: int) -> int:
  """Returns the number of images from which on a rule is suspicious."""
  share, least = rule
  return max(math.ceil(share * images), least)


def _sentence(name: str) -> str:
  """Returns what fools the aggregated output, in words."""
  if name.startswith(TRANSFER):
    label = OUTPUTS[name.removeprefix(TRANSFER)].label
    return f'images made against the {label}'
  return {
    BYPASS: "gradients around the aggregator's ReLU",
    SURROGATE: "gradients of the aggregator's surrogate",
    'mora': "the heads' gradients, weighed anew (MORA),",
    'square': 'Square, which sees no gradients,',
  }[name]


def flags(report: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns the red flags of an audit: name, numbers, a plain sentence."""
  raised = []

  def flag(name: str, sentence: str, **numbers: Any) -> None:
    raised.append({'name': name, 'sentence': sentence, **numbers})

  for name, numbers in report['attacks'].items():
    by_chance = report.get('by_chance', 0)
    _compare_flag(flag, name, numbers, report['attack'], by_chance)
  _gradient_flag(flag, report['gradients']['vanishing'])
  _radius_flags(
    flag, report['largest_epsilon'], report['white_box']['accuracy']
  )
  return raised


def _compare_flag(
  flag: Callable,
  name: str,
  numbers: Mapping[str, Any],
  white_box: str,
  by_chance: int,
) -> None:
  """Raises a flag for an attack that finds more than the white-box one."""
  images = numbers['images']
  beaten, missed = (
    tolerance(rule, images) + by_chance for rule in (BEATEN, MISSED)
  )
  if numbers['beats_by'] < beaten and numbers['missed'] < missed:
    return
  if name in ('mora', 'square', SURROGATE):
    white_box = 'attacks together'
  flag(
    name,
    f'{_sentence(name)} fool the aggregated output on {numbers["missed"]} of '
    f'{images} images that white-box {white_box} left robust, and leave '
    f'{numbers["beats_by"]} fewer robust (suspicious from {missed} or {beaten} '
    'on)',
    **numbers,
    missed_threshold=missed,
    beats_by_threshold=beaten,
  )


def _gradient_flag(flag: Callable, share: float) -> None:
  """Raises a flag where gradients vanish."""
  if share <= VANISHING_SHARE:
    return
  flag(
    'vanishing_gradients',
    f'the gradient vanishes on {100 * share:.1f} % of the images (suspicious '
    f'above {100 * VANISHING_SHARE:.0f} %): gradient attacks see nothing there',
    share=share,
    threshold=VANISHING_SHARE,
  )


def _radius_flags(
  flag: Callable, largest: Mapping[str, float], accuracy: float
) -> None:
  """Raises flags for an attack that fails in a large ball."""
  if largest['accuracy'] > largest['chance']:
    flag(
      'largest_epsilon',
      f'{100 * largest["accuracy"]:.1f} % stay robust at epsilon '
      f'{largest["epsilon"]:.3f}, where any classifier can be brought below '
      f'chance ({100 * largest["chance"]:.1f} %): the attack fails',
      **largest,
    )
  rise = largest['accuracy'] - accuracy
  if rise > RISE:
    flag(
      'rises_with_epsilon',
      f'white-box accuracy is {100 * rise:.1f} points higher at epsilon '
      f'{largest["epsilon"]:.3f} than at the smaller one: the attack fails',
      rise=rise,
      threshold=RISE,
    )
