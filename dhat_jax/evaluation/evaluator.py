"""Compiled functions of one network, and the targets in it."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dhat_jax.datasets.base import Split
from dhat_jax.datasets.batches import Batch, eval_batches
from dhat_jax.evaluation import judging
from dhat_jax.evaluation.step import make_eval_step, make_judge_step
from dhat_jax.models import outputs as output_table
from dhat_jax.runtime import devices, streams


def smallest(net: nn.Module, output: str) -> nn.Module:
  """Returns the network with only the parts that an output needs.

  So the validation of a stage and the final evaluation share compilations.
  """
  return net.clone(outputs=output_table.required(output))


def variables_of(variables: Any, parts: tuple[str, ...]) -> dict[str, dict]:
  """Returns the variables of some parts of the network."""
  return {
    group: {part: tree for part, tree in subtrees.items() if part in parts}
    for group, subtrees in variables.items()
  }


def full_precision(step: Callable) -> Callable:
  """Returns a step whose products of float32 are computed in float32.

  JAX's default on accelerators is TF32 or bfloat16, which would evaluate a
  slightly different network than the one that is stored.
  """

  def run(*args):
    with jax.default_matmul_precision('highest'):
      return step(*args)

  return run


class Evaluator:
  """The compiled functions of one network.

  One compiled step for each attacked network and attack function serves all
  settings, splits and variables. So the naturally trained twin of a network
  compiles nothing. The last batch is padded and masked: every image counts
  exactly once, and nothing compiles again.

  Attributes:
    net: the network.
    batch_size: global, a multiple of the devices.
    outputs: the outputs that it is evaluated on.
    samples: evaluations by which an image is judged; 1: a network without
      noise.
  """

  def __init__(self, net: nn.Module, *, batch_size: int, samples: int = 1):
    """Creates the evaluator; nothing compiles yet.

    Args:
      net: the network.
      batch_size: global; rounded up to a multiple of the devices.
      samples: see above.
    """
    self.net = net
    self.samples = samples
    self.outputs = output_table.available(net.outputs)
    count = jax.device_count()
    self.batch_size = -(-batch_size // count) * count
    self._compiled = {}

  def compiled(self, key: Any, make: Callable[[], Callable]) -> Callable:
    """Returns the value of `make`, cached by key."""
    if key not in self._compiled:
      self._compiled[key] = make()
    return self._compiled[key]

  def target(self, variables: Any, output: str) -> 'Target':
    """Returns the target that attacks and scores one output.

    Args:
      variables: replicated.
      output: one of `outputs`.
    """
    return Target(
      name=output,
      evaluator=self,
      variables=variables,
      net=smallest(self.net, output),
      output=output,
      scored=output,
    )

  def predict(self, variables: Any, images: jax.Array) -> dict[str, np.ndarray]:
    """Computes the logits of all outputs; of a randomised network, their mean.

    Args:
      variables: replicated.
      images: float [D, B / D, H, W, C] in [0, 1], on the devices.

    Returns:
      {output: float [B, K]}.
    """
    if self.samples > 1:
      logits = self.judge(variables, images, streams.key(0), 0)
      return {name: rows.mean(axis=1) for name, rows in logits.items()}

    def logits(variables, images):
      outputs = self.net.apply(variables, images)
      return {
        name: devices.all_gather(outputs.select(name), devices.AXIS)
        for name in self.outputs
      }

    step = self.compiled(
      'logits',
      lambda: devices.pmap_eval_step(full_precision(logits), in_axes=(0, 0)),
    )
    rows = step(variables_of(variables, self.net.parts), images)
    return {name: devices.first_copy(rows[name]) for name in self.outputs}

  def judge(
    self, variables: Any, images: jax.Array, rng: chex.PRNGKey, offset: int
  ) -> dict[str, np.ndarray]:
    """Computes the logits of all outputs, as many times as an image is judged.

    Args:
      variables: replicated.
      images: float [D, B / D, H, W, C] in [0, 1], on the devices.
      rng: typed key of the network's noise, folded by each image's place.
      offset: place of the first image.

    Returns:
      {output: float [B, m, K]} of m evaluations; a network without noise is
      evaluated once, m = 1.
    """
    if self.samples == 1:
      rows = self.predict(variables, images)
      return {name: logits[:, None] for name, logits in rows.items()}
    step = self.compiled(
      'samples',
      lambda: devices.pmap_eval_step(
        full_precision(make_judge_step(self.net, self.outputs, self.samples)),
        in_axes=(0, 0, None, None),
      ),
    )
    rows = step(variables_of(variables, self.net.parts), images, rng, offset)
    return {name: devices.first_copy(rows[name]) for name in self.outputs}

  def logits(
    self, variables: Any, split: Split, rng: chex.PRNGKey | None = None
  ) -> dict[str, np.ndarray]:
    """Computes the logits of all outputs on a split: {output: [N, K]}.

    Args:
      variables: replicated.
      split: the images, float in [0, 1].
      rng: typed key of the network's noise. With it the logits of all
        evaluations are returned: [N, m, K], as `judge`.
    """
    rows = []
    for number, batch in enumerate(self.batches(split)):
      images = devices.shard(batch['images'])
      if rng is None:
        rows.append(self.predict(variables, images))
      else:
        offset = number * self.batch_size
        rows.append(self.judge(variables, images, rng, offset))
    return joined(rows, len(split.labels))

  def batches(self, split: Split) -> Iterator[Batch]:
    """Iterates over this process's shares of the padded batches."""
    return eval_batches(
      split,
      batch_size=self.batch_size,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )


