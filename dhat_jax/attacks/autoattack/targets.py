"""The order in which APGD-T tries the target classes."""

from collections.abc import Callable

import numpy as np

from dhat_jax.attacks import balls, malt

ORDERS = ('logits', 'malt')


def check_order(
  target_order: str, names: tuple[str, ...], randomized: bool = False
) -> str:
  """Returns an order of targets that the attacks can use, or raises.

  Args:
    target_order: one of `ORDERS`.
    names: of the attacks.
    randomized: whether the network is.
  """
  balls.check_choice('target_order', target_order, ORDERS)
  if target_order == 'malt' and 'apgd-t' not in names:
    raise ValueError(
      f"target_order: got 'malt' for the attacks {names}, expected 'apgd-t' "
      'among them, whose order it is'
    )
  if target_order == 'malt' and randomized:
    raise ValueError(
      "target_order: got 'malt' for a randomised network, expected 'logits'"
    )
  return target_order


def logits_ranking(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Orders the classes by their clean logits, the label first.

  Of an image that is predicted correctly, the label's logit is the largest one
  anyway. It may not be the only one, and the mean logits of a randomised
  network may have another, though most of its evaluations are correct. The
  label is no target even then.

  Args:
    logits: float [N, K].
    labels: int [N].

  Returns:
    int [N, K].
  """
  logits = logits.copy()
  logits[np.arange(len(labels)), labels] = np.inf
  return np.argsort(logits, axis=1, kind='stable')[:, ::-1]


def malt_ranking(
  logits_fn: Callable,
  map_fn: Callable,
  images: np.ndarray,
  labels: np.ndarray,
  robust: np.ndarray,
  *,
  norm: str,
  batch_size: int,
  classes: int,
) -> np.ndarray:
  """Orders the classes of the images that are still robust, as MALT does.

  Args:
    logits_fn: images -> logits [B, K].
    map_fn: (fn, in_axes) -> compiled fn.
    images: float [N, ...].
    labels: int [N].
    robust: bool [N].
    norm: of the attack.
    batch_size: of the compiled calls.
    classes: K.

  Returns:
    int32 [N, K], the label first; zeros for images that are not robust.
  """

  def order(images, labels):
    return malt.target_order(logits_fn, images, labels, norm=norm)

  run = map_fn(order, (0, 0))
  ranking = np.zeros((len(images), classes), np.int32)
  places = np.flatnonzero(robust)
  for first in range(0, len(places), batch_size):
    batch = places[first : first + batch_size]
    padded = np.resize(batch, batch_size)
    rows = np.asarray(run(images[padded], labels[padded]))
    ranking[batch] = rows[: len(batch)]
  return ranking
