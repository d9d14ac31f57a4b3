"""What the aggregator makes of the two heads."""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dhat_jax.models import aggregator as aggregators
from dhat_jax.models.outputs import OUTPUTS

# Images over which the influence is averaged: evenly spaced ones.
IMAGES = 128
# The outputs that the aggregator is fed with, in its order.
HEADS = OUTPUTS['mean'].mean_of


def aggregated(outputs: Collection[str]) -> str | None:
  """Returns the output that an aggregator computes, None if there is none."""
  names = [name for name in outputs if 'aggregator' in OUTPUTS[name].parts]
  return names[0] if names else None


def influence(
  net: nn.Module, variables: Any, logits: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """Returns how much each head's logit of a class moves the aggregated one.

  That is d aggregated[k] / d head[k], averaged over images, for each class k:
  .5 for both heads if the aggregator were their mean.

  Args:
    net: a `DualHeadNet` with an aggregator.
    variables: its variables, on the host.
    logits: {'main': [N, K], 'second': [N, K]}, of clean images.

  Returns:
    {'main': float [K], 'second': float [K]}.
  """
  module = aggregators.AGGREGATORS[net.aggregator]()
  own = {group: tree.get('aggregator', {}) for group, tree in variables.items()}
  stacked = np.stack([logits[head] for head in HEADS], axis=1)  # [N, 2, K]
  count = min(IMAGES, len(stacked))
  chosen = np.linspace(0, len(stacked) - 1, count).astype(int)
  num_classes = stacked.shape[-1]

  def derivative(own, stacked, place):
    head, label = place // num_classes, place % num_classes
    direction = jnp.zeros_like(stacked).at[:, head, label].set(1.0)
    _, change = jax.jvp(
      lambda x: module.apply(own, x, train=False), (stacked,), (direction,)
    )
    return change[:, label].mean()

  @jax.jit
  def derivatives(own, stacked):
    places = jnp.arange(len(HEADS) * num_classes)
    return jax.lax.map(lambda place: derivative(own, stacked, place), places)

  found = np.asarray(derivatives(own, stacked[chosen]))
  return dict(zip(HEADS, found.reshape(len(HEADS), -1), strict=True))


def agreement(
  predictions: Mapping[str, np.ndarray], labels: np.ndarray
) -> dict[str, dict[str, int]]:
  """Counts which head is right, and how often the aggregated output is then.

  Args:
    predictions: {output: int [N]}, of the heads and the aggregated output.
    labels: int [N].

  Returns:
    {'both': {'images': n, 'aggregated_right': m}, 'only_main': ...,
    'only_second': ..., 'neither': ...}; n sums to N.
  """
  right = {name: rows == labels for name, rows in predictions.items()}
  first, second = (right[head] for head in HEADS)
  groups = {
    'both': first & second,
    f'only_{HEADS[0]}': first & ~second,
    f'only_{HEADS[1]}': ~first & second,
    'neither': ~first & ~second,
  }
  whole = right[aggregated(predictions)]
  return {
    name: {
      'images': int(chosen.sum()),
      'aggregated_right': int((whole & chosen).sum()),
    }
    for name, chosen in groups.items()
  }
