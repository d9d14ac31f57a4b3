"""Validation of a stage: accuracies on held-out images while it trains."""

import dataclasses
from typing import Any

import numpy as np

from dhat_jax.datasets.base import Split
from dhat_jax.evaluation.attack_types import EvaluationAttack
from dhat_jax.evaluation.evaluator import Evaluator
from dhat_jax.runtime import streams


@dataclasses.dataclass(frozen=True, kw_only=True)
class Validation:
  """Accuracy of one output, clean and under one attack, while it trains.

  Attributes:
    evaluator: of the stage's network; its attacks share compilations with the
      final evaluation.
    output: the output that the stage trains.
    clean: the images as they are.
    attack: the attack that selects the model.
    seed: of the attack's noise, the same at each validation.
  """

  evaluator: Evaluator
  output: str
  clean: EvaluationAttack
  attack: EvaluationAttack
  seed: int

  def accuracies(self, variables: Any, split: Split) -> dict[str, float]:
    """Returns clean_accuracy and robust_accuracy, shares in [0, 1].

    Args:
      variables: replicated.
      split: uint8 images; all of them count.
    """
    clean = self._robust(self.clean, variables, split)
    if self.attack == self.clean:
      robust = clean
    else:
      robust = self._robust(self.attack, variables, split)
    return {'clean_accuracy': clean, 'robust_accuracy': robust}

  def _robust(
    self, attack: EvaluationAttack, variables: Any, split: Split
  ) -> float:
    target = self.evaluator.target(variables, self.output)
    rng = streams.key(self.seed)
    return float(attack.robust(target, split, rng).mean())

  def images(
    self, variables: Any, split: Split, count: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first images of a split, clean and attacked.

    Args:
      variables: replicated.
      split: uint8 images.
      count: number of images, at most.

    Returns:
      Twice float [n, H, W, C] in [0, 1]; n is the smaller of `count` and N.
    """
    first = Split(split.images[:count], split.labels[:count])
    target = self.evaluator.target(variables, self.output)
    rng = streams.key(self.seed)
    clean = np.asarray(first.images, np.float32) / 255
    return clean, self.attack.images_adv(target, first, rng)
