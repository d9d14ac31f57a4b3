"""The outcome of an attack, image by image, stored on disk."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from dhat_jax.attacks import randomized
from dhat_jax.runtime import devices

Arrays = dict[str, np.ndarray]

# How many attacked images each record has, for people to look at.
EXAMPLES = 10
# The class predicted of logits that are not finite: none.
NO_CLASS = -1
_PREDICTIONS = '_predictions'
_FLAGS = 'flags/'
_PER_IMAGE = 'table/'
_CORRECT = 'correct/'
# Of the arrays on disk; a record of another version is computed again.
SCHEMA_VERSION = 2


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Returns each example's loss: [N, K], [N] -> float64 [N]."""
  logits = logits.astype(np.float64)
  with np.errstate(invalid='ignore'):  # NaN in, NaN out
    logits = logits - logits.max(axis=1, keepdims=True)
    normaliser = np.log(np.exp(logits).sum(axis=1))
    return normaliser - logits[np.arange(len(labels)), labels]


def predicted(logits: np.ndarray) -> np.ndarray:
  """Returns each example's class, `NO_CLASS` if a logit is not finite.

  Args:
    logits: [..., K].

  Returns:
    int32 [...].
  """
  finite = np.isfinite(logits).all(axis=-1)
  return np.where(finite, logits.argmax(axis=-1), NO_CLASS).astype(np.int32)


