"""The result of AutoAttack, image by image."""

import dataclasses
import os

import numpy as np

from dhat_jax.attacks.autoattack import image_table

# Of a result, beside the flags and the images.
_PER_IMAGE = (
  'predictions',
  'margins',
  'clean_margins',
  'clean_predictions',
  'broken_by',
  'broken_in',
  'targets',
  'changes',
  'labels',
)


@dataclasses.dataclass(frozen=True)
class AutoAttackResult:
  """Result of AutoAttack; N images.

  Attributes:
    robust: bool [N], predicted correctly under all attacks.
    images_adv: [N, ...], an adversarial image where an attack succeeded, else
      the image itself. Of a randomised network: the point that fooled the most
      evaluations, though it may be robust.
    predictions: int32 [N], the classes predicted on `images_adv` during the
      attack: robust equals predictions == labels. (The network compiled by
      itself may round differently near a decision boundary.)
    margins: float [N], the label's logit on `images_adv` less the largest
      other one; negative where an attack succeeded.
    clean_margins: float [N], the same on the images themselves.
    clean_predictions: int32 [N].
    broken_by: str [N], the attack that broke the image first; 'clean' if it was
      wrong before, '' if it is robust.
    broken_in: int32 [N], which pass of that attack: the number of a restart or
      of a piece of Square's queries, from 0, or the rank of a target class,
      from 2; -1 without one.
    targets: int32 [N], the target class of that pass; -1 without one.
    changes: float [N], the norm of `images_adv` less the images, in the norm of
      the attack.
    labels: int32 [N].
    correct: bool [N, m], whether each evaluation of `images_adv` was correct; m
      is 1 for a network without noise.
    clean_correct: bool [N, m], the same on the images themselves.
    sampled_accuracy: for 'clean' and after each attack, {worst, mean, spread}
      of a randomised network, see `randomized.accuracies`; {} for others.
    flags: for 'clean' and after each attack, bool [N].
    secs: for each attack, its wall time in this call.
    differences: how the attacks differ from the standard because classes are
      few or the attacks see another network, a sentence each.
    warnings: reasons to doubt the result, after the differences.
  """

  robust: np.ndarray
  images_adv: np.ndarray
  predictions: np.ndarray
  margins: np.ndarray
  clean_margins: np.ndarray
  clean_predictions: np.ndarray
  broken_by: np.ndarray
  broken_in: np.ndarray
  targets: np.ndarray
  changes: np.ndarray
  labels: np.ndarray
  correct: np.ndarray
  clean_correct: np.ndarray
  sampled_accuracy: dict[str, dict[str, float]]
  flags: dict[str, np.ndarray]
  secs: dict[str, float]
  differences: list[str]
  warnings: list[str]

  def per_image(self) -> dict[str, np.ndarray]:
    """Returns the arrays of numbers per image, without images and flags."""
    return {name: getattr(self, name) for name in _PER_IMAGE}

  def arrays(self) -> dict[str, np.ndarray]:
    """Returns the arrays per image, by name, as `result.npz` holds them."""
    return {
      'robust': self.robust,
      'images_adv': self.images_adv,
      **self.per_image(),
      'correct': self.correct,
      'clean_correct': self.clean_correct,
      **self.flags,
    }

  @property
  def table(self) -> list[image_table.Row]:
    """One row per image, as a dict; see `image_table.rows` for the columns."""
    return image_table.rows(self.per_image())

  def write_csv(self, path: str | os.PathLike) -> None:
    """Writes `table` as CSV, atomically.

    Args:
      path: the file; its folder is created if necessary.
    """
    image_table.write_csv(path, self.table)

  @property
  def clean_accuracy(self) -> float:
    """Share of clean images that are predicted correctly."""
    return float(np.mean(self.flags['clean']))

  @property
  def robust_accuracy(self) -> float:
    """Share of images that are robust to all attacks."""
    return float(np.mean(self.robust))
