"""AutoAttack: an ensemble of attacks without parameters to tune (ICML 2020).

Point-wise worst case: every attack sees only what all attacks before it left
robust. `docs/autoattack.md` says what equals the reference and what cannot.
"""

import collections
import dataclasses
import os
import time
from collections.abc import Callable, Sequence

import chex
import jax
import numpy as np

from dhat_jax.attacks import balls
from dhat_jax.attacks.autoattack import checks
from dhat_jax.attacks.autoattack.journal import Journal, digest
from dhat_jax.attacks.autoattack.passes import (
  ATTACK_AXES,
  Budget,
  jit_hoisted,
  make_attack,
)
from dhat_jax.attacks.autoattack.progress import Progress, Reporter


@dataclasses.dataclass(frozen=True)
class AutoAttackResult:
  """What AutoAttack found; N images.

  Attributes:
    robust: bool [N], predicted correctly under all attacks.
    images_adv: [N, ...], an adversarial image where one was found, else the
      image itself.
    flags: for 'clean' and after each attack, bool [N].
    secs: for each attack, its wall time in this call.
    warnings: what casts doubt on the result.
  """

  robust: np.ndarray
  images_adv: np.ndarray
  flags: dict[str, np.ndarray]
  secs: dict[str, float]
  warnings: list[str]

  @property
  def clean_accuracy(self) -> float:
    """Share of images predicted correctly as they are."""
    return float(np.mean(self.flags['clean']))

  @property
  def robust_accuracy(self) -> float:
    """Share of images robust to all attacks."""
    return float(np.mean(self.robust))


class _Evaluation:
  """The state of one call of `autoattack`."""

  def __init__(self, images, labels, epsilon, batch_size, predict):
    self.images = images
    self.labels = labels
    self.epsilon = np.asarray(epsilon, images.dtype)
    self.batch_size = batch_size
    self.predict = predict
    self.images_adv = images.copy()
    self.zero_gradients = collections.Counter()
    self.secs = {}

  def batches(self, indices):
    """Splits places in the data set into batches, the last one shorter."""
    size = self.batch_size
    return [indices[n : n + size] for n in range(0, len(indices), size)]

  def pad(self, indices):
    """Repeats the first place up to the batch size."""
    missing = self.batch_size - len(indices)
    return np.concatenate([indices, np.repeat(indices[:1], missing)])

  def correct(self, points, indices, where):
    """Predicts points of a padded batch again: bool [n]; logits [n, K]."""
    count = len(indices)
    logits = np.asarray(self.predict(points))[:count]
    checks.check_finite(logits, where)
    return np.argmax(logits, axis=1) == self.labels[indices], logits

  def clean(self):
    """Predicts all images: robust flags [N], logits [N, K]."""
    outputs = [
      self.correct(self.images[self.pad(batch)], batch, 'clean')
      for batch in self.batches(np.arange(len(self.images)))
    ]
    return tuple(np.concatenate(parts) for parts in zip(*outputs, strict=True))

  def attack_batch(self, run, name, index, batch, carried, rng):
    """Runs one pass on one batch.

    Returns:
      points [n, ...], robust bool [n], number of vanishing gradients.
    """
    padded = self.pad(batch)
    active = np.arange(self.batch_size) < len(batch)
    images = self.images[padded]
    points, flat = run(
      images,
      self.labels[padded],
      active,
      images if carried is None else carried[padded],
      padded.astype(np.int32),
      rng,
      np.int32(index),
      self.epsilon,
    )
    robust, _ = self.correct(points, batch, name)
    flat = np.sum(np.asarray(flat)[: len(batch)])
    return np.asarray(points)[: len(batch)], robust, flat


