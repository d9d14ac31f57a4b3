"""Layers that all backbones share, with PyTorch's conventions.

Padding is explicit: Flax's 'SAME' pads (0, 1) at stride 2, PyTorch (1, 1).
Kernels have He initialisation over the fan out. Batch normalisation has epsilon
1e-5 and, unless a backbone says otherwise, momentum .9 (PyTorch writes .1).

Differs from PyTorch: the running variance is the biased estimate (PyTorch
stores the unbiased one, n / (n - 1) times as large; n is batch x positions).
"""

import math
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.ad_checkpoint
import jax.numpy as jnp
from flax import linen as nn

from dhat_jax import arguments
from dhat_jax.models import cpu_conv

# Compute precisions, by their name in a config.
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}

# Activation functions, by their name in a config.
ACTIVATIONS = {'relu': nn.relu, 'silu': nn.silu}

# The name of a unit's output, for `jax.checkpoint`: what is stored of a forward
# pass where memory is scarcer than time.
UNIT = 'unit'

# PyTorch's default for linear layers: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
uniform_fan_in = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


def he_normal_fan_out(
  rng: chex.PRNGKey,
  shape: tuple[int, ...],
  dtype: chex.ArrayDType = jnp.float32,
) -> chex.Array:
  """Draws a kernel [h, w, C, F] from N(0, 2 / (h w F)).

  The values of `variance_scaling(2.0, 'fan_out', 'normal')`, but drawn flat.
  Drawn in four dimensions, random bits take XLA ten times as long to compile on
  the CPU: seconds for every shape of kernel.
  """
  flat = jax.random.normal(rng, (math.prod(shape),), dtype).reshape(shape)
  return flat * math.sqrt(2 / (shape[0] * shape[1] * shape[3]))


def conv(
  features: int,
  kernel_size: int,
  stride: int = 1,
  *,
  padding: Sequence[tuple[int, int]] | None = None,
  dtype: chex.ArrayDType | None = None,
  name: str | None = None,
) -> nn.Conv:
  """Returns a square convolution without bias.

  Args:
    features: output channels.
    kernel_size: height and width of the kernel.
    stride: of rows and columns.
    padding: zeros before and after the rows, and before and after the columns;
      None: half the kernel everywhere, as PyTorch pads.
    dtype: compute dtype.
    name: the submodule's name.
  """
  half = kernel_size // 2
  return nn.Conv(
    features,
    (kernel_size, kernel_size),
    strides=(stride, stride),
    padding=padding or ((half, half), (half, half)),
    use_bias=False,
    kernel_init=he_normal_fan_out,
    dtype=dtype,
    conv_general_dilated=cpu_conv.conv_general_dilated,
    name=name,
  )


def norm(
  train: bool,
  *,
  momentum: float = 0.9,
  axis_name: str | None = None,
  dtype: chex.ArrayDType | None = None,
  name: str | None = None,
) -> nn.BatchNorm:
  """Returns a batch normalisation with PyTorch's epsilon.

  Args:
    train: normalise with the batch's statistics and update the running ones;
      otherwise use the running statistics and leave them alone.
    momentum: share of the old running statistics; PyTorch writes 1 - momentum.
    axis_name: mapped axis over whose replicas the batch's statistics are
      shared. None: per replica.
    dtype: compute dtype; statistics and parameters stay float32.
    name: the submodule's name.
  """
  return nn.BatchNorm(
    use_running_average=not train,
    momentum=momentum,
    epsilon=1e-5,
    axis_name=axis_name if train else None,
    dtype=dtype,
    name=name,
  )


def check_activation(name: str) -> None:
  """Raises a ValueError for an unknown activation."""
  arguments.one_of('activation', name, ACTIVATIONS)


def norm_activation(
  features: chex.Array,
  train: bool,
  *,
  activation: str = 'relu',
  **options: Any,
) -> chex.Array:
  """Applies batch norm and an activation.

  Args:
    features: [B, ..., C].
    train: as in `norm`.
    activation: name in `ACTIVATIONS`.
    **options: of `norm`.
  """
  return ACTIVATIONS[activation](norm(train, **options)(features))


