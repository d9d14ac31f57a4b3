"""The plan of an evaluation, as data, and its list of jobs."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dhat_jax.evaluation.attack_types import EvaluationAttack
from dhat_jax.evaluation.evaluator import Target


@dataclasses.dataclass(frozen=True)
class AuditPlan:
  """What the audit of the aggregated output runs.

  Attributes:
    attack: the white-box attack, PGD on the cross entropy. It also attacks all
      other outputs, for transfer, and around the aggregator's ReLU.
    margin: the same attack on the margin.
    largest: the same as `attack`, at a radius that leaves nothing robust.
    largest_epsilon: that radius.
    square: random search, or None.
    mora: re-weighs the heads, or None. It also attacks the surrogate.
    momentum: the same attack without the heads, white-box, or None.
    targeted: APGD-T in MALT's order of targets, white-box, or None.
    surrogate: attacks through the aggregator's surrogate.
  """

  attack: EvaluationAttack
  margin: EvaluationAttack
  largest: EvaluationAttack
  largest_epsilon: float
  square: EvaluationAttack | None
  mora: EvaluationAttack | None = None
  momentum: EvaluationAttack | None = None
  targeted: EvaluationAttack | None = None
  surrogate: tuple[EvaluationAttack, ...] = ()

  @property
  def white_box(self) -> tuple[EvaluationAttack, ...]:
    """The attacks that follow the audited output's own gradients."""
    attacks = (self.attack, self.margin, self.momentum, self.targeted)
    return tuple(attack for attack in attacks if attack is not None)

  @property
  def alone(self) -> tuple[EvaluationAttack, ...]:
    """The attacks on the audited output."""
    others = (self.largest, self.square, self.mora)
    return (*self.white_box, *(a for a in others if a is not None))


@dataclasses.dataclass(frozen=True)
class Plan:
  """What to evaluate.

  Attributes:
    clean: the images as they are.
    attacks: attacks on each output.
    sweep: {radius, as text: attack}.
    loss_by_steps: {number of steps, as text: attack}.
    audit: of the aggregated output, or None.
    export_images: whether to write the adversarial images of `attacks`.
  """

  clean: EvaluationAttack
  attacks: tuple[EvaluationAttack, ...]
  sweep: Mapping[str, EvaluationAttack] = dataclasses.field(
    default_factory=dict
  )
  loss_by_steps: Mapping[str, EvaluationAttack] = dataclasses.field(
    default_factory=dict
  )
  audit: AuditPlan | None = None
  export_images: bool = False

  def against(self, output: str) -> list[EvaluationAttack]:
    """Returns the attacks of the list that attack an output."""
    return [a for a in self.attacks if not a.outputs or output in a.outputs]


class Job(NamedTuple):
  """One attack on one target, which gives one record."""

  target: Target
  attack: EvaluationAttack

  @property
  def key(self) -> tuple[str, str]:
    """The record's key: the names of target and attack."""
    return self.target.name, self.attack.name


def check_names(plan: Plan, where: str = 'attacks') -> None:
  """Checks that attacks of one name give one record.

  Args:
    plan: what to evaluate.
    where: what gave the names, for the error.

  Raises:
    ValueError: two different attacks with one name.
  """
  listed = [
    plan.clean,
    *plan.attacks,
    *plan.sweep.values(),
    *plan.loss_by_steps.values(),
  ]
  if plan.audit is not None:
    listed += plan.audit.alone
  by_name: dict[str, EvaluationAttack] = {}
  for attack in listed:
    other = by_name.setdefault(attack.name, attack)
    if not _same_record(attack, other):
      raise ValueError(
        f'{where}: got two that are called {attack.name!r} and differ, '
        'expected different names'
      )


def _same_record(attack: EvaluationAttack, other: EvaluationAttack) -> bool:
  """Whether two attacks differ at most in the outputs that they attack."""
  same = dataclasses.replace(
    attack, outputs=other.outputs, made_of=other.made_of
  )
  return same == other and attack.identity() == other.identity()


def jobs(
  plan: Plan,
  targets: Mapping[str, Target],
  *,
  audited: str | None = None,
  bypass: Target | None = None,
  surrogate: Target | None = None,
) -> list[Job]:
  """Lists all jobs of an evaluation, each once, the cheap ones first.

  Args:
    plan: what to evaluate.
    targets: {output: target}.
    audited: the output that is audited, or None.
    bypass: the audited output with gradients around the aggregator's ReLU, or
      None where there is none.
    surrogate: with those of the aggregator's surrogate, likewise.

  Raises:
    ValueError: two different attacks with one name.
  """
  check_names(plan)
  unique: dict[Any, Job] = {}
  for job in _all_jobs(plan, targets, audited, bypass, surrogate):
    unique.setdefault(job.key, job)
  return sorted(unique.values(), key=lambda job: job.attack.expensive)


def _all_jobs(
  plan: Plan,
  targets: Mapping[str, Target],
  audited: str | None,
  bypass: Target | None,
  surrogate: Target | None,
) -> Iterator[Job]:
  for output, target in targets.items():
    attacks: Sequence[EvaluationAttack] = [
      plan.clean,
      *plan.against(output),
      *plan.sweep.values(),
      *plan.loss_by_steps.values(),
    ]
    yield from (Job(target, attack) for attack in attacks)
  if plan.audit is None or audited is None:
    return
  audit = plan.audit
  yield from (Job(target, audit.attack) for target in targets.values())
  yield from (Job(targets[audited], attack) for attack in audit.alone)
  if bypass is not None:
    yield Job(bypass, audit.attack)
  if surrogate is not None:
    yield from (Job(surrogate, a) for a in audit.surrogate)
