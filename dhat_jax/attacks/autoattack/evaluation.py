"""One evaluation by AutoAttack: the images left, and what broke the others.

Every attack sees only the images that all attacks before it left robust. After
each batch broken images are dropped, and the others are packed into new ones.
"""

import collections
import itertools
import time
from collections.abc import Callable

import chex
import jax
import numpy as np

from dhat_jax.attacks import arguments, balls
from dhat_jax.attacks.autoattack.budget import Budget
from dhat_jax.attacks.autoattack.journal import Journal
from dhat_jax.attacks.autoattack.packing import (
  Attack,
  Packing,
  counted,
  size_of_batches,
)
from dhat_jax.attacks.autoattack.progress import Reporter
from dhat_jax.attacks.logits import check_finite

Piece = dict[str, np.ndarray]  # see `journal.Journal`


class Evaluation:
  """State of one call of `autoattack`; N images.

  Attributes:
    robust: bool [N], predicted correctly so far.
    images_adv: [N, ...], the image itself until an attack breaks it.
    predictions: int32 [N], classes predicted on `images_adv`.
    margins: float [N], the label's logit on `images_adv` less the largest
      other one.
    broken_by: str [N], the attack that broke the image first; 'clean' if it was
      wrong before, '' if it is robust.
    broken_in: int32 [N], the index of that attack's pass, one of
      `Budget.passes`; -1 without one.
    rankings: {targeted attack: int [N, K]}, the classes at which its passes
      aim, by rank from 1, of which the first is no target.
    zero_gradients: {attack: number of starts where the gradient vanished}.
    broken_gradients: {attack: number of runs of an image in which a gradient
      was not finite}.
    secs: {attack: wall time}.
  """

  def __init__(
    self,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    epsilon: float,
    batch_size: int,
    devices: int = 1,
    predict: Callable,
  ):
    """Starts an evaluation; call `predict_clean` first.

    Args:
      images: float [N, ...] in [0, 1].
      labels: int32 [N].
      epsilon: radius of the ball.
      batch_size: of the predictions, and the largest of the attacks.
      devices: over which batches are split.
      predict: images [batch_size, ...] -> logits [batch_size, K], compiled.
    """
    self._images = images
    self._labels = labels
    self._epsilon = np.asarray(epsilon, images.dtype)
    self._batch_size = batch_size
    self._devices = devices
    self._predict = predict
    self.robust = np.ones(len(images), bool)
    self.images_adv = images.copy()
    self.predictions = labels.copy()
    self.margins = np.full(len(images), np.nan, images.dtype)
    self.broken_by = np.full(len(images), '', '<U16')
    self.broken_in = np.full(len(images), -1, np.int32)
    self.rankings = {}
    self.zero_gradients = collections.Counter()
    self.broken_gradients = collections.Counter()
    self.secs = {}

  def _batches(self, indices: np.ndarray) -> list[np.ndarray]:
    """Splits places in the data set into batches, the last one shorter."""
    size = self._batch_size
    return [indices[n : n + size] for n in range(0, len(indices), size)]

  def _pad(self, batch: np.ndarray, size: int | None = None) -> np.ndarray:
    """Repeats the first row up to a size, by default that of predictions."""
    missing = (size or self._batch_size) - len(batch)
    return np.concatenate([batch, np.repeat(batch[:1], missing, axis=0)])

  def _logits(
    self, points: chex.Array, batch: np.ndarray, where: str
  ) -> np.ndarray:
    """Predicts the first n points, of a batch: finite logits [n, K]."""
    logits = np.asarray(self._predict(self._pad(points)))[: len(batch)]
    check_finite(logits, where)
    return logits

  def _first_batch(self) -> np.ndarray:
    return self._batches(np.arange(len(self._images)))[0]

  def predict_clean(self) -> np.ndarray:
    """Predicts all images and sets `robust`; returns the logits [N, K].

    Raises:
      ValueError: labels that are no classes, or logits that are not finite.
    """
    logits = np.concatenate(
      [
        self._logits(self._images[self._pad(batch)], batch, 'clean')
        for batch in self._batches(np.arange(len(self._images)))
      ]
    )
    classes = logits.shape[1]
    arguments.classes('labels', self._labels, len(logits), classes, np)
    self.robust = balls.is_right(logits, self._labels)
    self.predictions = _classes(logits)
    self.margins = _margins(logits, self._labels)
    self.broken_by[~self.robust] = 'clean'
    by_logits = np.argsort(logits, axis=1, kind='stable')[:, ::-1]
    self.rankings = {'apgd-t': by_logits, 'fab-t': by_logits}
    return logits

  def repeat(
    self, predict_pair: Callable | None, repeats: int = 5
  ) -> tuple[list[np.ndarray], np.ndarray]:
    """Predicts the first batch several times, at last among other images.

    Args:
      predict_pair: images -> logits, compiled by its first call. It predicts
        the last time if a batch is one image. None: a randomised network.
      repeats: how often.

    Returns:
      Logits [B, K] of each time but the last, and [n, K] of the first n images
      in the last. There the images come in another order, each followed by its
      negative.
    """
    batch = self._first_batch()
    points = self._images[self._pad(batch)]
    samples = [self._logits(points, batch, 'clean') for _ in range(repeats - 1)]
    predict, size = self._predict, len(points)
    if size == 1 and predict_pair is not None:
      predict, size = predict_pair, 2
    # The first half, the last image first, each followed by a negative.
    half = -(-size // 2)
    mixed = np.repeat(points[:half][::-1], 2, axis=0)[:size]
    mixed[1::2] = 1 - mixed[1::2]
    logits = np.asarray(predict(mixed))[::2][::-1][: len(batch)]
    return samples, logits

  def probe(self) -> np.ndarray:
    """Predicts noise in the boxes of the first images: logits [B, K].

    Networks that agree on the clean images may differ on these.
    """
    batch = self._first_batch()
    points = self._images[self._pad(batch)]
    noise = np.random.default_rng(0).random(points.shape, np.float32)
    return np.asarray(self._predict((points + noise.astype(points.dtype)) / 2))

  def attack(
    self,
    attack: Attack,
    *,
    budget: Budget,
    journal: Journal,
    reporter: Reporter,
  ) -> None:
    """Runs all passes of one attack on the images that are still robust.

    Args:
      attack: its name and program.
      budget: determines the passes.
      journal: where finished batches are stored and read.
      reporter: called after each batch.
    """
    started = time.perf_counter()
    places = np.flatnonzero(self.robust)
    size = self._batch_size
    if attack.carries and len(places):
      size = size_of_batches(len(places), size, self._devices, mixed=False)
    packing = Packing(
      budget.passes(attack.name), places, size, mixed=attack.mixed
    )
    carried = self._images.copy() if attack.carries else None
    stored, stripped = [], 0  # Square's batches: (name, key), and how many
    for number in itertools.count():
      passes, places = packing.take(self.robust)
      if not len(places):
        break
      name = f'{attack.name}-{number:05d}'
      key = {'indices': places, 'passes': passes}
      piece = journal.load(name, key)
      fresh = piece is None
      if fresh:
        piece = key | self._attack_batch(attack, passes, places, size, carried)
        journal.save(name, piece)
      self._apply(attack, piece, carried)
      stored.append((name, key))
      if attack.carries:
        stripped = self._strip(journal, stored, stripped)
      left = packing.left(self.robust)
      reporter(attack.name, passes, left, size, self.robust, fresh)
    self.secs[attack.name] = time.perf_counter() - started

  def _attack_batch(
    self,
    attack: Attack,
    passes: np.ndarray,
    places: np.ndarray,
    size: int,
    carried: np.ndarray | None,
  ) -> Piece:
    """Runs the items of one batch: passes int32 [n], places int [n]."""
    count = len(places)
    padded, indices = self._pad(passes, size), self._pad(places, size)
    images = self._images[indices]
    points, flat, broken = attack.run(
      images,
      self._labels[indices],
      self._targets(attack, padded, indices),
      np.arange(size) < count,
      images if carried is None else carried[indices],
      indices.astype(np.int32),
      padded,
      np.full(size, attack.which, np.int32),
      attack.rngs,
      self._epsilon,
    )
    points = np.asarray(points)
    arguments.in_box(f'{attack.name}: its images', points)
    logits = self._logits(points, places, attack.name)
    robust = balls.is_right(logits, self._labels[places])
    # Square continues from all points, other attacks from the broken ones.
    rows = np.flatnonzero(~robust | attack.carries)
    return {
      'robust': robust,
      'predictions': _classes(logits),
      'margins': _margins(logits, self._labels[places]),
      'rows': rows,
      'points': points[rows],
      'zero_gradients': np.asarray(flat)[:count],
      'broken_gradients': np.asarray(broken)[:count],
    }

  def _strip(
    self, journal: Journal, stored: list[tuple[str, Piece]], stripped: int
  ) -> int:
    """Drops points of robust images that a whole later pass of Square has.

    Args:
      journal: where the batches are.
      stored: name, places and passes of all batches.
      stripped: how many of them were stripped before.

    Returns:
      How many are stripped now.
    """
    newest = stored[-1][1]['passes'][0]
    while stored[stripped][1]['passes'][0] < newest - 1:
      journal.strip(*stored[stripped])
      stripped += 1
    return stripped

  def _targets(
    self, attack: Attack, passes: np.ndarray, places: np.ndarray
  ) -> np.ndarray:
    """Returns the classes that items aim at: int32 [B].

    Pass r of a targeted attack aims at the class of rank r, by clean logits
    unless another order was set. Other attacks do not look at them.
    """
    if attack.name not in self.rankings:
      return np.zeros(len(places), np.int32)
    return self.rankings[attack.name][places, passes - 1].astype(np.int32)

  def _apply(
    self, attack: Attack, piece: Piece, carried: np.ndarray | None
  ) -> None:
    """Applies a piece: robust flags, adversarial images, Square's points."""
    robust, rows, points = (piece[key] for key in ('robust', 'rows', 'points'))
    passes, places = piece['passes'], piece['indices']
    if carried is not None:
      carried[places[rows]] = points
    counts = counted(places, robust)
    for key in ('zero_gradients', 'broken_gradients'):
      getattr(self, key)[attack.name] += int(np.sum(piece[key] & counts))
    breaks = counts & ~robust  # [n], the items that broke their image first
    here = breaks[rows]
    self.images_adv[places[rows[here]]] = points[here]
    for name in ('predictions', 'margins'):
      getattr(self, name)[places[breaks]] = piece[name][breaks]
    self.broken_by[places[breaks]] = attack.name
    self.broken_in[places[breaks]] = passes[breaks]
    self.robust[places[breaks]] = False


def _classes(logits: np.ndarray) -> np.ndarray:
  """Predicted classes: [N, K] -> int32 [N]."""
  return np.argmax(logits, axis=1).astype(np.int32)


def _margins(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Label's logit less the largest other one: [N, K], [N] -> [N].

  In NumPy: JAX would compile it for every N.
  """
  places = np.arange(len(labels))
  others = logits.copy()
  others[places, labels] = -np.inf
  return logits[places, labels] - others.max(axis=1)


def make_predict(
  logits_fn: Callable, map_fn: Callable, noise_rng: chex.PRNGKey | None
) -> Callable:
  """Compiles images -> logits.

  Args:
    logits_fn: images -> logits; with `noise_rng`, (images, key) -> logits.
    map_fn: (fn, in_axes) -> compiled fn.
    noise_rng: typed key of the network's noise, folded with the number of the
      call; None for a network without.
  """
  if noise_rng is None:
    return map_fn(logits_fn, (0,))
  noisy = map_fn(logits_fn, (0, None))
  calls = iter(range(2**31))
  return lambda images: noisy(
    images, jax.random.fold_in(noise_rng, next(calls))
  )
