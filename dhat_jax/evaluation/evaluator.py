"""Accuracy of every output under every attack, over a whole split."""

import dataclasses
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from dhat_jax.attacks import pgd
from dhat_jax.datasets import batches as input_pipeline
from dhat_jax.datasets.base import Split
from dhat_jax.runtime import devices
from dhat_jax.training import metrics
from dhat_jax.training.step import make_eval_step


@dataclasses.dataclass(frozen=True)
class Attack:
  """A gradient attack of the evaluation, by name.

  Attributes:
    name: as in the results: 'clean', 'fgsm', 'pgd_40', 'cw_40', ...
    settings: what may change without compiling again.
    stream: attacks of one stream start from the same points; default: those
      of one name.
  """

  name: str
  settings: pgd.Settings
  stream: str = ''


class Found(NamedTuple):
  """What an attack found on N images.

  Attributes:
    robust: bool [N], classified correctly by the attacked output.
    logits: of the attacked images, of each output, float [N, K].
    images_adv: float [N, H, W, C], or None if not asked for.
    examples: float [E, H, W, C], the attacked images at some places.
  """

  robust: np.ndarray
  logits: dict[str, np.ndarray]
  images_adv: np.ndarray | None
  examples: np.ndarray


def output_names(net: nn.Module) -> tuple[str, ...]:
  """Returns the outputs to evaluate; two heads have their mean as well."""
  if len(net.outputs) == 1:
    return net.outputs
  return ('main', 'second', 'mean', *net.outputs[2:])


def smallest(net: nn.Module, output: str) -> nn.Module:
  """Returns the network without the parts that an output does not need.

  So the validation of a stage and the final evaluation share what is compiled.
  """
  count = {'main': 1, 'second': 2, 'mean': 2, 'aggregated': 3}[output]
  return net.clone(outputs=net.outputs[:count])


def parts_of(variables: Any, parts: Sequence[str]) -> dict[str, dict]:
  """Returns the variables of some parts of the network."""
  return {
    group: {part: tree for part, tree in subtrees.items() if part in parts}
    for group, subtrees in variables.items()
  }


