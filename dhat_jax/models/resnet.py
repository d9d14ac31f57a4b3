"""ResNet-18 and PreActResNet-18 for small images, in two parts.

The networks that CIFAR code commonly uses (He et al. 2015, 2016): 3x3 first
convolution with 64 channels and no pooling, four blocks of two basic units
with 64, 128, 256 and 512 channels, global average pooling, linear layer.

Differs from the most common PyTorch file for PreActResNet-18: batch norm and
ReLU before the pooling, as adversarial training code has them; without them
the last unit's output would go into the linear layer unnormalised.
"""

import dataclasses

import chex
from flax import linen as nn

from dhat_jax.models import layers

BLOCKS = ('block1', 'block2', 'block3', 'block4')
UNITS_PER_BLOCK = 2


class PostActUnit(nn.Module):
  """Basic unit of ResNet: conv, norm, ReLU, conv, norm, add, ReLU."""

  features: int
  stride: int
  dtype: chex.ArrayDType | None
  axis_name: str | None

  @nn.compact
  def __call__(self, x: chex.Array, train: bool) -> chex.Array:
    kwargs = {'axis_name': self.axis_name, 'dtype': self.dtype}
    out = layers.conv(
      self.features, 3, self.stride, dtype=self.dtype, name='conv1'
    )(x)
    out = nn.relu(layers.norm(train, **kwargs, name='norm1')(out))
    out = layers.conv(self.features, 3, dtype=self.dtype, name='conv2')(out)
    out = layers.norm(train, **kwargs, name='norm2')(out)
    if x.shape[-1] != self.features or self.stride != 1:
      x = layers.conv(
        self.features, 1, self.stride, dtype=self.dtype, name='shortcut'
      )(x)
      x = layers.norm(train, **kwargs, name='shortcut_norm')(x)
    return nn.relu(x + out)


class PreActUnit(nn.Module):
  """Basic unit of PreActResNet: norm, ReLU, conv, norm, ReLU, conv, add."""

  features: int
  stride: int
  dtype: chex.ArrayDType | None
  axis_name: str | None

  @nn.compact
  def __call__(self, x: chex.Array, train: bool) -> chex.Array:
    kwargs = {'axis_name': self.axis_name, 'dtype': self.dtype}
    out = nn.relu(layers.norm(train, **kwargs, name='norm1')(x))
    if x.shape[-1] != self.features or self.stride != 1:
      x = layers.conv(
        self.features, 1, self.stride, dtype=self.dtype, name='shortcut'
      )(out)
    out = layers.conv(
      self.features, 3, self.stride, dtype=self.dtype, name='conv1'
    )(out)
    out = nn.relu(layers.norm(train, **kwargs, name='norm2')(out))
    out = layers.conv(self.features, 3, dtype=self.dtype, name='conv2')(out)
    return x + out


class Blocks(nn.Module):
  """A run of blocks: [B, H, W, C] -> [B, H', W', F]."""

  preact: bool
  names: tuple[str, ...]
  dtype: chex.ArrayDType | None
  axis_name: str | None

  @nn.compact
  def __call__(self, x: chex.Array, train: bool) -> chex.Array:
    unit_module = PreActUnit if self.preact else PostActUnit
    for name in self.names:
      index = BLOCKS.index(name)
      for unit in range(UNITS_PER_BLOCK):
        x = unit_module(
          features=64 * 2**index,
          stride=2 if index and not unit else 1,
          dtype=self.dtype,
          axis_name=self.axis_name,
          name=f'{name}_unit{unit + 1}',
        )(x, train)
    return x


class Trunk(nn.Module):
  """First convolution and the blocks up to the attach point."""

  backbone: 'ResNet18'
  attach: str
  dtype: chex.ArrayDType | None = None
  axis_name: str | None = None

  @nn.compact
  def __call__(self, images: chex.Array, train: bool) -> chex.Array:
    x = layers.conv(64, 3, dtype=self.dtype, name='conv')(images)
    if not self.backbone.preact:
      x = layers.norm(
        train, axis_name=self.axis_name, dtype=self.dtype, name='norm'
      )(x)
      x = nn.relu(x)
    names = BLOCKS[: BLOCKS.index(self.attach) + 1]
    return Blocks(
      self.backbone.preact, names, self.dtype, self.axis_name, name='blocks'
    )(x, train)


class Head(nn.Module):
  """The blocks after the attach point, and the classifier."""

  backbone: 'ResNet18'
  attach: str
  num_classes: int
  dtype: chex.ArrayDType | None = None
  axis_name: str | None = None

  @nn.compact
  def __call__(self, features: chex.Array, train: bool) -> chex.Array:
    names = BLOCKS[BLOCKS.index(self.attach) + 1 :]
    x = Blocks(
      self.backbone.preact, names, self.dtype, self.axis_name, name='blocks'
    )(features, train)
    if self.backbone.preact:
      x = layers.norm(
        train, axis_name=self.axis_name, dtype=self.dtype, name='norm'
      )(x)
      x = nn.relu(x)
    return layers.Classifier(self.num_classes, name='classifier')(x)


@dataclasses.dataclass(frozen=True)
class ResNet18:
  """ResNet-18 or, with `preact`, PreActResNet-18, as module factories."""

  preact: bool = False

  attach_points = ('block1', 'block2', 'block3')
  trunk = Trunk
  head = Head
