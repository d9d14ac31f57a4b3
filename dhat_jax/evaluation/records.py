"""The outcome of an attack, image by image, stored on disk."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]

# How many attacked images each record has, for people to look at.
EXAMPLES = 10
# The class predicted of logits that are not finite: none.
NO_CLASS = -1
_PREDICTIONS = '_predictions'
_FLAGS = 'flags/'
_PER_IMAGE = 'table/'
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
    logits: [N, K].

  Returns:
    int32 [N].
  """
  finite = np.isfinite(logits).all(axis=1)
  return np.where(finite, logits.argmax(axis=1), NO_CLASS).astype(np.int32)


def example_places(count: int) -> list[int]:
  """Returns evenly spaced places, since a split may be sorted by class."""
  places = np.linspace(0, count - 1, min(EXAMPLES, count))
  return [int(place) for place in places.round()]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Record:
  """The outcome of an attack on n images, from `of` or `from_arrays`.

  Attributes:
    output: the scored one.
    robust: bool [n]: the scored output predicts the label.
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
    **more: Any,
  ) -> 'Record':
    """Returns the record of attacked images.

    Args:
      logits: {output: [n, K]} on the attacked images.
      labels: int [n].
      output: the scored one.
      predictions: int [n] of the scored output, if the attack computed them;
        default: those of `logits`.
      **more: other attributes.

    Raises:
      ValueError: it disagrees with itself.
    """
    classes = {name: predicted(rows) for name, rows in logits.items()}
    if predictions is not None:
      classes[output] = np.asarray(predictions, np.int32)
    record = cls(
      output=output,
      robust=classes[output] == labels,
      losses=cross_entropy(logits[output], labels),
      predictions=classes,
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
    return [
      *self.predictions.values(),
      *self.flags.values(),
      *self.per_image.values(),
    ]

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