class Evaluator:
  """Evaluates one network; each output compiles once, for all attacks.

  The last batch is padded and masked, so that every image counts exactly once
  and nothing compiles again for it.

  Attributes:
    net: the network.
    norm: 'linf' or 'l2', of all attacks.
    batch_size: global, a multiple of the devices.
  """

  def __init__(self, net: nn.Module, *, norm: str, batch_size: int):
    """Creates the evaluator.

    Args:
      net: the network.
      norm: 'linf' or 'l2', of all attacks.
      batch_size: global; rounded up to a multiple of the devices.
    """
    self.net = net
    self.norm = norm
    count = jax.device_count()
    self.batch_size = -(-batch_size // count) * count
    self._networks = {
      output: (smallest(net, output), output) for output in output_names(net)
    }
    self._steps = {}
    self._logits = None

  def add_network(self, name: str, net: Any, output: str) -> None:
    """Adds a network to attack beside the outputs.

    Args:
      name: under which it is attacked.
      net: has `parts` and `apply(variables, images) -> Outputs`.
      output: of that network, which is attacked.
    """
    self._networks.setdefault(name, (net, output))

  def scored_output(self, network: str) -> str:
    """Returns the output that attacks on a network are about."""
    return self._networks[network][1]

  def _step(self, network: str):
    if network not in self._steps:
      net, output = self._networks[network]
      step = make_eval_step(
        net=net,
        output=output,
        attack=pgd.make_evaluation_attack(objective=None, norm=self.norm),
        axis_name=devices.AXIS,
        returns_images=True,
      )
      self._steps[network] = devices.pmap_eval_step(
        step, in_axes=(0, 0, None, None, None)
      )
    return self._steps[network]

  def _under_attack(
    self, variables, split, network, attack, rng
  ) -> Iterator[tuple[np.ndarray, jax.Array]]:
    """Yields each batch's (robust [B], images_adv [D, B / D, ...])."""
    step = self._step(network)
    variables = parts_of(variables, self._networks[network][0].parts)
    stream = (attack.stream or attack.name).encode()
    rng = jax.random.fold_in(rng, zlib.crc32(stream))
    for number, batch in enumerate(self.batches(split)):
      robust, images_adv = step(
        variables,
        devices.shard(batch),
        rng,
        number * self.batch_size,
        attack.settings,
      )
      yield devices.first_copy(robust), images_adv

  def robust(
    self,
    variables: Any,
    split: Split,
    output: str,
    attack: Attack,
    rng: jax.Array,
    on_batch: Callable[[], Any] = lambda: None,
  ) -> np.ndarray:
    """Returns which images an output classifies correctly under attack.

    Args:
      variables: replicated.
      split: the images.
      output: which output is attacked and scored.
      attack: the attack.
      rng: typed key; the noise of an image depends on it, the attack's stream
        and the image's place in the split alone.
      on_batch: called after each batch, for progress.

    Returns:
      bool [N].
    """
    flags = []
    for robust, _ in self._under_attack(variables, split, output, attack, rng):
      flags.append(robust)
      on_batch()
    return np.concatenate(flags)[: len(split.labels)]

  def find(
    self,
    variables: Any,
    split: Split,
    network: str,
    attack: Attack,
    rng: jax.Array,
    *,
    keep_images: bool = False,
    examples: Sequence[int] = (),
    on_batch: Callable[[], Any] = lambda: None,
  ) -> Found:
    """Attacks one output and shows the images to all of them.

    Args and noise as in `robust`; `network` is an output or the name of an
    added network; `examples` are places of images to return, in order.
    """
    count = len(split.labels)
    flags, rows, kept = [], [], []
    shown = [np.zeros((0, *split.images.shape[1:]), np.float32)]
    for number, (robust, images_adv) in enumerate(
      self._under_attack(variables, split, network, attack, rng)
    ):
      flags.append(robust)
      rows.append(self._predict(variables, images_adv))
      first = number * self.batch_size
      here = [n - first for n in examples if 0 <= n - first < self.batch_size]
      if keep_images or here:
        images_adv = devices.unshard(images_adv)
        shown.append(images_adv[here])
      if keep_images:
        kept.append(images_adv)
      on_batch()
    return Found(
      np.concatenate(flags)[:count],
      {
        output: np.concatenate([row[output] for row in rows])[:count]
        for output in rows[0]
      },
      np.concatenate(kept)[:count] if kept else None,
      np.concatenate(shown),
    )

  def pictures(
    self,
    variables: Any,
    split: Split,
    output: str,
    attack: Attack,
    rng: jax.Array,
    count: int,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first images of a split, clean and attacked.

    Args as in `robust`; `count` is at most the batch size.

    Returns:
      Two times float [n, H, W, C] in [0, 1], n the smaller of `count` and N.
    """
    count = min(count, len(split.labels))
    batches = self._under_attack(variables, split, output, attack, rng)
    _, images_adv = next(batches)
    clean = np.asarray(split.images[:count], np.float32) / 255
    return clean, devices.unshard(images_adv)[:count]

  def _predict(self, variables, images: jax.Array) -> dict[str, np.ndarray]:
    """Returns the logits [B, K] of all outputs for images [D, B / D, ...]."""
    if self._logits is None:

      def logits(variables, images):
        outputs = self.net.apply(variables, images)
        return {
          name: devices.all_gather(outputs.select(name), devices.AXIS)
          for name in output_names(self.net)
        }

      self._logits = devices.pmap_eval_step(logits, in_axes=(0, 0))
    found = self._logits(parts_of(variables, self.net.parts), images)
    return {
      name: devices.first_copy(found[name]) for name in output_names(self.net)
    }

  def logits(self, variables: Any, split: Split) -> dict[str, np.ndarray]:
    """Returns the logits of each output, float [N, K].

    Args:
      variables: replicated.
      split: the images, float in [0, 1].
    """
    rows = [
      self._predict(variables, devices.shard(batch['images']))
      for batch in self.batches(split)
    ]
    return {
      output: np.concatenate([row[output] for row in rows])[: len(split.labels)]
      for output in rows[0]
    }

  def batches(self, split: Split):
    """Iterates over this process's shares of the padded batches."""
    return input_pipeline.eval_batches(
      split,
      batch_size=self.batch_size,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )

  def num_batches(self, split: Split) -> int:
    """Returns how many batches a split makes."""
    return -(-len(split.labels) // self.batch_size)

  def accuracies(
    self,
    variables: Any,
    split: Split,
    attacks: Sequence[Attack],
    rng: jax.Array,
    *,
    outputs: Sequence[str] | None = None,
    progress: str | None = None,
  ) -> dict[str, dict[str, float]]:
    """Returns {output: {attack: accuracy in [0, 1]}}.

    Args:
      variables: replicated.
      split: the images; all of them count.
      attacks: the attacks, each made against the output that it scores.
      rng: typed key.
      outputs: default: all that the network has, and the heads' mean.
      progress: title of a progress bar, or None for none.
    """
    outputs = outputs or output_names(self.net)
    total = len(outputs) * len(attacks) * self.num_batches(split)
    with metrics.progress_bar(
      progress or '',
      total,
      0,
      unit='batch',
      disable=progress is None or not devices.is_first(),
    ) as bar:
      return {
        output: {
          attack.name: float(
            self.robust(
              variables, split, output, attack, rng, bar.update
            ).mean()
          )
          for attack in attacks
        }
        for output in outputs
      }


def table(accuracy: Mapping[str, Mapping[str, float]]) -> str:
  """Formats {output: {attack: accuracy in [0, 1]}} as text, in percent."""
  attacks = list(
    dict.fromkeys(name for row in accuracy.values() for name in row)
  )
  width = max(10, *(len(name) + 2 for name in attacks))
  lines = [' ' * 12 + ''.join(f'{name:>{width}}' for name in attacks)]
  for output, row in accuracy.items():
    cells = ''.join(
      f'{100 * row[name]:>{width}.2f}' if name in row else f'{"-":>{width}}'
      for name in attacks
    )
    lines.append(f'{output:<12}{cells}')
  return '\n'.join(lines)
