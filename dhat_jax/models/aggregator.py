"""Aggregators: the two heads' logits [B, 2, K] -> aggregated logits [B, K].

`pairwise` is the light CNN of DH-AT's published code, with its pooling
repaired (kernel 16 does not fit the linear layer behind it; kernel 2 does).
Everything behind its only ReLU is affine, so that at inference it equals
`classwise` with the weights that `collapse` computes. `mean` is the control
that any learned aggregator must beat; it has no parameters.

All of them compute in float32: their cost is negligible.
"""

from collections.abc import Mapping

import chex
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dhat_jax.models import layers

HIDDEN = 8  # features per class
CHANNELS = 16  # channels of the second convolution of `pairwise`
POOL = 2  # its pooling window over those channels


def class_pairs(num_classes: int) -> np.ndarray:
  """Returns the pairs i < j in order (0, 1), (0, 2), ...: int [P, 2]."""
  return np.stack(np.triu_indices(num_classes, k=1), axis=1)


class _ClassFeatures(nn.Module):
  """Conv1d 2 -> 8 with kernel 1, batch norm, ReLU: [B, 2, K] -> [B, K, 8]."""

  axis_name: str | None

  @nn.compact
  def __call__(self, logits: chex.Array, train: bool) -> chex.Array:
    x = nn.Dense(HIDDEN, kernel_init=layers.uniform_fan_in, name='conv')(
      logits.swapaxes(1, 2)
    )
    return nn.relu(layers.norm(train, axis_name=self.axis_name, name='norm')(x))


class Pairwise(nn.Module):
  """The published aggregator, repaired; see the module's docstring.

  Parameters: 28,930 at K = 10; 31.7 M at K = 100.
  """

  axis_name: str | None = None

  @nn.compact
  def __call__(self, logits: chex.Array, train: bool) -> chex.Array:
    batch_size, _, num_classes = logits.shape
    x = _ClassFeatures(self.axis_name, name='features')(logits, train)
    x = x[:, class_pairs(num_classes)]  # [B, P, 2, 8]
    x = x.swapaxes(2, 3).reshape(batch_size, -1, 2)  # [B, 8P, 2]
    x = nn.Dense(CHANNELS, kernel_init=layers.uniform_fan_in, name='conv')(x)
    x = layers.norm(train, axis_name=self.axis_name, name='norm')(x)
    x = x.reshape(batch_size, -1, CHANNELS // POOL, POOL).mean(axis=-1)
    return nn.Dense(
      num_classes, kernel_init=layers.uniform_fan_in, name='dense'
    )(x.reshape(batch_size, -1))


class Classwise(nn.Module):
  """The collapsed form of `Pairwise`: one hidden layer per class.

  Parameters: 8 K^2 + K + 40; 80,140 at K = 100.
  """

  axis_name: str | None = None

  @nn.compact
  def __call__(self, logits: chex.Array, train: bool) -> chex.Array:
    num_classes = logits.shape[-1]
    x = _ClassFeatures(self.axis_name, name='features')(logits, train)
    return nn.Dense(
      num_classes, kernel_init=layers.uniform_fan_in, name='dense'
    )(x.reshape(x.shape[0], -1))


class Mean(nn.Module):
  """The average of the two heads' logits."""

  axis_name: str | None = None

  def __call__(self, logits: chex.Array, train: bool) -> chex.Array:
    """Returns the mean over axis 1; `train` makes no difference."""
    del train
    return logits.mean(axis=1)


AGGREGATORS = {'pairwise': Pairwise, 'classwise': Classwise, 'mean': Mean}


def collapse(pairwise: Mapping, num_classes: int) -> dict:
  """Computes the `Classwise` variables that equal a `Pairwise` aggregator.

  Args:
    pairwise: {'params': ..., 'batch_stats': ...} of a `Pairwise`.
    num_classes: K.

  Returns:
    {'params': ..., 'batch_stats': ...} of a `Classwise` with the same output
    in evaluation mode, to float tolerance.
  """
  params, stats = pairwise['params'], pairwise['batch_stats']
  pairs = class_pairs(num_classes)
  # The second convolution and its batch norm, as one affine map of the pair.
  scale = params['norm']['scale'] / jnp.sqrt(stats['norm']['var'] + 1e-5)
  weight = params['conv']['kernel'] * scale[None, :]  # [2, 16]
  offset = (params['conv']['bias'] - stats['norm']['mean']) * scale
  offset = offset + params['norm']['bias']  # [16]
  # Averaging channels commutes with it.
  weight = weight.reshape(2, -1, POOL).mean(axis=-1)  # [2, 8]
  offset = offset.reshape(-1, POOL).mean(axis=-1)  # [8]
  dense = params['dense']['kernel'].reshape(
    len(pairs), HIDDEN, CHANNELS // POOL, num_classes
  )  # [P, 8 hidden, 8 pooled, K]
  per_pair = jnp.einsum('pgck,ac->apgk', dense, weight)  # [2, P, 8, K]
  kernel = jnp.zeros((num_classes, HIDDEN, num_classes))
  kernel = kernel.at[pairs[:, 0]].add(per_pair[0])
  kernel = kernel.at[pairs[:, 1]].add(per_pair[1])
  bias = params['dense']['bias'] + jnp.einsum('pgck,c->k', dense, offset)
  return {
    'params': {
      'features': params['features'],
      'dense': {'kernel': kernel.reshape(-1, num_classes), 'bias': bias},
    },
    'batch_stats': {'features': stats['features']},
  }
