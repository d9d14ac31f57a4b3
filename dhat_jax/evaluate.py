"""Accuracy of every output under every attack, over a whole split."""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from dhat_jax import input_pipeline, metrics, parallel, steps
from dhat_jax.attacks import pgd
from dhat_jax.datasets.base import Split


@dataclasses.dataclass(frozen=True)
class Attack:
  """An attack of the evaluation, by name.

  Attributes:
    name: as in the results: 'clean', 'fgsm', 'pgd_40', 'cw_40', ...
    settings: what may change without compiling again.
  """

  name: str
  settings: pgd.Settings


def output_names(net: nn.Module) -> tuple[str, ...]:
  """Returns the outputs to evaluate; two heads have their mean as well."""
  if len(net.outputs) == 1:
    return net.outputs
  return ('main', 'second', 'mean', *net.outputs[2:])


def _smallest(net: nn.Module, output: str) -> nn.Module:
  """Returns the network without the parts that an output does not need.

  So the validation of a stage and the final evaluation share what is compiled.
  """
  count = {'main': 1, 'second': 2, 'mean': 2, 'aggregated': 3}[output]
  return net.clone(outputs=net.outputs[:count])


class Evaluator:
  """Evaluates one network; each output compiles once, for all attacks.

  The last batch is padded and masked, so that every image counts exactly once
  and nothing compiles again for it.
  """

  def __init__(self, net: nn.Module, *, norm: str, batch_size: int):
    """Creates the evaluator.

    Args:
      net: the network.
      norm: 'linf' or 'l2', of all attacks.
      batch_size: global; rounded up to a multiple of the devices.
    """
    self._net = net
    self._norm = norm
    devices = jax.device_count()
    self._batch_size = -(-batch_size // devices) * devices
    self._steps = {}

  def _step(self, output: str):
    if output not in self._steps:
      step = steps.make_eval_step(
        net=_smallest(self._net, output),
        output=output,
        attack=pgd.make_evaluation_attack(objective=None, norm=self._norm),
        axis_name=parallel.AXIS,
      )
      self._steps[output] = parallel.pmap_eval_step(
        step, in_axes=(0, 0, None, None, None)
      )
    return self._steps[output]

  def robust(
    self,
    variables: Any,
    split: Split,
    output: str,
    attack: Attack,
    rng: jax.Array,
    on_batch=lambda: None,
  ) -> np.ndarray:
    """Returns which images an output classifies correctly under attack.

    Args:
      variables: replicated.
      split: the images.
      output: which output is attacked and scored.
      attack: the attack.
      rng: typed key; the noise of an image depends on it, the attack's name
        and the image's place in the split alone.
      on_batch: called after each batch, for progress.

    Returns:
      bool [N].
    """
    step = self._step(output)
    parts = _smallest(self._net, output).parts
    variables = {
      group: {part: tree for part, tree in subtrees.items() if part in parts}
      for group, subtrees in variables.items()
    }
    rng = jax.random.fold_in(rng, zlib.crc32(attack.name.encode()))
    flags, offset = [], 0
    for batch in self.batches(split):
      robust = step(
        variables, parallel.shard(batch), rng, offset, attack.settings
      )
      flags.append(parallel.first_copy(robust))
      offset += self._batch_size
      on_batch()
    return np.concatenate(flags)[: len(split.labels)]

  def batches(self, split: Split):
    """Iterates over this process's shares of the padded batches."""
    return input_pipeline.eval_batches(
      split,
      batch_size=self._batch_size,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )

  def num_batches(self, split: Split) -> int:
    """Returns how many batches a split makes."""
    return -(-len(split.labels) // self._batch_size)

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
    outputs = outputs or output_names(self._net)
    total = len(outputs) * len(attacks) * self.num_batches(split)
    with metrics.progress_bar(
      progress or '',
      total,
      0,
      unit='batch',
      disable=progress is None or jax.process_index() > 0,
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
  attacks = list(next(iter(accuracy.values())))
  width = max(10, *(len(name) + 2 for name in attacks))
  lines = [' ' * 12 + ''.join(f'{name:>{width}}' for name in attacks)]
  for output, row in accuracy.items():
    cells = ''.join(f'{100 * row[name]:>{width}.2f}' for name in attacks)
    lines.append(f'{output:<12}{cells}')
  return '\n'.join(lines)
