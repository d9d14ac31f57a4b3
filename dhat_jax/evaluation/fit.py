"""The fit of an aggregator that is not trained, on held-out images."""

import dataclasses
from typing import Any

import numpy as np

from dhat_jax.datasets.base import Split
from dhat_jax.evaluation.attack_types import EvaluationAttack
from dhat_jax.evaluation.evaluator import Evaluator
from dhat_jax.models.aggregator import Fit, HeldOut
from dhat_jax.models.outputs import OUTPUTS
from dhat_jax.runtime import streams


@dataclasses.dataclass(frozen=True, kw_only=True)
class AggregatorFit:
  """Computes what an aggregator is fitted to, and fits it.

  Attributes:
    evaluator: of the whole network; its attacks share compilations with the
      validation.
    output: the one that the aggregator computes.
    attack: on the first of the outputs that it aggregates, the robust head.
    seed: of the attack's noise.
  """

  evaluator: Evaluator
  output: str
  attack: EvaluationAttack
  seed: int

  @property
  def part(self) -> str:
    """The part of the network that is fitted."""
    return OUTPUTS[self.output].parts[-1]

  def __call__(self, variables: Any, split: Split) -> Fit:
    """Fits the aggregator.

    The result is a function of the variables, the images and the seed. So it is
    the same in every process.

    Args:
      variables: replicated; the aggregator's are not used.
      split: held-out images, uint8; evenly spaced ones of them are used.
    """
    module = self.evaluator.net.make_aggregator()
    split = spaced(split, module.images)
    robust = OUTPUTS[self.output].aggregates[0]
    images_adv = self.attack.images_adv(
      self.evaluator.target(variables, robust), split, streams.key(self.seed)
    )
    images = np.asarray(split.images, np.float32) / 255
    count = len(images_adv)  # an attack may see the first images only
    return module.fit(
      HeldOut(
        clean=self._heads(variables, images[:count], split.labels),
        attacked=self._heads(variables, images_adv, split.labels),
        labels=split.labels[:count],
      )
    )

  def _heads(
    self, variables: Any, images: np.ndarray, labels: np.ndarray
  ) -> np.ndarray:
    """Computes the heads' logits: float [n, H, W, C] -> [n, heads, K]."""
    split = Split(images, labels[: len(images)])
    logits = self.evaluator.logits(variables, split)
    heads = OUTPUTS[self.output].aggregates
    return np.stack([logits[head] for head in heads], axis=1)


def spaced(split: Split, count: int) -> Split:
  """Returns at most `count` evenly spaced images; a split may be sorted."""
  total = len(split.labels)
  places = np.linspace(0, total - 1, min(count, total)).astype(int)
  return Split(split.images[places], split.labels[places])
