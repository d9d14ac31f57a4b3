"""The interface of an evaluation attack, and its two kinds."""

import abc
import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import numpy as np

from dhat_jax.attacks import arguments
from dhat_jax.attacks.autoattack import checks, targets
from dhat_jax.attacks.autoattack.budget import STANDARD
from dhat_jax.datasets.base import Split
from dhat_jax.evaluation import broken
from dhat_jax.evaluation.evaluator import Target, joined
from dhat_jax.evaluation.records import (
  NO_WORKSPACE,
  Images,
  Record,
  Workspace,
  example_places,
)
from dhat_jax.runtime import devices, streams

# An attack whose own verdict differs from the predictions on its images by
# more than rounding does not return the images that it judged.
_DISAGREEMENT = (0.05, 5)  # share of the images, least number


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationAttack(abc.ABC):
  """An attack on a target, image by image.

  Attributes:
    title: its name in the config.
    outputs: the outputs that it attacks; () for all.
    made_of: what else its record depends on, beside `identity`.
    expensive: whether it runs after the others.
  """

  title: str = ''
  outputs: tuple[str, ...] = ()
  made_of: Any = None
  expensive: bool = False

  @property
  def name(self) -> str:
    """The name in the results."""
    return self.title

  def num_images(self, total: int) -> int:
    """Returns how many images of a split it sees, the first ones."""
    return total

  def check(self, num_classes: int) -> None:
    """Raises ValueError if it cannot attack networks with this many classes."""
    del num_classes

  def identity(self) -> Any:
    """Returns what its record depends on beside target and data: a tree."""
    return self.made_of

  def details(self, record: Record) -> dict[str, Any] | None:
    """Returns what results.json reports beside its accuracy, or None."""
    del record

  @abc.abstractmethod
  def run(
    self,
    target: Target,
    split: Split,
    rng: chex.PRNGKey,
    workspace: Workspace = NO_WORKSPACE,
  ) -> Record:
    """Attacks a target.

    Args:
      target: what is attacked and scored.
      split: uint8 images; all of them count.
      rng: typed key of the evaluation, the same for all attacks.
      workspace: its resources.
    """

  def robust(
    self, target: Target, split: Split, rng: chex.PRNGKey
  ) -> np.ndarray:
    """Returns which images resist: bool [n]. Arguments as in `run`."""
    return self.run(target, split, rng).robust

  def robust_and_images(
    self, target: Target, split: Split, rng: chex.PRNGKey
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns what `robust` does, and the images: float [n, H, W, C]."""
    record = self.run(target, split, rng, Workspace(keep_images=True))
    return record.robust, record.images_adv

  def images_adv(
    self, target: Target, split: Split, rng: chex.PRNGKey
  ) -> np.ndarray:
    """Returns the attacked images: float [n, H, W, C]."""
    return self.robust_and_images(target, split, rng)[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitsAttack(EvaluationAttack):
  """A batch function on logits, over a whole split.

  Attributes:
    function: (logits_fn, images float [B, H, W, C], labels int [B], rngs [B],
      settings) -> (robust bool [B], images_adv); compiled once for each target.
    settings: a tree of numbers, traced; other values compile nothing.
    stream: attacks of one stream draw the same noise; default: the name.
  """

  function: Callable
  settings: Any = None
  stream: str = ''

  def identity(self) -> Any:
    """Returns settings and stream too."""
    return {
      'made_of': self.made_of,
      'settings': self.settings,
      'stream': self.stream,
    }

  def batches(
    self, target: Target, split: Split, rng: chex.PRNGKey
  ) -> Iterator[tuple[np.ndarray, jax.Array]]:
    """Yields (robust [B], images_adv [D, B / D, ...]) of padded batches."""
    rng = streams.fold_in(rng, self.stream or self.name)
    return target.attacked(self.function, self.settings, split, rng)

  def robust(
    self, target: Target, split: Split, rng: chex.PRNGKey
  ) -> np.ndarray:
    """Returns the attack's own result; no other output is predicted.

    The images of a randomised network are judged, as in `run`.
    """
    if target.evaluator.samples > 1:
      return self.run(target, split, rng).robust
    flags = [robust for robust, _ in self.batches(target, split, rng)]
    return np.concatenate(flags)[: len(split.labels)]

  def robust_and_images(
    self, target: Target, split: Split, rng: chex.PRNGKey
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns what `robust` does, and the images, in one attack."""
    if target.evaluator.samples > 1:
      return super().robust_and_images(target, split, rng)
    batches = self.batches(target, split, rng)
    rows = [{'robust': r, 'images': devices.unshard(x)} for r, x in batches]
    return tuple(joined(rows, len(split.labels)).values())

  def run(
    self,
    target: Target,
    split: Split,
    rng: chex.PRNGKey,
    workspace: Workspace = NO_WORKSPACE,
  ) -> Record:
    """Attacks a target; the predictions on the attacked images decide."""
    count = len(split.labels)
    images = Images(example_places(count), whole=workspace.keep_images)
    judge_rng = streams.fold_in(rng, f'judge/{self.stream or self.name}')
    rows, flags = [], []
    for robust, images_adv in self.batches(target, split, rng):
      rows.append(target.judge(images_adv, judge_rng, images.seen))
      flags.append(robust)
      images.add(images_adv, len(robust))
      if workspace.show:
        workspace.show(f'{min(images.seen, count)}/{count}')
    logits = joined(rows, count)
    record = Record.of(
      logits,
      split.labels,
      target.scored,
      warnings=_warn_not_finite(logits[target.scored]),
      examples=images.examples(split.images.shape[1:]),
      images_adv=images.joined(count),
    )
    if target.evaluator.samples == 1:
      self._check(np.concatenate(flags)[:count], record)
    for line in record.warnings:
      logging.warning('%s/%s: %s', target.name, self.name, line)
    return record

  def _check(self, robust: np.ndarray, record: Record) -> None:
    wrong = int((robust != record.robust).sum())
    share, least = _DISAGREEMENT
    if wrong > max(share * len(robust), least):
      raise ValueError(
        f'{self.name}: got images whose predictions contradict its `robust` on '
        f'{wrong} of {len(robust)} images; expected the images that it judged'
      )


def _warn_not_finite(logits: np.ndarray) -> tuple[str, ...]:
  """Warns of logits [N, m, K] with NaN or infinity, which count as wrong."""
  wrong = int((~np.isfinite(logits).all(axis=(1, 2))).sum())
  line = f'logits not finite on {wrong} of {len(logits)} images: taken as wrong'
  return (line,) if wrong else ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnsembleAttack(EvaluationAttack):
  """AutoAttack with its budget, or one of its attacks; in float32.

  Attributes:
    function: `dhat_jax.autoattack`.
    epsilon: radius in units of [0, 1].
    norm: 'linf' or 'l2'.
    version: 'standard', 'plus', ..., or 'custom'.
    attacks: names, for 'custom'.
    n_iter: iterations of APGD and FAB.
    n_queries: of Square.
    n_targets: target classes of the targeted attacks.
    target_order: 'logits' or 'malt', of APGD-T.
    screening: dtype of the network that the attacks see; 'none': float32.
    first: number of images to attack, the first ones; 0 for all.
  """

  function: Callable
  epsilon: float
  norm: str
  version: str = 'standard'
  attacks: tuple[str, ...] = ()
  n_iter: int = STANDARD['n_iter']
  n_queries: int = STANDARD['n_queries']
  n_targets: int = STANDARD['n_targets']
  target_order: str = STANDARD['target_order']
  screening: str = STANDARD['screening']
  first: int = 0
  expensive: bool = True

  @property
  def budget(self) -> dict[str, Any]:
    """Differences from the reference's standard budget."""
    labels = {'n_queries': 'queries', 'n_targets': 'targets'}
    different = {
      labels.get(key, key): getattr(self, key)
      for key, standard in STANDARD.items()
      if getattr(self, key) != standard
    }
    if self.version not in ('standard', 'custom'):
      different['version'] = self.version
    if self.first:
      different['images'] = self.first
    return different

  @property
  def name(self) -> str:
    """The name in the results; a budget that is not standard is part of it."""
    items = ','.join(f'{key}={value}' for key, value in self.budget.items())
    return f'{self.title}({items})' if items else self.title

  def num_images(self, total: int) -> int:
    """Returns the smaller of `first` and all."""
    return min(self.first or total, total)

  def check(self, num_classes: int) -> None:
    """Raises ValueError for a radius of 0; any number of classes will do."""
    del num_classes
    arguments.length('epsilon', self.epsilon, self.norm, zero=False)
    names = self.attacks or checks.VERSIONS[self.version]
    targets.check_order(self.target_order, names)

  def identity(self) -> dict[str, Any]:
    """Returns the fields, except the attacked outputs."""
    fields = dataclasses.asdict(self)
    for key in ('target_order', 'screening'):
      if fields[key] == STANDARD[key]:
        del fields[key]  # records of before it
    return {**fields, 'function': None, 'outputs': None, 'made_of': None}

  def details(self, record: Record) -> dict[str, Any]:
    """Returns accuracies after each attack, what differs, and warnings."""
    correct = record.correct.get(record.output)
    samples = {} if correct is None else {'samples': correct.shape[1]}
    return {
      'images': len(record.robust),
      'epsilon': self.epsilon,
      'not_standard': {**self.budget, **samples},
      'differences': list(record.differences),
      'accuracy_after': {
        name: float(flags.mean()) for name, flags in record.flags.items()
      },
      'broken_by': broken.counts(record),
      'warnings': list(record.warnings),
    }

  def run(
    self,
    target: Target,
    split: Split,
    rng: chex.PRNGKey,
    workspace: Workspace = NO_WORKSPACE,
  ) -> Record:
    """Attacks a target; AutoAttack's own predictions decide."""
    count = self.num_images(len(split.labels))
    images = np.asarray(split.images[:count], np.float32) / 255
    labels = split.labels[:count]
    padded = -(-count // jax.device_count()) * jax.device_count()
    result = self.function(
      target.logits_fn(),
      images,
      labels,
      epsilon=self.epsilon,
      norm=self.norm,
      version=self.version,
      attacks=self.attacks or None,
      rng=rng,
      batch_size=min(target.evaluator.batch_size, padded),
      n_iter=self.n_iter,
      n_queries=self.n_queries,
      n_targets=self.n_targets,
      target_order=self.target_order,
      screening_fn=None
      if self.screening == 'none'
      else target.logits_fn(self.screening),
      n_restarts=1 if self.version == 'custom' else None,
      state_dir=workspace.make_folder(),
      map_fn=devices.pmap_hoisted,
      progress=workspace.show or False,
      **self._noise(target.evaluator.samples),
    )
    shown = Split(result.images_adv, labels)
    judge_rng = streams.fold_in(rng, f'judge/{target.name}/{self.name}')
    return Record.of(
      target.evaluator.logits(target.variables, shown, judge_rng),
      labels,
      target.scored,
      predictions=result.predictions,
      correct=result.correct if target.evaluator.samples > 1 else None,
      flags=result.flags,
      **broken.stored(result, images),
      differences=tuple(result.differences),
      warnings=tuple(result.warnings),
      images_adv=result.images_adv if workspace.keep_images else None,
    )

  def _noise(self, samples: int) -> dict[str, Any]:
    """Returns what AutoAttack must know of a randomised network."""
    if samples == 1:
      return {}
    return {'randomized': True, 'samples': samples, 'eot_iter': samples}
