"""One evaluation by AutoAttack: the images left, and what broke the others.

Every attack sees only the images that all attacks before it left robust. After
each pass broken images are dropped, and the others are packed into new batches.
"""

import collections
import dataclasses
import time
from collections.abc import Callable

import chex
import jax
import numpy as np

from dhat_jax import divergences
from dhat_jax.attacks import arguments, balls
from dhat_jax.attacks.autoattack.budget import Budget
from dhat_jax.attacks.autoattack.journal import Journal
from dhat_jax.attacks.autoattack.progress import Reporter
from dhat_jax.attacks.logits import check_finite

Piece = dict[str, np.ndarray]  # see `journal.Journal`


@dataclasses.dataclass(frozen=True)
class Pass:
  """One restart, target rank or piece of an attack.

  Attributes:
    attack: its name.
    index: one of `Budget.passes`.
    run: compiled, see `passes.make_attack`.
    rng: typed key of the attack.
    carried: [N, ...], the points from which Square continues; else None.
  """

  attack: str
  index: int
  run: Callable
  rng: chex.PRNGKey
  carried: np.ndarray | None


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
    predict: Callable,
  ):
    """Starts an evaluation; call `predict_clean` first.

    Args:
      images: float [N, ...] in [0, 1].
      labels: int32 [N].
      epsilon: radius of the ball.
      batch_size: of all compiled calls.
      predict: images [batch_size, ...] -> logits [batch_size, K], compiled.
    """
    self._images = images
    self._labels = labels
    self._epsilon = np.asarray(epsilon, images.dtype)
    self._batch_size = batch_size
    self._predict = predict
    self.robust = np.ones(len(images), bool)
    self.images_adv = images.copy()
    self.predictions = labels.copy()
    self.margins = np.full(len(images), np.nan, images.dtype)
    self.broken_by = np.full(len(images), '', '<U16')
    self.broken_in = np.full(len(images), -1, np.int32)
    self._ranking = np.zeros((len(images), 0), np.int32)  # [N, K]
    self.zero_gradients = collections.Counter()
    self.broken_gradients = collections.Counter()
    self.secs = {}

  def _batches(self, indices: np.ndarray) -> list[np.ndarray]:
    """Splits places in the data set into batches, the last one shorter."""
    size = self._batch_size
    return [indices[n : n + size] for n in range(0, len(indices), size)]

  def _pad(self, batch: np.ndarray) -> np.ndarray:
    """Repeats the first place up to the batch size."""
    missing = self._batch_size - len(batch)
    return np.concatenate([batch, np.repeat(batch[:1], missing)])

  def _logits(
    self, points: chex.Array, batch: np.ndarray, where: str
  ) -> np.ndarray:
    """Predicts points of a padded batch: finite logits [n, K]."""
    logits = np.asarray(self._predict(points))[: len(batch)]
    check_finite(logits, where)
    return logits

  def _first_batch(self) -> np.ndarray:
    return self._batches(np.arange(len(self._images)))[0]

  def predict_clean(self) -> np.ndarray:
    """Predicts all images and sets `robust`; returns the logits [N, K]."""
    logits = np.concatenate(
      [
        self._logits(self._images[self._pad(batch)], batch, 'clean')
        for batch in self._batches(np.arange(len(self._images)))
      ]
    )
    self.robust = balls.is_right(logits, self._labels)
    self.predictions = _classes(logits)
    self.margins = _margins(logits, self._labels)
    self.broken_by[~self.robust] = 'clean'
    self._ranking = np.argsort(logits, axis=1, kind='stable')[:, ::-1]
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
    name: str,
    run: Callable,
    *,
    budget: Budget,
    rng: chex.PRNGKey,
    journal: Journal,
    reporter: Reporter,
  ) -> None:
    """Runs all passes of one attack on the images that are still robust.

    Args:
      name: of the attack.
      run: compiled, see `passes.make_attack`.
      budget: determines the passes.
      rng: typed key of the attack.
      journal: where finished batches are stored and read.
      reporter: called after each batch.
    """
    if not budget.passes(name):
      raise ValueError(f'{name}: got a budget of no passes, expected one')
    started = time.perf_counter()
    carried = self._images.copy() if name == 'square' else None
    before = []
    for index in budget.passes(name):
      step = Pass(name, index, run, rng, carried)
      pieces = self._run_pass(step, journal, reporter)
      if carried is not None:
        for piece_name, batch in before:
          journal.strip(piece_name, batch)
      before = pieces
    self.secs[name] = time.perf_counter() - started

  def _run_pass(
    self, step: Pass, journal: Journal, reporter: Reporter
  ) -> list[tuple[str, np.ndarray]]:
    """Runs or reads one pass; returns its pieces' names and places."""
    pieces = []
    batches = self._batches(np.flatnonzero(self.robust))
    for number, batch in enumerate(batches):
      name = f'{step.attack}-{step.index:02d}-{number:05d}'
      piece = self._read(journal, name, batch)
      fresh = piece is None
      if fresh:
        piece = self._attack_batch(step, batch)
        journal.save(name, piece)
      self._apply(step, batch, piece)
      pieces.append((name, batch))
      reporter(
        step.attack, step.index, self.robust, number + 1, len(batches), fresh
      )
    return pieces

  def _attack_batch(self, step: Pass, batch: np.ndarray) -> Piece:
    """Runs one pass on one batch."""
    padded = self._pad(batch)
    images = self._images[padded]
    points, flat, broken = step.run(
      images,
      self._labels[padded],
      self._targets(step, padded),
      np.arange(self._batch_size) < len(batch),
      images if step.carried is None else step.carried[padded],
      padded.astype(np.int32),
      step.rng,
      np.int32(step.index),
      self._epsilon,
    )
    points = np.asarray(points)
    arguments.in_box(f'{step.attack}: its images', points)
    logits = self._logits(points, batch, step.attack)
    robust = balls.is_right(logits, self._labels[batch])
    # Square continues from all points, other attacks from the broken ones.
    rows = np.flatnonzero(~robust | (step.carried is not None))
    return {
      'indices': batch,
      'robust': robust,
      'predictions': _classes(logits),
      'margins': _margins(logits, self._labels[batch]),
      'rows': rows,
      'points': points[rows],
      'zero_gradients': np.sum(np.asarray(flat)[: len(batch)]),
      'broken_gradients': np.sum(np.asarray(broken)[: len(batch)]),
    }

  def _targets(self, step: Pass, places: np.ndarray) -> np.ndarray:
    """Returns the classes that a pass aims at: int32 [B].

    Pass r of a targeted attack aims at the class with the r-th largest logit of
    the clean image. Other attacks do not look at them.
    """
    rank = step.index if step.attack.endswith('-t') else 1
    return self._ranking[places, rank - 1].astype(np.int32)

  def _read(
    self, journal: Journal, name: str, batch: np.ndarray
  ) -> Piece | None:
    """Reads a piece of the journal; None if it has to be computed.

    Pieces of earlier versions have no margins, and are predicted again.
    """
    piece = journal.load(name, batch)
    if piece is None or 'margins' in piece:
      return piece
    points = self._images[self._pad(batch)]
    points[piece['rows']] = piece['points']
    logits = self._logits(points, batch, name)
    right = balls.is_right(logits, self._labels[batch])
    if not np.array_equal(right, piece['robust']):
      return None
    piece['predictions'] = _classes(logits)
    piece['margins'] = _margins(logits, self._labels[batch])
    journal.save(name, piece)
    return piece

  def _apply(self, step: Pass, batch: np.ndarray, piece: Piece) -> None:
    """Applies a piece: robust flags, adversarial images, Square's points."""
    robust, rows, points = (piece[key] for key in ('robust', 'rows', 'points'))
    self.zero_gradients[step.attack] += int(piece['zero_gradients'])
    # Pieces of earlier versions did not count them.
    self.broken_gradients[step.attack] += int(piece.get('broken_gradients', 0))
    if step.carried is not None:
      step.carried[batch[rows]] = points
    broken = ~robust[rows]  # of the rows
    places = batch[rows[broken]]
    self.images_adv[places] = points[broken]
    self.predictions[places] = piece['predictions'][rows[broken]]
    self.margins[places] = piece['margins'][rows[broken]]
    self.broken_by[places] = step.attack
    self.broken_in[places] = step.index
    self.robust[batch] = robust


def _classes(logits: np.ndarray) -> np.ndarray:
  """Predicted classes: [N, K] -> int32 [N]."""
  return np.argmax(logits, axis=1).astype(np.int32)


def _margins(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Label's logit less the largest other one: [N, K], [N] -> [N]."""
  return -np.asarray(divergences.margin(logits, labels))


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
