"""Attacks that tell when they run."""

import dataclasses

from dhat_jax.evaluation.attack_types import EvaluationAttack


class Killed(Exception):
  """In place of a kill from outside."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spied(EvaluationAttack):
  """An attack that notes (target, name) of each run; stops after some.

  Attributes:
    attack: what it really is.
    calls: where it notes them.
    stop_after: raises `Killed` once there are so many; None: never.
  """

  attack: EvaluationAttack
  calls: list = dataclasses.field(compare=False)
  stop_after: int | None = None

  @property
  def name(self):
    return self.attack.name

  def num_images(self, total):
    return self.attack.num_images(total)

  def identity(self):
    return self.attack.identity()

  def details(self, record):
    return self.attack.details(record)

  def run(self, target, split, rng, workspace):
    if len(self.calls) == self.stop_after:
      raise Killed
    self.calls.append((target.name, self.name))
    return self.attack.run(target, split, rng, workspace)


def spied(plan, calls, stop_after=None):
  """Returns a plan whose attacks note their runs in `calls`."""

  def spy(attack):
    return attack and Spied(
      attack=attack,
      outputs=attack.outputs,
      expensive=attack.expensive,
      calls=calls,
      stop_after=stop_after,
    )

  audit = plan.audit and dataclasses.replace(
    plan.audit,
    **{
      name: spy(getattr(plan.audit, name))
      for name in ('attack', 'margin', 'largest', 'square', 'mora', 'momentum')
    },
    surrogate=tuple(spy(attack) for attack in plan.audit.surrogate),
  )
  return dataclasses.replace(
    plan,
    clean=spy(plan.clean),
    attacks=tuple(spy(attack) for attack in plan.attacks),
    sweep={key: spy(attack) for key, attack in plan.sweep.items()},
    loss_by_steps={
      key: spy(attack) for key, attack in plan.loss_by_steps.items()
    },
    audit=audit,
  )
