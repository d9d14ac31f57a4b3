"""Decides whether points are classified correctly, and which of them to keep.

A network without noise is evaluated once. A randomised one is evaluated 2 m
times: m evaluations choose which of an image's points is kept, and m others
judge it. So what is reported of a point does not depend on why it was chosen:
the best of many candidates has luck in the evaluations that chose it alone.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import numpy as np

from dhat_jax.attacks import balls, randomized
from dhat_jax.attacks.logits import check_finite
from dhat_jax.runtime import streams


class Judgement(NamedTuple):
  """What n points are worth; m evaluations, one for a network without noise.

  Attributes:
    logits: float [n, K], the mean of the evaluations that judge.
    correct: bool [n, m], whether each of them was correct.
    shares: float [n], of the evaluations that choose, the correct ones.
    robust: bool [n], most of those that judge were correct.
    predictions: int32 [n], the label if robust, else the most frequent class.
    margins: float [n], the label's logit less the largest other one.
  """

  logits: np.ndarray
  correct: np.ndarray
  shares: np.ndarray
  robust: np.ndarray
  predictions: np.ndarray
  margins: np.ndarray


class Judge:
  """Evaluates points of padded batches.

  Attributes:
    samples: m; 1 for a network without noise.
  """

  def __init__(
    self,
    logits_fn: Callable,
    map_fn: Callable,
    *,
    rng: chex.PRNGKey | None = None,
    samples: int = 1,
  ):
    """Creates the judge; the first call compiles.

    Args:
      logits_fn: images -> logits; with `rng`, (images, key) -> logits.
      map_fn: (fn, in_axes) -> compiled fn.
      rng: typed key of the network's noise; None for a network without.
      samples: m, for a network with noise.
    """
    self._rng = rng
    self.samples = 1 if rng is None else samples
    if rng is None:
      self._run = map_fn(logits_fn, (0,))
      return
    noisy = randomized.per_example(logits_fn)

    def evaluate(images, places, passes, rng):
      keys = randomized.example_keys(rng, passes)
      keys = randomized.folded_each(keys, places)
      return randomized.sampled(noisy, images, keys, 2 * samples)

    self._run = map_fn(evaluate, (0, 0, 0, None))

  def evaluations(
    self,
    points: chex.Array,
    places: np.ndarray,
    passes: np.ndarray,
    stream: str,
  ) -> np.ndarray:
    """Computes logits [B, 1, K], or [B, 2 m, K] of a randomised network.

    The noise of a point hangs on the last three arguments and on the number of
    the evaluation.

    Args:
      points: float [B, ...].
      places: int [B], of their images in the data set.
      passes: int [B], which made them.
      stream: the attack, or 'clean'.
    """
    if self._rng is None:
      return np.asarray(self._run(points))[:, None]
    rng = streams.fold_in(self._rng, stream)
    places, passes = (n.astype(np.int32) for n in (places, passes))
    return np.asarray(self._run(points, places, passes, rng))

  def __call__(
    self,
    points: chex.Array,
    places: np.ndarray,
    passes: np.ndarray,
    *,
    labels: np.ndarray,
    stream: str,
  ) -> Judgement:
    """Judges the first n points of a padded batch.

    Args:
      points: float [B, ...].
      places: int [B], of their images in the data set.
      passes: int [B], which made them.
      labels: int [n].
      stream: the attack, or 'clean'.

    Raises:
      ValueError: logits that are not finite.
    """
    count = len(labels)
    logits = self.evaluations(points, places, passes, stream)[:count]
    check_finite(logits.reshape(count, -1), stream)
    return judged(logits[:, : self.samples], logits[:, -self.samples :], labels)


def judged(
  choosing: np.ndarray, judging: np.ndarray, labels: np.ndarray
) -> Judgement:
  """Judges points by their logits.

  Args:
    choosing: float [n, m, K].
    judging: float [n, m, K]; for a network without noise, the same.
    labels: int [n].
  """
  correct = _correct(judging, labels)
  logits = judging.mean(axis=1)  # [n, K]
  classes = np.argmax(judging, axis=2)  # [n, m]
  return Judgement(
    logits=logits,
    correct=correct,
    shares=_correct(choosing, labels).mean(axis=1),
    robust=2 * correct.sum(axis=1) > correct.shape[1],
    predictions=randomized.vote(classes, labels),
    margins=_margins(logits, labels),
  )


def _correct(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Returns where evaluations are correct: [n, m, K], [n] -> bool [n, m]."""
  samples = logits.shape[1]
  flat = logits.reshape(-1, logits.shape[2])
  right = balls.is_right(flat, np.repeat(labels, samples))
  return np.asarray(right).reshape(-1, samples)


def _margins(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Label's logit less the largest other one: [N, K], [N] -> [N].

  In NumPy: JAX would compile it for every N. Labels of no class are refused
  later.
  """
  places = np.arange(len(labels))
  labels = np.minimum(labels, logits.shape[1] - 1)
  others = logits.copy()
  others[places, labels] = -np.inf
  return logits[places, labels] - others.max(axis=1)
