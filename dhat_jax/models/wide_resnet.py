"""WideResNet (Zagoruyko & Komodakis 2016), pre-activation.

This is the network of TRADES and DH-AT. It starts with a convolution 3 -> 16.
block1, block2 and block3 have 16k, 32k and 64k channels and (depth - 4) / 6
units each; block2 and block3 have stride 2. Batch norm, ReLU, global average
pooling and a linear layer follow. There is no dropout. In a unit whose width
changes, batch norm and ReLU come before both the 3x3 convolution and the 1x1
shortcut.
"""

import dataclasses

import chex

from dhat_jax.models import layers


@dataclasses.dataclass(frozen=True)
class WideResNet:
  """WRN-depth-widen_factor; see `dhat_jax.models.backbones`.

  Attributes:
    depth: 6n + 4: 10, 16, 22, 28, 34, ...
    widen_factor: k >= 1, also a fraction; channels are rounded.

  Raises:
    ValueError: invalid depth or width.
  """

  depth: int
  widen_factor: float

  block_names = ('block1', 'block2', 'block3')
  attach_points = ('block1', 'block2')
  unit = layers.PreActUnit

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

  @property
  def units_per_block(self) -> int:
    """The number of units of each block."""
    return (self.depth - 4) // 6

  def width(self, block: int) -> int:
    """Returns the channels of a block, counted from 0."""
    return round(16 * 2**block * self.widen_factor)

  def stem(
    self,
    images: chex.Array,
    *,
    train: bool,
    dtype: chex.ArrayDType | None,
    axis_name: str | None,
  ) -> chex.Array:
    """Computes the first convolution: [B, H, W, C] -> [B, H, W, 16]."""
    del train, axis_name
    return layers.conv(16, 3, dtype=dtype, name='conv')(images)

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
    """Computes the last batch norm and ReLU."""
    return layers.norm_relu(features, **options, name='norm')
