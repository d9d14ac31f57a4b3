"""One evaluation by AutoAttack: the images left, and what broke the others.

Every attack sees only the images that all attacks before it left robust. After
each batch broken images are dropped, and the others are packed into new ones.
"""

import collections
import itertools
import time
from collections.abc import Callable

import chex
import numpy as np

from dhat_jax.attacks import arguments
from dhat_jax.attacks.autoattack import targets
from dhat_jax.attacks.autoattack.budget import Budget
from dhat_jax.attacks.autoattack.journal import Journal
from dhat_jax.attacks.autoattack.judge import Judge, Judgement
from dhat_jax.attacks.autoattack.packing import (
  Attack,
  Packing,
  counted,
  size_of_batches,
)
from dhat_jax.attacks.autoattack.progress import Reporter

Piece = dict[str, np.ndarray]  # see `journal.Journal`
# Of a judgement, what is stored of each image.
_JUDGED = ('robust', 'predictions', 'margins', 'correct', 'shares')


class Evaluation:
  """State of one call of `autoattack`; N images.

  Attributes:
    robust: bool [N], predicted correctly so far.
    images_adv: [N, ...], the image itself until an attack breaks it.
    predictions: int32 [N], classes predicted on `images_adv`.
    margins: float [N], the label's logit on `images_adv` less the largest
      other one.
    correct: bool [N, m], whether each evaluation of `images_adv` was correct; m
      is 1 for a network without noise.
    shares: float [N], of the evaluations that chose `images_adv`, the correct
      ones. Images are attacked until theirs is 0.
    broken_by: str [N], the attack that broke the image first; 'clean' if it was
      wrong before, '' if it is robust.
    broken_in: int32 [N], the index of that attack's pass, one of
      `Budget.passes`; -1 without one.
    rankings: {targeted attack: int [N, K]}, the classes at which its passes
      aim, by rank from 1, of which the first is the label, no target.
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
    judge: Judge,
    devices: int = 1,
  ):
    """Starts an evaluation; call `predict_clean` first.

    Args:
      images: float [N, ...] in [0, 1].
      labels: int32 [N].
      epsilon: radius of the ball.
      batch_size: of the predictions, and the largest of the attacks.
      judge: of points.
      devices: over which batches are split.
    """
    self._images = images
    self._labels = labels
    self._epsilon = np.asarray(epsilon, images.dtype)
    self._batch_size = batch_size
    self._devices = devices
    self._judge = judge
    self.robust = np.ones(len(images), bool)
    self.images_adv = images.copy()
    self.predictions = labels.copy()
    self.margins = np.full(len(images), np.nan, images.dtype)
    self.correct = np.ones((len(images), judge.samples), bool)
    self.shares = np.ones(len(images))
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

  def _judged(
    self,
    points: chex.Array,
    places: np.ndarray,
    stream: str,
    passes: np.ndarray | None = None,
  ) -> Judgement:
    """Judges the first n points: places int [n], passes [n]."""
    if passes is None:
      passes = np.zeros(len(places), np.int32)
    return self._judge(
      self._pad(points),
      self._pad(places),
      self._pad(passes),
      labels=self._labels[places],
      stream=stream,
    )

  def _first_batch(self) -> np.ndarray:
    return self._batches(np.arange(len(self._images)))[0]

  def predict_clean(self) -> np.ndarray:
    """Predicts all images and sets `robust`; returns the logits [N, K].

    Raises:
      ValueError: labels that are no classes, or logits that are not finite.
    """
    batches = [
      self._judged(self._images[batch], batch, 'clean')
      for batch in self._batches(np.arange(len(self._images)))
    ]
    columns = zip(*batches, strict=True)
    clean = Judgement(*(np.concatenate(rows) for rows in columns))
    classes = clean.logits.shape[1]
    arguments.classes('labels', self._labels, len(self._labels), classes, np)
    for name in _JUDGED:
      setattr(self, name, getattr(clean, name))
    self.broken_by[~self.robust] = 'clean'
    by_logits = targets.logits_ranking(clean.logits, self._labels)
    self.rankings = {'apgd-t': by_logits, 'fab-t': by_logits}
    return clean.logits

  def predicted_alike(self, run: Callable) -> np.ndarray:
    """Returns where images -> logits [B, K], compiled, predicts the same."""
    batches = self._batches(np.arange(len(self._images)))
    rows = [run(self._images[self._pad(b)])[: len(b)] for b in batches]
    return np.concatenate(rows).argmax(axis=1) == self.predictions

  def repeat(
    self, predict_pair: Callable, repeats: int = 5
  ) -> tuple[list[np.ndarray], np.ndarray]:
    """Predicts the first batch several times, at last among other images.

    It is for networks without noise.

    Args:
      predict_pair: images -> logits, compiled by its first call. It predicts
        the last time if a batch is one image.
      repeats: how often.

    Returns:
      Logits [B, K] of each time but the last, and [n, K] of the first n images
      in the last. There the images come in another order, each followed by its
      negative.
    """
    batch = self._first_batch()
    points = self._images[self._pad(batch)]
    samples = [
      self._judged(points, batch, 'clean').logits for _ in range(repeats - 1)
    ]
    predict, size = self._predict, len(points)
    if size == 1:
      predict, size = predict_pair, 2
    # The first half, the last image first, each followed by a negative.
    half = -(-size // 2)
    mixed = np.repeat(points[:half][::-1], 2, axis=0)[:size]
    mixed[1::2] = 1 - mixed[1::2]
    logits = np.asarray(predict(mixed))[::2][::-1][: len(batch)]
    return samples, logits

  def _predict(self, points: np.ndarray) -> np.ndarray:
    """Predicts any points of a batch [B, ...]: mean logits [B, K]."""
    places = self._pad(self._first_batch())
    passes = np.zeros_like(places)
    return self._judge.evaluations(points, places, passes, 'probe').mean(axis=1)

  def probe(self) -> np.ndarray:
    """Predicts noise in the boxes of the first images: logits [B, K].

    Networks that agree on the clean images may differ on these.
    """
    batch = self._first_batch()
    points = self._images[self._pad(batch)]
    noise = np.random.default_rng(0).random(points.shape, np.float32)
    return self._predict((points + noise.astype(points.dtype)) / 2)

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
    places = np.flatnonzero(self.shares > 0)
    size = self._batch_size
    if attack.carries and len(places):
      size = size_of_batches(len(places), size, self._devices, mixed=False)
    packing = Packing(
      budget.passes(attack.name), places, size, mixed=attack.mixed
    )
    carried = self._images.copy() if attack.carries else None
    stored, stripped = [], 0  # Square's batches: (name, key), and how many
    for number in itertools.count():
      passes, places = packing.take(self.shares > 0)
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
      left = packing.left(self.shares > 0)
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
    judgement = self._judged(points, places, attack.name, passes)
    # Square continues from all points; of others the better ones are kept.
    rows = np.flatnonzero(
      (judgement.shares < self.shares[places]) | attack.carries
    )
    return {
      **{name: getattr(judgement, name) for name in _JUDGED},
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
    """Applies a piece, item by item: images, flags, Square's points."""
    rows, points = piece['rows'], piece['points']
    places = piece['indices']
    if carried is not None:
      carried[places[rows]] = points
    counts = counted(places, piece['shares'] > 0)
    for key in ('zero_gradients', 'broken_gradients'):
      getattr(self, key)[attack.name] += int(np.sum(piece[key] & counts))
    point_of = dict(zip(rows, points, strict=True))
    for item, place in enumerate(places):
      if piece['shares'][item] >= self.shares[place]:
        continue  # also what would not have run, had pass come after pass
      self._name_breaker(attack, piece, item)
      self.images_adv[place] = point_of[item]
      for name in _JUDGED:
        getattr(self, name)[place] = piece[name][item]

  def _name_breaker(self, attack: Attack, piece: Piece, item: int) -> None:
    """Says which pass broke an image first.

    What replaces an image of a randomised network may be robust again.
    """
    place = piece['indices'][item]
    if piece['robust'][item]:
      self.broken_by[place], self.broken_in[place] = '', -1
    elif self.robust[place]:
      self.broken_by[place] = attack.name
      self.broken_in[place] = piece['passes'][item]
