"""How the aggregator uses the two heads."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dhat_jax.datasets.base import Split
from dhat_jax.evaluation.evaluator import Target
from dhat_jax.models.outputs import OUTPUTS, part_variables
from dhat_jax.runtime import devices

# Images over which the influence is averaged: evenly spaced ones.
IMAGES = 128


def aggregated(outputs: Collection[str]) -> str | None:
  """Returns the output of the aggregator, or None."""
  names = [name for name in outputs if OUTPUTS[name].aggregates]
  return names[-1] if names else None


def fitted(net: nn.Module, variables: Any) -> dict[str, float]:
  """Returns the numbers of an aggregator that was fitted; {} for others.

  Args:
    net: a `DualHeadNet` with an aggregator.
    variables: its variables, replicated.
  """
  if net.make_aggregator().fit is None:
    return {}
  part = OUTPUTS[aggregated(net.outputs)].parts[-1]
  params = devices.to_host(part_variables(variables, part)['params'])
  return {name: float(value) for name, value in params.items()}


def influence_of(target: Target, split: Split) -> dict[str, np.ndarray]:
  """Returns `influence` of a target's network on a split's clean images.

  Args:
    target: any of the network's.
    split: uint8 images.
  """
  images = np.asarray(split.images, np.float32) / 255
  logits = target.evaluator.logits(
    target.variables, Split(images, split.labels)
  )
  variables = devices.to_host(target.variables)
  return influence(target.evaluator.net, variables, logits)


def influence(
  net: nn.Module,
  variables: Any,
  logits: Mapping[str, np.ndarray],
  *,
  images: int = IMAGES,
) -> dict[str, np.ndarray]:
  """Returns how much each head's logit of a class changes the aggregated one.

  This is d aggregated[k] / d head[k], averaged over images, for each class k.
  If the aggregator is the mean of two heads, it is .5 for both.

  Args:
    net: a `DualHeadNet` with an aggregator.
    variables: its variables, on the host.
    logits: {head: [N, K]}, of clean images.
    images: how many to average over, evenly spaced.

  Returns:
    {head: float [K]}.
  """
  row = OUTPUTS[aggregated(net.outputs)]
  heads = row.aggregates
  module = net.make_aggregator()
  stacked = np.stack([logits[head] for head in heads], axis=1)  # [N, 2, K]
  chosen = np.linspace(0, len(stacked) - 1, min(images, len(stacked)))
  means = _derivatives(
    lambda variables, x: module.apply(variables, x, train=False),
    part_variables(variables, row.parts[-1]),
    stacked[chosen.astype(int)],
  )
  return dict(zip(heads, means, strict=True))


def _derivatives(
  function: Callable, variables: Any, stacked: np.ndarray
) -> np.ndarray:
  """Returns the mean of d function[k] / d stacked[head, k]: [H, K].

  Args:
    function: (variables, [N, H, K]) -> [N, K].
    variables: of the function.
    stacked: float [N, H, K].
  """
  _, num_heads, num_classes = stacked.shape

  def derivative(variables, stacked, place):
    head, label = place // num_classes, place % num_classes
    direction = jnp.zeros_like(stacked).at[:, head, label].set(1.0)
    _, change = jax.jvp(
      lambda x: function(variables, x), (stacked,), (direction,)
    )
    return change[:, label].mean()

  @jax.jit
  def derivatives(variables, stacked):
    places = jnp.arange(num_heads * num_classes)
    return jax.lax.map(
      lambda place: derivative(variables, stacked, place), places
    )

  return np.asarray(derivatives(variables, stacked)).reshape(num_heads, -1)


def agreement(
  predictions: Mapping[str, np.ndarray], labels: np.ndarray
) -> dict[str, dict[str, int]]:
  """Counts which heads are correct, and how often the aggregated output is.

  Args:
    predictions: {output: int [N]}, of the heads and the aggregated output.
    labels: int [N].

  Returns:
    {'both': {'images': n, 'aggregated_right': m}, 'only_main': ...,
    'only_second': ..., 'neither': ...}; n sums to N. With more than two heads,
    'all' replaces 'both', and 'several' counts the cases between.
  """
  output = aggregated(predictions)
  heads = OUTPUTS[output].aggregates
  head_right = {head: predictions[head] == labels for head in heads}
  count = sum(flags.astype(int) for flags in head_right.values())
  if len(heads) == 2:
    groups = {'both': count == 2}
  else:
    groups = {
      'all': count == len(heads),
      'several': (count > 1) & (count < len(heads)),
    }
  groups |= {f'only_{h}': head_right[h] & (count == 1) for h in heads}
  groups['neither'] = count == 0
  right = predictions[output] == labels
  return {
    name: {
      'images': int(chosen.sum()),
      'aggregated_right': int((right & chosen).sum()),
    }
    for name, chosen in groups.items()
  }
