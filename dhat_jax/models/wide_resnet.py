"""WideResNets (Zagoruyko & Komodakis 2016), pre-activation.

`WideResNet` is the network of TRADES and DH-AT. A convolution 3 -> 16 is first.
block1, block2 and block3 have 16k, 32k and 64k channels and (depth - 4) / 6
units each; block2 and block3 have stride 2. Batch norm, ReLU, global average
pooling and a linear layer follow. There is no dropout. In a unit whose width
changes, batch norm and ReLU come before both the 3x3 convolution and the 1x1
shortcut.

`DeepMindWideResNet` is that of Gowal et al. (2020, arXiv 2010.03593). Rebuffi
et al. (2021), Gowal et al. (2021) and Wang et al. (2023) use it with generated
images. Its weights fit no `WideResNet`, and vice versa.
"""

import dataclasses
import functools
from collections.abc import Callable

import chex
from flax import linen as nn

from dhat_jax import arguments
from dhat_jax.models import layers


@dataclasses.dataclass(frozen=True)
class WideResNet:
  """WRN-depth-widen_factor; see `dhat_jax.models.backbones`.

  Attributes:
    depth: 6n + 4: 10, 16, 22, 28, 34, ...
    widen_factor: k >= 1, also a fraction; channels are rounded.
    activation: `relu` or `silu`.

  Raises:
    ValueError: invalid depth or width, or an unknown activation.
  """

  depth: int
  widen_factor: float
  activation: str = 'relu'

  block_names = ('block1', 'block2', 'block3')
  attach_points = ('block1', 'block2')

  def __post_init__(self):
    layers.check_activation(self.activation)
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
  def unit(self) -> Callable[..., nn.Module]:
    """Makes a unit; see `layers.Blocks`."""
    return functools.partial(layers.PreActUnit, activation=self.activation)

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
    """Computes the last batch norm and activation."""
    return layers.norm_activation(
      features, activation=self.activation, **options, name='norm'
    )


@dataclasses.dataclass(frozen=True)
class DeepMindWideResNet(WideResNet):
  """DeepMind's WRN-depth-widen_factor, with SiLU and TensorFlow's padding.

  Source: `DMWideResNet` of RobustBench; the training code is DM-Improves-AT's
  (Wang et al. 2023). The published networks normalise images inside; here the
  network does too, by the config's `model.mean` and `model.std`.

  Differs from `WideResNet` in three points. The activation is SiLU. The 3x3
  convolutions with stride 2 pad as TensorFlow's 'SAME': no row before and one
  after, so with columns. Batch norm's running statistics average over more
  steps. Odd sizes, which RobustBench's code cannot process, have one row on
  both sides, as in TensorFlow.

  Attributes:
    depth: 6n + 4: 10, 16, 22, 28, 34, ...
    widen_factor: k >= 1, also a fraction; channels are rounded.
    activation: `relu` or `silu`.
    momentum: share of the old running statistics in [0, 1). PyTorch writes one
      minus this: .01 in the training code. RobustBench's copy, which does not
      train, has PyTorch's default .1.

  Raises:
    ValueError: invalid depth, width or momentum, or an unknown activation.
  """

  activation: str = 'silu'
  momentum: float = 0.99

  def __post_init__(self):
    super().__post_init__()
    arguments.number('momentum', self.momentum, 0, below=1)

  @property
  def unit(self) -> Callable[..., nn.Module]:
    """Makes a unit; see `layers.Blocks`."""
    return functools.partial(
      layers.PreActUnit,
      activation=self.activation,
      momentum=self.momentum,
      same_padding=True,
    )

  def tail(self, features: chex.Array, **options) -> chex.Array:
    """Computes the last batch norm and activation."""
    return super().tail(features, momentum=self.momentum, **options)
