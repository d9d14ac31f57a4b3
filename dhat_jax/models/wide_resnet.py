"""WideResNet (Zagoruyko & Komodakis 2016), pre-activation, in two parts.

The network of TRADES and of DH-AT: conv 3 -> 16; block1, block2 and block3
with 16k, 32k and 64k channels, (depth - 4) / 6 units each, block2 and block3
at stride 2; batch norm, ReLU, global average pooling, linear layer. No
dropout. In a unit whose width changes, batch norm and ReLU come before both
the 3x3 convolution and the 1x1 shortcut.
"""

import dataclasses

import chex
from flax import linen as nn

from dhat_jax.models import layers

BLOCKS = ('block1', 'block2', 'block3')


class Unit(nn.Module):
  """One pre-activation unit: [B, H, W, C] -> [B, H/stride, W/stride, F]."""

  features: int
  stride: int
  dtype: chex.ArrayDType | None
  axis_name: str | None

  @nn.compact
  def __call__(self, x: chex.Array, train: bool) -> chex.Array:
    kwargs = {'axis_name': self.axis_name, 'dtype': self.dtype}
    out = nn.relu(layers.norm(train, **kwargs, name='norm1')(x))
    if x.shape[-1] != self.features:
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
  """A run of blocks, each a chain of units.

  Attributes:
    backbone: depth and width.
    names: which of `BLOCKS`, in order.
  """

  backbone: 'WideResNet'
  names: tuple[str, ...]
  dtype: chex.ArrayDType | None
  axis_name: str | None

  @nn.compact
  def __call__(self, x: chex.Array, train: bool) -> chex.Array:
    for name in self.names:
      index = BLOCKS.index(name)
      for unit in range((self.backbone.depth - 4) // 6):
        x = Unit(
          features=self.backbone.width(index),
          stride=2 if index and not unit else 1,
          dtype=self.dtype,
          axis_name=self.axis_name,
          name=f'{name}_unit{unit + 1}',
        )(x, train)
    return x


class Trunk(nn.Module):
  """First convolution and the blocks up to the attach point."""

  backbone: 'WideResNet'
  attach: str
  dtype: chex.ArrayDType | None = None
  axis_name: str | None = None

  @nn.compact
  def __call__(self, images: chex.Array, train: bool) -> chex.Array:
    x = layers.conv(16, 3, dtype=self.dtype, name='conv')(images)
    names = BLOCKS[: BLOCKS.index(self.attach) + 1]
    return Blocks(
      self.backbone, names, self.dtype, self.axis_name, name='blocks'
    )(x, train)


class Head(nn.Module):
  """The blocks after the attach point, and the classifier."""

  backbone: 'WideResNet'
  attach: str
  num_classes: int
  dtype: chex.ArrayDType | None = None
  axis_name: str | None = None

  @nn.compact
  def __call__(self, features: chex.Array, train: bool) -> chex.Array:
    names = BLOCKS[BLOCKS.index(self.attach) + 1 :]
    x = Blocks(self.backbone, names, self.dtype, self.axis_name, name='blocks')(
      features, train
    )
    x = layers.norm(
      train, axis_name=self.axis_name, dtype=self.dtype, name='norm'
    )(x)
    return layers.Classifier(self.num_classes, name='classifier')(nn.relu(x))


@dataclasses.dataclass(frozen=True)
class WideResNet:
  """WRN-depth-widen_factor as a pair of module factories.

  Attributes:
    depth: 6n + 4: 10, 16, 22, 28, 34, ...
    widen_factor: k >= 1; a fraction too, its channels rounded.

  Raises:
    ValueError: no such depth or width.
  """

  depth: int
  widen_factor: float

  attach_points = ('block1', 'block2')
  trunk = Trunk
  head = Head

  def __post_init__(self):
    if self.depth < 10 or (self.depth - 4) % 6:
      raise ValueError(
        f'WideResNet depth: got {self.depth}, expected 6n + 4 with n >= 1 '
        '(10, 16, 22, 28, 34, ...)'
      )
    if self.widen_factor < 1:
      raise ValueError(
        f'WideResNet widen factor: got {self.widen_factor}, expected >= 1'
      )

  def width(self, block: int) -> int:
    """Returns the channels of a block, counted from 0."""
    return round(16 * 2**block * self.widen_factor)
