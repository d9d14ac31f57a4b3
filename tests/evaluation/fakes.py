"""Attacks that have a name and nothing else."""

import dataclasses

from dhat_jax.evaluation.attack_types import EvaluationAttack


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fake(EvaluationAttack):
  """An attack that never runs."""

  def run(self, target, split, rng, workspace=None):
    raise NotImplementedError