def joined(rows: list[dict[str, np.ndarray]], count: int) -> dict:
  """Joins batches: [{name: [B, ...]}, ...] -> {name: [count, ...]}."""
  return {
    name: np.concatenate([row[name] for row in rows])[:count]
    for name in rows[0]
  }


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
  """The output that is attacked, and the output that is scored.

  Attributes:
    name: of the records' folder.
    evaluator: of the network that is evaluated.
    variables: of that network, replicated.
    net: the network whose gradients the attack sees: a hashable object with
      `parts`, `clone(**fields)` and `apply(variables, images) -> Outputs`.
    output: of `net`, the one that is attacked.
    scored: the output of the evaluated network that is scored.
  """

  name: str
  evaluator: Evaluator
  variables: Any
  net: Any
  output: str
  scored: str

  def attacked(
    self, function: Callable, settings: Any, split: Split, rng: chex.PRNGKey
  ) -> Iterator[tuple[np.ndarray, jax.Array]]:
    """Attacks a split, batch by batch.

    Args:
      function: (logits_fn, images, labels, rngs, settings) -> (robust [B] bool,
        images_adv); compiled once for each target's network.
      settings: a tree of numbers; other values compile nothing.
      split: uint8 images.
      rng: typed key, folded by each image's place in the split.

    Yields:
      (robust [B], images_adv [D, B / D, ...]) of the padded batches.
    """
    step = self.evaluator.compiled(
      (self.net, self.output, function), lambda: self._make_step(function)
    )
    variables = variables_of(self.variables, self.net.parts)
    for number, batch in enumerate(self.evaluator.batches(split)):
      offset = number * self.evaluator.batch_size
      robust, images_adv = step(
        variables, devices.shard(batch), rng, offset, settings
      )
      yield devices.first_copy(robust), images_adv

  def _make_step(self, function: Callable) -> Callable:
    step = make_eval_step(
      net=self.net,
      output=self.output,
      attack=function,
      axis_name=devices.AXIS,
      returns_images=True,
      samples=self.evaluator.samples,
    )
    return devices.pmap_eval_step(
      full_precision(step), in_axes=(0, 0, None, None, None)
    )

  def logits_fn(self, dtype: str = 'float32') -> Callable[..., chex.Array]:
    """Returns images [B, H, W, C] -> logits [B, K].

    It is for attacks on any function from images to logits, and closes over the
    variables. If images are judged by several evaluations, it takes (images,
    key).

    Args:
      dtype: of the network's computation.
    """
    net = self.net.clone(dtype=jnp.dtype(dtype))
    variables = devices.to_host(variables_of(self.variables, net.parts))
    variables = jax.tree.map(jnp.asarray, variables)
    if self.evaluator.samples > 1:
      return judging.make_noisy(net, variables, self.output)
    return lambda images: net.apply(variables, images).select(self.output)

  def predict(self, images: jax.Array) -> dict[str, np.ndarray]:
    """Computes the evaluated network's logits, as `Evaluator.predict`."""
    return self.evaluator.predict(self.variables, images)

  def judge(
    self, images: jax.Array, rng: chex.PRNGKey, offset: int
  ) -> dict[str, np.ndarray]:
    """Computes the evaluated network's logits, as `Evaluator.judge`."""
    rng = streams.fold_in(rng, f'judge/{self.name}')
    return self.evaluator.judge(self.variables, images, rng, offset)