def _run_pass(task, run, name, index, robust, carried, rng, journal, report):
  """Runs or reads one pass over all robust images; returns its pieces.

  Updates robust [N], carried [N, ...] and task.images_adv in place.
  """
  pieces = []
  batches = task.batches(np.flatnonzero(robust))
  for number, batch in enumerate(batches):
    piece = f'{name}-{index:02d}-{number:05d}'
    pieces.append((piece, batch))
    stored = journal.load(piece, batch)
    fresh = stored is None
    if fresh:
      points, still, flat = task.attack_batch(
        run, name, index, batch, carried, rng
      )
      keep = ~still if carried is None else np.ones_like(still)
      rows = np.flatnonzero(keep)
      stored = {
        'indices': batch,
        'robust': still,
        'rows': rows,
        'points': points[rows],
        'zero_gradients': flat,
      }
      journal.save(piece, stored)
    still, rows, points = (stored[key] for key in ('robust', 'rows', 'points'))
    task.zero_gradients[name] += int(stored['zero_gradients'])
    if carried is not None:
      carried[batch[rows]] = points
    broken = ~still[rows]
    task.images_adv[batch[rows[broken]]] = points[broken]
    robust[batch] = still
    report(number + 1, len(batches), fresh)
  return pieces


def _run_attack(task, name, run, robust, budget, rng, journal, reporter):
  """Runs all passes of one attack; updates robust in place."""
  started = time.perf_counter()
  carried = task.images.copy() if name == 'square' else None
  before = []
  for index in budget.passes(name):

    def report(done, count, fresh, index=index):
      reporter(name, index, robust, done, count, fresh)

    pieces = _run_pass(
      task, run, name, index, robust, carried, rng, journal, report
    )
    if carried is not None:
      for piece, batch in before:
        journal.strip(piece, batch)
    before = pieces
  task.secs[name] = time.perf_counter() - started


def _make_predict(logits_fn, map_fn, randomized, rng):
  """Returns images -> logits, compiled; with noise a new one each call."""
  if not randomized:
    return map_fn(logits_fn, (0,))
  noisy = map_fn(logits_fn, (0, None))
  calls = iter(range(2**31))
  return lambda images: noisy(images, jax.random.fold_in(rng, next(calls)))


def _describe_zero_gradients(counts):
  return [
    f'{name}: {count} starting points with zero gradient; gradient attacks '
    'may be unreliable'
    for name, count in counts.items()
    if count
  ]


def _host_arrays(images, labels, epsilon, names, batch_size):
  """Checks the data: images float [N, ...], labels int32 [N], in NumPy."""
  images, labels = np.asarray(images), np.asarray(labels)
  if images.dtype.kind == 'f':
    images = images.astype(jax.dtypes.canonicalize_dtype(images.dtype))
  checks.check_inputs(images, labels, epsilon, batch_size)
  if 'square' in names and images.ndim != 4:
    raise ValueError(
      f'square: got images of shape {images.shape}, expected [N, H, W, C]'
    )
  return images, labels.astype(np.int32)


def _check_network(task, names, n_targets, version):
  """Predicts the clean images: robust [N], K, warnings."""
  robust, logits = task.clean()
  checks.check_logits(logits, task.labels, names)
  classes = logits.shape[1]
  warnings = checks.warn_targets(names, classes, n_targets)
  if version != 'rand':
    first = task.batches(np.arange(len(task.images)))[0]
    points = task.images[task.pad(first)]
    samples = [task.correct(points, first, 'clean')[1] for _ in range(5)]
    warnings += checks.warn_randomized(samples, task.labels[first])
  return robust, classes, warnings


