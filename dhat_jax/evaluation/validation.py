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

  def judge(
    self, variables: Any, split: Split, *, shown: int
  ) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Attacks a split once.

    Args:
      variables: replicated.
      split: uint8 images; all of them count.
      shown: number of images that are returned, the first ones, at most.

    Returns:
      (clean_accuracy and robust_accuracy, shares in [0, 1]; the first images,
      clean; and attacked). Both are float [n, H, W, C] in [0, 1]; n is the
      smaller of `shown` and N.
    """
    target = self.evaluator.target(variables, self.output)
    rng = streams.key(self.seed)
    robust, images_adv = self.attack.robust_and_images(target, split, rng)
    right = robust
    if self.attack != self.clean:
      right = self.clean.robust(target, split, rng)
    accuracies = {
      'clean_accuracy': float(right.mean()),
      'robust_accuracy': float(robust.mean()),
    }
    images = np.asarray(split.images[:shown], np.float32) / 255
    return accuracies, images, images_adv[:shown]
