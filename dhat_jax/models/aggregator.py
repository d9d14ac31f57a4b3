"""Aggregators: the two heads' logits [B, 2, K] -> aggregated logits [B, K].

`pairwise` is the light CNN of DH-AT's published code, with its pooling
repaired (kernel 16 does not fit the linear layer after it; kernel 2 does).
Everything after its only ReLU is affine, so that at inference it equals
`classwise` with the weights that `collapse` computes. `mean` is the control
that any learned aggregator must beat; it has no parameters. `models.mixed` has
those that are fitted instead.

All of them compute in float32: their cost is negligible. To add one,
register a class and name it in a config, `model.aggregator='largest'`:

    @aggregator.register('largest')
    class Largest(aggregator.Aggregator):
      trains = False

      def __call__(self, logits, train):
        return logits.max(axis=1)
"""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dhat_jax.models import layers
from dhat_jax.registry import Registry

AGGREGATORS = Registry('aggregator', shared=('axis_name', 'name', 'parent'))
register = AGGREGATORS.register

HIDDEN = 8  # features per class
CHANNELS = 16  # channels of the second convolution of `pairwise`
POOL = 2  # its pooling window over those channels


def class_pairs(num_classes: int) -> np.ndarray:
  """Returns the pairs i < j in order (0, 1), (0, 2), ...: int [P, 2]."""
  return np.stack(np.triu_indices(num_classes, k=1), axis=1)


def _product_over_heads(
  inputs: chex.Array, kernel: chex.Array, *unused, **options
) -> chex.Array:
  """Multiplies [..., H] by a kernel [H, F], H small: -> [..., F].

  Replaces a matrix product: XLA cannot tile its shared axis of two elements for
  a GPU without trying kernels there.
  """
  del unused, options
  columns = [
    jnp.multiply(
      inputs[..., head, None],
      jnp.expand_dims(kernel[head], tuple(range(inputs.ndim - 1))),
    )
    for head in range(kernel.shape[0])
  ]
  return functools.reduce(jnp.add, columns)


def _dense_over_heads(features: int, name: str) -> nn.Dense:
  """Returns a linear layer [..., H] -> [..., F] over the heads' logits."""
  return nn.Dense(
    features,
    kernel_init=layers.uniform_fan_in,
    dot_general=_product_over_heads,
    name=name,
  )


class HeldOut(NamedTuple):
  """The heads' logits on N held-out images, NumPy arrays.

  Attributes:
    clean: [N, H, K].
    attacked: [N, H, K], under an attack on the first head.
    labels: int [N].
  """

  clean: np.ndarray
  attacked: np.ndarray
  labels: np.ndarray


class Fit(NamedTuple):
  """What a fit chooses.

  Attributes:
    params: {name: number}, the aggregator's parameters.
    numbers: {name: number} that explain the choice, for the records.
  """

  params: dict[str, float]
  numbers: dict[str, float]


class Aggregator(nn.Module, kw_only=True):
  """Base class: logits [B, H, K] of H heads -> logits [B, K].

  Called with (logits, train). Fields of a subclass are its options in a config.

  Attributes:
    axis_name: mapped axis over which batch norm shares its statistics.
    trains: whether there is anything to train.
    bypass: (variables, logits [B, H, K]) -> logits [B, K] in evaluation mode.
      The values are the same. The gradient goes around the module's
      non-linearity, which may hide adversarial images from an attack; the audit
      looks for them (BPDA, Athalye et al. 2018). None: nothing to go around.
    surrogate: (variables, logits [B, H, K]) -> logits [B, K] in evaluation
      mode, other ones, whose gradient an attack can follow. The audit attacks
      through them; the module's own logits decide. None: the module's own.
    fit: `HeldOut` -> `Fit`, where parameters are fitted, not trained; the
      module then has the fields `images` and `attack` of `models.mixed`.
  """

  axis_name: str | None = None

  trains: ClassVar[bool] = True
  bypass: ClassVar[Any] = None
  surrogate: ClassVar[Any] = None
  fit: ClassVar[Any] = None


class _ClassFeatures(nn.Module):
  """Conv1d 2 -> 8 with kernel 1, batch norm, ReLU: [B, 2, K] -> [B, K, 8]."""

  axis_name: str | None

  @nn.compact
  def __call__(self, logits: chex.Array, train: bool) -> chex.Array:
    x = _dense_over_heads(HIDDEN, name='conv')(logits.swapaxes(1, 2))
    return nn.relu(layers.norm(train, axis_name=self.axis_name, name='norm')(x))


class _ReluOfClasses(Aggregator):
  """An aggregator that is affine after its `_ClassFeatures`, `features`."""

  @nn.nowrap
  def bypass(
    self, variables: Mapping[str, Any], logits: chex.Array
  ) -> chex.Array:
    """Computes the logits [B, K]; in the gradient the ReLU is the identity.

    Everything after the one ReLU is affine, and relu(x) - relu(-x) = x. The
    twin is the aggregator with negated pre-activations. So the difference of
    the two has the gradient of the aggregator without ReLU.
    """
    features = variables['params']['features']
    negated = jax.tree.map(jnp.negative, features['norm'])
    twin = {**variables['params'], 'features': {**features, 'norm': negated}}
    values = self.apply(variables, logits, train=False)
    linear = values - self.apply(
      {**variables, 'params': twin}, logits, train=False
    )
    # In this order of arithmetic the values stay the same to the last bit.
    return jax.lax.stop_gradient(values) + (
      linear - jax.lax.stop_gradient(linear)
    )


@register('pairwise')
class Pairwise(_ReluOfClasses):
  """The published aggregator, with its pooling repaired.

  Parameters: 28,930 at K = 10; 31.7 M at K = 100.
  """

  @nn.compact
  def __call__(self, logits: chex.Array, train: bool) -> chex.Array:
    batch_size, _, num_classes = logits.shape
    x = _ClassFeatures(self.axis_name, name='features')(logits, train)
    x = x[:, class_pairs(num_classes)]  # [B, P, 2, 8]
    x = x.swapaxes(2, 3).reshape(batch_size, -1, 2)  # [B, 8P, 2]
    x = _dense_over_heads(CHANNELS, name='conv')(x)
    x = layers.norm(train, axis_name=self.axis_name, name='norm')(x)
    x = x.reshape(batch_size, -1, CHANNELS // POOL, POOL).mean(axis=-1)
    return layers.dense(num_classes, name='dense')(x.reshape(batch_size, -1))


@register('classwise')
class Classwise(_ReluOfClasses):
  """The collapsed form of `Pairwise`: one hidden layer per class.

  Parameters: 8 K^2 + K + 40; 80,140 at K = 100.
  """

  @nn.compact
  def __call__(self, logits: chex.Array, train: bool) -> chex.Array:
    num_classes = logits.shape[-1]
    x = _ClassFeatures(self.axis_name, name='features')(logits, train)
    return layers.dense(num_classes, name='dense')(x.reshape(x.shape[0], -1))


@register('mean')
class Mean(Aggregator):
  """The average of the heads' logits."""

  trains = False

  def __call__(self, logits: chex.Array, train: bool) -> chex.Array:
    """Returns the mean over axis 1; `train` makes no difference."""
    del train
    return logits.mean(axis=1)


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