def autoattack(
  logits_fn: Callable,
  images: chex.Array,
  labels: chex.Array,
  *,
  epsilon: float,
  norm: str = 'linf',
  version: str = 'standard',
  attacks: Sequence[str] | None = None,
  rng: chex.PRNGKey | None = None,
  batch_size: int = 250,
  n_iter: int = 100,
  n_queries: int = 5000,
  n_restarts: int | None = None,
  n_targets: int = 9,
  eot_iter: int | None = None,
  randomized: bool = False,
  progress: bool | Callable[[Progress], None] = False,
  state_dir: str | os.PathLike | None = None,
  map_fn: Callable | None = None,
  precision: str | None = 'highest',
) -> AutoAttackResult:
  """Evaluates the robustness of a network.

  Versions: 'standard' (apgd-ce, apgd-t, fab-t, square), 'plus' (apgd-ce,
  apgd-dlr, fab, square, apgd-t, fab-t; 5 restarts of the untargeted ones),
  'rand' (apgd-ce, apgd-dlr with 20 gradients averaged per iteration) and
  'custom' (the given attacks, 5 restarts of the untargeted ones).

  Args:
    logits_fn: images [B, ...] -> logits [B, K], in evaluation mode, with any
      normalisation inside. Best left unjitted. With `randomized`, (images,
      key) -> logits.
    images: float [N, ...] in [0, 1]; Square expects [N, H, W, C].
    labels: int [N].
    epsilon: radius of the ball in [0, 1] units, used as it is: 8/255 and .031
      are different problems.
    norm: 'linf' or 'l2'.
    version: see above.
    attacks: names, for 'custom'.
    rng: typed key; default jax.random.key(0). The flags depend on it, but not
      on how the images are split into batches.
    batch_size: of all compiled calls; partial batches are padded and masked.
      A multiple of the devices' number if `map_fn` uses several.
    n_iter: iterations of APGD and FAB. The standard is 100.
    n_queries: of Square. The standard is 5000.
    n_restarts: of apgd-ce, apgd-dlr and fab; default by version.
    n_targets: target classes; at most K - 1 are used.
    eot_iter: gradients averaged per iteration; default by version.
    randomized: whether logits_fn takes a key as second argument.
    progress: True prints a line per batch; or a function of `Progress`.
    state_dir: directory in which every finished batch is stored. A call with
      the same problem and directory goes on where a killed one stopped. Holds
      `result.npz` in the end.
    map_fn: (fn, in_axes) -> compiled fn; default `jit_hoisted`. For several
      devices: split the arguments (and results) whose axis is 0 over them,
      copy the others.
    precision: of matrix products and convolutions, as JAX names it; None
      leaves JAX's default, which is TF32 or bfloat16 on accelerators: faster,
      and a slightly different network.

  Returns:
    An `AutoAttackResult`.

  Raises:
    ValueError: bad arguments; logits that are probabilities, not finite, or
      too few for an attack (apgd-dlr needs 3 classes, apgd-t 4); a state_dir
      of another problem.
  """
  balls.check_choice('norm', norm, balls.NORMS)
  names = checks.choose_attacks(version, attacks, randomized)
  images, labels = _host_arrays(images, labels, epsilon, names, batch_size)
  rng = jax.random.key(0) if rng is None else rng
  if map_fn is None:
    map_fn = jit_hoisted
    batch_size = min(batch_size, len(images))

  def run(name, budget):
    attack = make_attack(
      name, logits_fn, norm=norm, budget=budget, randomized=randomized
    )
    return map_fn(attack, ATTACK_AXES)

  with jax.default_matmul_precision(precision):
    noise_rng = jax.random.fold_in(rng, len(checks.NAMES))
    predict = _make_predict(logits_fn, map_fn, randomized, noise_rng)
    task = _Evaluation(images, labels, epsilon, batch_size, predict)
    robust, classes, warnings = _check_network(task, names, n_targets, version)
    many = version in ('plus', 'custom')
    budget = Budget(
      n_iter=n_iter,
      n_queries=n_queries,
      n_restarts=n_restarts or (5 if many else 1),
      n_targets=min(n_targets, classes - 1),
      eot_iter=eot_iter or (20 if version == 'rand' else 1),
    )
    problem = {
      'images_and_labels': digest(images, labels),
      'clean_flags': digest(robust),
      'epsilon': float(epsilon),
      'norm': norm,
      'version': version,
      'attacks': names,
      'rng': np.asarray(jax.random.key_data(rng)).tolist(),
      'batch_size': batch_size,
      'randomized': randomized,
      'precision': precision,
      'budget': dataclasses.asdict(budget),
    }
    journal = Journal(state_dir, problem)
    reporter = Reporter(progress, budget, names, classes, batch_size)
    flags = {'clean': robust.copy()}
    for name in names:
      attack_rng = jax.random.fold_in(rng, checks.NAMES.index(name))
      _run_attack(
        task,
        name,
        run(name, budget),
        robust,
        budget,
        attack_rng,
        journal,
        reporter,
      )
      flags[name] = robust.copy()
  warnings += checks.warn_square(flags)
  warnings += _describe_zero_gradients(task.zero_gradients)
  found = {'robust': robust, 'images_adv': task.images_adv, **flags}
  journal.save('result', found)
  return AutoAttackResult(robust, task.images_adv, flags, task.secs, warnings)
