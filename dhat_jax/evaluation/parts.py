"""The evaluation of one network, attack by attack; each is made once."""

import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from dhat_jax.datasets.base import Split
from dhat_jax.evaluation import aggregator_analysis
from dhat_jax.evaluation import ensemble as ensembles
from dhat_jax.evaluation.ensemble import Ensemble
from dhat_jax.evaluation.evaluator import Attack, Evaluator, output_names
from dhat_jax.evaluation.store import Part, Store, digest
from dhat_jax.runtime import devices, files, provenance


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Returns each example's loss: [N, K], [N] -> float64 [N]."""
  logits = logits.astype(np.float64)
  logits = logits - logits.max(axis=1, keepdims=True)
  normaliser = np.log(np.exp(logits).sum(axis=1))
  return normaliser - logits[np.arange(len(labels)), labels]


def other_class(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Returns the likeliest class but the label: [N, K], [N] -> int [N]."""
  logits = logits.copy()
  logits[np.arange(len(labels)), labels] = -np.inf
  return logits.argmax(axis=1)


# How many attacked images each part keeps, for people to look at.
EXAMPLES = 10


def example_places(count: int) -> list[int]:
  """Returns evenly spaced places: a split may be sorted by class."""
  places = np.linspace(0, count - 1, min(EXAMPLES, count))
  return [int(place) for place in places.round()]


def _part(robust, logits, output, labels) -> Part:
  """What is kept of an attack.

  The predictions of the attacked output agree with `robust` by construction,
  and not only up to rounding between two compiled functions.
  """
  predictions = {
    f'{name}_predictions': rows.argmax(axis=1).astype(np.int32)
    for name, rows in logits.items()
  }
  wrong = other_class(logits[output], labels)
  return {
    'robust': robust,
    'losses': cross_entropy(logits[output], labels),
    **predictions,
    f'{output}_predictions': np.where(robust, labels, wrong).astype(np.int32),
  }


class Parts:
  """Attacks one network on one split, and remembers what it found.

  Attributes:
    evaluator: of the network.
    split: uint8 images.
    variables: replicated.
    store: of the finished parts.
  """

  def __init__(
    self,
    evaluator: Evaluator,
    variables: Any,
    split: Split,
    *,
    seed: int,
    directory: str | None = None,
    export: Sequence[str] = (),
    bar: Any = None,
  ):
    """Creates it; nothing is attacked yet.

    Args:
      evaluator: of the network.
      variables: of the network, on the host.
      split: the images; all of them count.
      seed: of all noise.
      directory: the folder of the evaluation, or None to keep nothing.
      export: the attacks whose images are written, below the folder.
      bar: a progress bar that counts batches, or None.
    """
    self.evaluator = evaluator
    self.split = split
    self.variables = devices.replicate(variables)
    self._host_variables = variables
    self._rng = jax.random.key(seed)
    self._export = () if directory is None else tuple(export)
    self._bar = bar
    self._counted = set()
    self.store = Store(
      directory,
      digest(
        {
          'variables': variables,
          'images': split.images,
          'labels': split.labels,
          'net': repr(evaluator.net),
          'norm': evaluator.norm,
          'batch_size': evaluator.batch_size,
          'seed': seed,
          'versions': provenance.versions(),
        }
      ),
    )

  @property
  def outputs(self) -> tuple[str, ...]:
    """The outputs of the network, with the heads' mean."""
    return output_names(self.evaluator.net)

  def get(self, network: str, attack: Attack | Ensemble) -> Part:
    """Returns what an attack found on an output (or an added network).

    Returns:
      `robust` bool [n], `losses` [n] of the attacked output,
      `<output>_predictions` int [n] for each output on the attacked images,
      `examples` float16 [E, H, W, C], the attacked images at `example_places`
      (gradient attacks only), and for ensembles `flags/<attack>` bool [n] and
      `warnings`. Ensembles may see only the first n images.
    """
    if isinstance(attack, Ensemble):
      return self._ensemble(network, attack)
    return self._attack(network, attack)

  def influence(self) -> dict[str, np.ndarray]:
    """Returns what `influence` of the analysis finds, on the clean images."""

    def make():
      images = np.asarray(self.split.images, np.float32) / 255
      split = Split(images, self.split.labels)
      logits = self.evaluator.logits(self.variables, split)
      return aggregator_analysis.influence(
        self.evaluator.net, self._host_variables, logits
      )

    return self.store.get(
      'influence', {'images': aggregator_analysis.IMAGES}, make
    )

  def _images_path(self, network, name) -> str | None:
    if name not in self._export:
      return None
    folder = os.path.join(self.store.directory, 'images', network)
    return os.path.join(folder, f'{name}.npz')

  def _write_images(self, path, images_adv, labels, robust) -> None:
    if path and devices.is_first():
      arrays = {'images_adv': images_adv, 'labels': labels, 'robust': robust}
      files.write_npz(path, arrays)

  def _attack(self, network: str, attack: Attack) -> Part:
    path = self._images_path(network, attack.name)
    seen = 0

    def count():
      nonlocal seen
      seen += 1
      self._advance(1)

    def make():
      found = self.evaluator.find(
        self.variables,
        self.split,
        network,
        attack,
        self._rng,
        keep_images=path is not None,
        examples=example_places(len(self.split.labels)),
        on_batch=count,
      )
      labels = self.split.labels
      self._write_images(path, found.images_adv, labels, found.robust)
      output = self.evaluator.scored_output(network)
      part = _part(found.robust, found.logits, output, labels)
      return part | {'examples': found.examples.astype(np.float16)}

    settings = {'settings': attack.settings, 'stream': attack.stream}
    part = self.store.get(
      f'{network}/{attack.name}',
      settings,
      make,
      again=path is not None and not os.path.exists(path),
    )
    if (network, attack) not in self._counted:  # else it is counted already
      self._counted.add((network, attack))
      self._advance(self.evaluator.num_batches(self.split) - seen)
    return part

  def _ensemble(self, output: str, ensemble: Ensemble) -> Part:
    path = self._images_path(output, ensemble.name)
    name = f'{output}/{ensemble.name}'

    def make():
      split = ensemble.first_images(self.split)
      result = ensembles.run(
        ensemble,
        self.evaluator.net,
        output,
        self._host_variables,
        split,
        norm=self.evaluator.norm,
        batch_size=self.evaluator.batch_size,
        rng=self._rng,
        directory=self.store.folder(name, ensemble.problem),
        progress=self._show(output),
      )
      images_adv, labels = result.images_adv, split.labels
      self._write_images(path, images_adv, labels, result.robust)
      logits = self.evaluator.logits(self.variables, Split(images_adv, labels))
      return {
        **_part(result.robust, logits, output, labels),
        **{f'flags/{key}': flags for key, flags in result.flags.items()},
        'warnings': np.array(result.warnings, dtype=np.str_),
      }

    return self.store.get(
      name,
      ensemble.problem,
      make,
      again=path is not None and not os.path.exists(path),
    )

  def _advance(self, batches: int) -> None:
    if self._bar is not None:
      self._bar.update(batches)

  def _show(self, output: str):
    if self._bar is None:
      return False
    return lambda state: self._bar.set_postfix_str(f'{output} {state}')