def norm_relu(
  features: chex.Array,
  train: bool,
  *,
  axis_name: str | None = None,
  dtype: chex.ArrayDType | None = None,
  name: str | None = None,
) -> chex.Array:
  """Applies batch norm, see `norm`, and ReLU."""
  return norm_activation(
    features, train, axis_name=axis_name, dtype=dtype, name=name
  )


class PreActUnit(nn.Module):
  """Basic pre-activation unit: norm, ReLU, conv, norm, ReLU, conv, add.

  [B, H, W, C] -> [B, H/stride, W/stride, F]; a 1x1 shortcut where the shape
  changes, after the first norm and ReLU.

  Attributes:
    features, stride, dtype, axis_name: as in `Blocks`.
    activation: name in `ACTIVATIONS`, in place of ReLU.
    momentum: of batch norm's running statistics.
    same_padding: pad as TensorFlow's 'SAME' does. At stride 2 an even size has
      no zero before and one after, where PyTorch has one on both sides.
  """

  features: int
  stride: int
  dtype: chex.ArrayDType | None
  axis_name: str | None
  activation: str = 'relu'
  momentum: float = 0.9
  same_padding: bool = False

  @nn.compact
  def __call__(self, x: chex.Array, train: bool) -> chex.Array:
    options = {
      'axis_name': self.axis_name,
      'dtype': self.dtype,
      'activation': self.activation,
      'momentum': self.momentum,
    }
    out = norm_activation(x, train, **options, name='norm1')
    if x.shape[-1] != self.features or self.stride != 1:
      x = conv(
        self.features, 1, self.stride, dtype=self.dtype, name='shortcut'
      )(out)
    padding = None
    if self.same_padding:
      strides = (self.stride, self.stride)
      padding = jax.lax.padtype_to_pads(out.shape[1:3], (3, 3), strides, 'SAME')
    out = conv(
      self.features,
      3,
      self.stride,
      padding=padding,
      dtype=self.dtype,
      name='conv1',
    )(out)
    out = norm_activation(out, train, **options, name='norm2')
    return x + conv(self.features, 3, dtype=self.dtype, name='conv2')(out)


class Blocks(nn.Module):
  """A run of blocks, each a chain of units: [B, H, W, C] -> [B, H', W', F].

  Every block but the network's first one halves height and width.

  Attributes:
    backbone: has `block_names`, `units_per_block`, `width` (index of a block ->
      channels) and `unit`, which makes a unit's module of `features`, `stride`,
      `dtype`, `axis_name` and `name`.
    names: the blocks to run, in order.
  """

  backbone: Any
  names: tuple[str, ...]
  dtype: chex.ArrayDType | None
  axis_name: str | None

  @nn.compact
  def __call__(self, x: chex.Array, train: bool) -> chex.Array:
    for name in self.names:
      index = self.backbone.block_names.index(name)
      for unit in range(self.backbone.units_per_block):
        x = self.backbone.unit(
          features=self.backbone.width(index),
          stride=2 if index and not unit else 1,
          dtype=self.dtype,
          axis_name=self.axis_name,
          name=f'{name}_unit{unit + 1}',
        )(x, train)
        x = jax.ad_checkpoint.checkpoint_name(x, UNIT)
    return x


def dense(features: int, *, name: str | None = None) -> nn.Dense:
  """Returns a linear layer with PyTorch's default initial values.

  Accelerators compute it in float32 too, where JAX's default is to round what
  is multiplied to TF32 or bfloat16.
  """
  return nn.Dense(
    features,
    kernel_init=uniform_fan_in,
    precision=jax.lax.Precision.HIGHEST,
    name=name,
  )


class Classifier(nn.Module):
  """Global average pooling and a linear layer: [B, H, W, C] -> [B, K].

  Computed in at least float32, so that logits are float32 in bfloat16
  networks too.
  """

  num_classes: int

  @nn.compact
  def __call__(self, features: chex.Array) -> chex.Array:
    dtype = jnp.promote_types(features.dtype, jnp.float32)
    pooled = features.astype(dtype).mean(axis=(1, 2))  # [B, C]
    return dense(self.num_classes, name='dense')(pooled)
