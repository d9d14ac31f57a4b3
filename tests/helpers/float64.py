"""Numbers for the tests of losses: logits, and arithmetic in float64."""

import numpy as np

LABELS = np.array([0, 1, 2, 0])


def logits_at(gap, seed=0, classes=4):
  """Two [4, K] float32: clean and adversarial; the largest gap is `gap`.

  Examples are right on both, fooled, wrong on both, and lead by a near tie.
  """
  normal = np.random.default_rng(seed).normal(size=(2, 4, classes)) / 8
  normal[:, 0, 0] += 1
  normal[0, 1, 1] += 1
  normal[1, 1, 0] += 1
  normal[:, 2, 0] += 1
  normal[:, 3, 0] += 1
  normal[:, 3, 1] = normal[:, 3, 0] - 0.7 / gap
  normal *= gap / np.ptp(normal, axis=2).max()
  return np.float32(normal)


# Independent float64 forms with probabilities, as the papers write them.


def softmax(z):
  z = np.float64(z)
  exp = np.exp(z - z.max(axis=1, keepdims=True))
  return exp / exp.sum(axis=1, keepdims=True)


def pick(values, labels=LABELS):
  return values[np.arange(len(values)), labels]


def ce_in_float64(z):
  return -np.log(pick(softmax(z)))


def kl_in_float64(p, q):
  return (p * np.log(p / q)).sum(axis=1)


def finite_differences(function, points, step=1e-5):
  """Central differences of float64 [2, 4, K] -> float."""
  points = np.float64(points)
  gradient = np.zeros_like(points)
  for index in np.ndindex(points.shape):
    shift = np.zeros_like(points)
    shift[index] = step
    change = function(points + shift) - function(points - shift)
    gradient[index] = change / (2 * step)
  return gradient
