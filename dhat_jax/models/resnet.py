"""ResNet-18 and PreActResNet-18 for small images.

These are the networks of common CIFAR code (He et al. 2015, 2016). The first
convolution is 3x3 with 64 channels and no pooling. Four blocks of two basic
units follow, with 64, 128, 256 and 512 channels, then global average pooling
and a linear layer.

Differs from the most common PyTorch file for PreActResNet-18 in batch norm and
ReLU before the pooling, as in adversarial training code. Without them the last
unit's output would enter the linear layer unnormalised.
"""

import dataclasses
import functools
from collections.abc import Callable

import chex
from flax import linen as nn

from dhat_jax.models import layers


class PostActUnit(nn.Module):
  """Basic unit of ResNet: conv, norm, ReLU, conv, norm, add, ReLU.

  Attributes:
    features, stride, dtype, axis_name: as in `layers.Blocks`.
    activation: name in `layers.ACTIVATIONS`, in place of ReLU.
  """

  features: int
  stride: int
  dtype: chex.ArrayDType | None
  axis_name: str | None
  activation: str = 'relu'

  @nn.compact
  def __call__(self, x: chex.Array, train: bool) -> chex.Array:
    options = {'axis_name': self.axis_name, 'dtype': self.dtype}
    out = layers.conv(
      self.features, 3, self.stride, dtype=self.dtype, name='conv1'
    )(x)
    out = layers.norm_activation(
      out, train, activation=self.activation, **options, name='norm1'
    )
    out = layers.conv(self.features, 3, dtype=self.dtype, name='conv2')(out)
    out = layers.norm(train, **options, name='norm2')(out)
    if x.shape[-1] != self.features or self.stride != 1:
      x = layers.conv(
        self.features, 1, self.stride, dtype=self.dtype, name='shortcut'
      )(x)
      x = layers.norm(train, **options, name='shortcut_norm')(x)
    return layers.ACTIVATIONS[self.activation](x + out)


@dataclasses.dataclass(frozen=True)
class ResNet18:
  """ResNet-18 or PreActResNet-18; see `dhat_jax.models.backbones`.

  Attributes:
    preact: whether it is PreActResNet-18.
    activation: `relu` or `silu`.

  Raises:
    ValueError: an unknown activation.
  """

  preact: bool = False
  activation: str = 'relu'

  block_names = ('block1', 'block2', 'block3', 'block4')
  attach_points = ('block1', 'block2', 'block3')
  units_per_block = 2

  def __post_init__(self):
    layers.check_activation(self.activation)

  @property
  def unit(self) -> Callable[..., nn.Module]:
    """Makes a unit; see `layers.Blocks`."""
    return functools.partial(
      layers.PreActUnit if self.preact else PostActUnit,
      activation=self.activation,
    )

  def width(self, block: int) -> int:
    """Returns the channels of a block, counted from 0."""
    return 64 * 2**block

  def stem(
    self, images: chex.Array, *, dtype: chex.ArrayDType | None, **options
  ) -> chex.Array:
    """Computes the first convolution: [B, H, W, C] -> [B, H, W, 64]."""
    x = layers.conv(64, 3, dtype=dtype, name='conv')(images)
    if self.preact:
      return x
    return layers.norm_activation(
      x, activation=self.activation, dtype=dtype, **options, name='norm'
    )

  def blocks(
    self,
    features: chex.Array,
    names: tuple[str, ...],
    *,
    train: bool,
    **options,
  ) -> chex.Array:
    """Runs the named blocks."""
    return layers.Blocks(self, names, **options, name='blocks')(features, train)

  def tail(self, features: chex.Array, **options) -> chex.Array:
    """Computes the last batch norm and activation of a PreActResNet."""
    if not self.preact:
      return features
    return layers.norm_activation(
      features, activation=self.activation, **options, name='norm'
    )