def mean_cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Returns the mean loss of m evaluations: [N, m, K], [N] -> float64 [N]."""
  samples = logits.shape[1]
  losses = cross_entropy(
    logits.reshape(-1, logits.shape[2]), np.repeat(labels, samples)
  )
  return losses.reshape(-1, samples).mean(axis=1)


def example_places(count: int) -> list[int]:
  """Returns evenly spaced places, since a split may be sorted by class."""
  places = np.linspace(0, count - 1, min(EXAMPLES, count))
  return [int(place) for place in places.round()]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Record:
  """The outcome of an attack on n images, from `of` or `from_arrays`.

  Attributes:
    output: the scored one.
    robust: bool [n]: the scored output predicts the label, and a randomised
      network does so in most of its evaluations.
    losses: float64 [n], its cross entropy.
    predictions: {output: int32 [n]} on the attacked images, of all outputs.
    examples: float16 [E, H, W, C], the attacked images at `example_places`, or
      None.
    flags: {attack: bool [n]}: robust to the attacks of an ensemble up to this
      one, in the order in which they ran.
    per_image: {name: [n]}: what an ensemble says of each image, see
      `AutoAttackResult`; empty in records of earlier versions.
    pictures: float16 [A, 2, H, W, C], for each of its attacks the first image
      that it broke, before and after, or None.
    picture_places: int32 [A], which images these are, or None.
    differences: from the standard of its attack, a sentence each.
    correct: {output: bool [n, m]}: whether each evaluation of a randomised
      network was correct; {} for others.
    warnings: reasons to doubt it.
    images_adv: float [n, H, W, C] if they were requested; not stored.
  """

  output: str
  robust: np.ndarray
  losses: np.ndarray
  predictions: Mapping[str, np.ndarray]
  examples: np.ndarray | None = None
  flags: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  per_image: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  pictures: np.ndarray | None = None
  picture_places: np.ndarray | None = None
  differences: tuple[str, ...] = ()
  correct: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  warnings: tuple[str, ...] = ()
  images_adv: np.ndarray | None = None

  @classmethod
  def of(
    cls,
    logits: Mapping[str, np.ndarray],
    labels: np.ndarray,
    output: str,
    *,
    predictions: np.ndarray | None = None,
    correct: np.ndarray | None = None,
    **more: Any,
  ) -> 'Record':
    """Returns the record of attacked images.

    Args:
      logits: {output: [n, m, K]} of m evaluations of the attacked images, or
        [n, K] of one.
      labels: int [n].
      output: the scored one.
      predictions: int [n] of the scored output, if the attack computed them;
        default: those of `logits`.
      correct: bool [n, m], likewise.
      **more: other attributes.

    Raises:
      ValueError: it disagrees with itself.
    """
    logits = {
      name: rows[:, None] if rows.ndim == 2 else rows
      for name, rows in logits.items()
    }
    samples = {name: predicted(rows) for name, rows in logits.items()}
    classes = {
      name: randomized.vote(rows, labels) for name, rows in samples.items()
    }
    right = {
      name: rows == labels[:, None]
      for name, rows in samples.items()
      if rows.shape[1] > 1
    }
    if predictions is not None:
      classes[output] = np.asarray(predictions, np.int32)
    if correct is not None:
      right[output] = correct
    record = cls(
      output=output,
      robust=classes[output] == labels,
      losses=mean_cross_entropy(logits[output], labels),
      predictions=classes,
      correct=right,
      **more,
    )
    record.check(labels)
    return record

  def check(self, labels: np.ndarray) -> None:
    """Raises ValueError if the record contradicts itself.

    Args:
      labels: int [n].
    """
    sizes = {len(a) for a in (self.robust, self.losses, *self._per_image())}
    if sizes != {len(labels)}:
      raise ValueError(
        f'record: got {sorted(sizes)} images, expected {len(labels)} everywhere'
      )
    said = {'predictions': self.predictions[self.output] == labels}
    if self.output in self.correct:
      said['evaluations'] = 2 * self.correct[self.output].mean(axis=1) > 1
    if self.flags:
      name, flags = list(self.flags.items())[-1]
      said[f'flags of {name!r}'] = flags
    if self.per_image:
      said['`broken_by`'] = self.per_image['broken_by'] == ''
    for what, flags in said.items():
      wrong = int((flags != self.robust).sum())
      if wrong:
        raise ValueError(
          f'record: the {what} and `robust` disagree on {wrong} of '
          f'{len(labels)} images; expected the same'
        )

  def _per_image(self) -> list[np.ndarray]:
    groups = (self.predictions, self.flags, self.per_image, self.correct)
    return [values for group in groups for values in group.values()]

  def scored(self, output: str, labels: np.ndarray) -> np.ndarray:
    """Returns where another output is correct on these images: transfer.

    Args:
      output: of the evaluated network.
      labels: int [N], the first n of which belong to the record.

    Returns:
      bool [n].
    """
    predictions = self.predictions[output]
    return predictions == labels[: len(predictions)]

  def arrays(self) -> Arrays:
    """Returns the arrays to store; see docs/results_schema.md."""
    arrays = {
      'schema_version': np.array(SCHEMA_VERSION),
      'robust': self.robust,
      'losses': self.losses,
    }
    for name, values in self.predictions.items():
      arrays[f'{name}{_PREDICTIONS}'] = values
    for name, values in self.flags.items():
      arrays[f'{_FLAGS}{name}'] = values
    for name, values in self.per_image.items():
      arrays[f'{_PER_IMAGE}{name}'] = values
    for name, values in self.correct.items():
      arrays[f'{_CORRECT}{name}'] = values
    for name in ('examples', 'pictures', 'picture_places'):
      if getattr(self, name) is not None:
        arrays[name] = getattr(self, name)
    if self.differences:
      arrays['differences'] = np.array(self.differences, dtype=np.str_)
    if self.flags or self.warnings:
      arrays['warnings'] = np.array(self.warnings, dtype=np.str_)
    return arrays

  @classmethod
  def from_arrays(
    cls, arrays: Arrays, labels: np.ndarray, output: str
  ) -> 'Record':
    """Inverts `arrays`.

    Args:
      arrays: of the file.
      labels: int [N], the first n of which belong to the record.
      output: the scored one.

    Raises:
      ValueError: it contradicts itself, or has another version.
    """
    version = int(arrays.get('schema_version', 1))
    if version != SCHEMA_VERSION:
      raise ValueError(
        f'record: got schema_version {version}, expected {SCHEMA_VERSION}'
      )
    record = cls(
      output=output,
      robust=arrays['robust'],
      losses=arrays['losses'],
      predictions={
        key.removesuffix(_PREDICTIONS): values
        for key, values in arrays.items()
        if key.endswith(_PREDICTIONS) and '/' not in key
      },
      flags=_below(_FLAGS, arrays),
      per_image=_below(_PER_IMAGE, arrays),
      correct=_below(_CORRECT, arrays),
      examples=arrays.get('examples'),
      pictures=arrays.get('pictures'),
      picture_places=arrays.get('picture_places'),
      **{
        key: tuple(np.asarray(arrays.get(key, ())).tolist())
        for key in ('differences', 'warnings')
      },
    )
    record.check(labels[: len(record.robust)])
    return record


def _below(prefix: str, arrays: Arrays) -> Arrays:
  """Returns the arrays whose names have a prefix, without it."""
  return {
    key.removeprefix(prefix): values
    for key, values in arrays.items()
    if key.startswith(prefix)
  }


@dataclasses.dataclass(frozen=True)
class Workspace:
  """The resources of an attack, beside its target and images.

  Attributes:
    keep_images: whether the record needs all attacked images.
    make_folder: returns a folder in which a killed attack can resume, or None.
      The call creates it.
    show: shows a line of progress.
  """

  keep_images: bool = False
  make_folder: Callable[[], str | None] = lambda: None
  show: Callable[[str], Any] | None = None


NO_WORKSPACE = Workspace()


class Images:
  """Collects the requested attacked images, batch by batch."""

  def __init__(self, places: list[int], *, whole: bool):
    """Starts empty.

    Args:
      places: of the examples.
      whole: whether all images are requested.
    """
    self._places = places
    self._whole = [] if whole else None
    self._examples = []
    self.seen = 0

  def add(self, images_adv: jax.Array, size: int) -> None:
    """Takes a batch [D, B / D, ...] of B images."""
    here = [p - self.seen for p in self._places if 0 <= p - self.seen < size]
    self.seen += size
    if self._whole is None and not here:
      return  # stays on the devices
    images_adv = devices.unshard(images_adv)
    self._examples.extend(images_adv[here])
    if self._whole is not None:
      self._whole.append(images_adv)

  def examples(self, shape: tuple[int, ...]) -> np.ndarray:
    """Returns float16 [E, *shape]."""
    return np.array(self._examples, np.float16).reshape(-1, *shape)

  def joined(self, count: int) -> np.ndarray | None:
    """Returns float [count, ...], or None if not all were requested."""
    return None if self._whole is None else np.concatenate(self._whole)[:count]
