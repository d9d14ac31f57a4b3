"""Backbones by name, and the interface of a backbone.

A backbone is a frozen, hashable object that runs three sections of a network.
`dhat_jax.models.dual_head` builds the trunk and the heads from them:

    stem -> block1 | block2 -> block3 -> tail -> classifier
    trunk -------->| head ------------------------------->

A backbone of your own is one class, which a config names by
`model.backbone='mine'`:

    @backbones.register('mine')
    @dataclasses.dataclass(frozen=True)
    class Mine:
      block_names = ('block1', 'block2')
      attach_points = ('block1',)

      def stem(self, images, *, train, dtype, axis_name):
        return layers.conv(16, 3, dtype=dtype, name='conv')(images)

      def blocks(self, features, names, *, train, dtype, axis_name):
        ...

      def tail(self, features, *, train, dtype, axis_name):
        return features
"""

from typing import Any, Protocol

import chex

from dhat_jax.models.resnet import ResNet18
from dhat_jax.models.wide_resnet import DeepMindWideResNet, WideResNet
from dhat_jax.registry import Registry


class Backbone(Protocol):
  """The interface that `DualHeadNet` expects of a backbone.

  The three methods are called inside a Flax compact method. Their submodules
  belong to the caller, so their names are the paths of the variables:
  `name='conv'` in `stem` is `params/trunk/conv`. The names must be unique in a
  trunk and in a head. All methods take three keywords:

    train: normalise with the batch's statistics and update the running ones.
    dtype: compute dtype; None: that of the features.
    axis_name: mapped axis over which batch norm shares its statistics, or None.

  Attributes:
    block_names: all blocks, in order.
    attach_points: the blocks after which a second head may be attached.
  """

  block_names: tuple[str, ...]
  attach_points: tuple[str, ...]

  def stem(
    self,
    images: chex.Array,
    *,
    train: bool,
    dtype: chex.ArrayDType | None,
    axis_name: str | None,
  ) -> chex.Array:
    """Computes the layers before the blocks: [B, H, W, C] -> [B, H, W, F]."""

  def blocks(
    self,
    features: chex.Array,
    names: tuple[str, ...],
    *,
    train: bool,
    dtype: chex.ArrayDType | None,
    axis_name: str | None,
  ) -> chex.Array:
    """Runs the named blocks: [B, H, W, F] -> [B, H', W', F']."""

  def tail(
    self,
    features: chex.Array,
    *,
    train: bool,
    dtype: chex.ArrayDType | None,
    axis_name: str | None,
  ) -> chex.Array:
    """Computes the layers between the blocks and the pooling."""


BACKBONES = Registry('backbone')
register = BACKBONES.register

register('wrn<depth>_<widen_factor>')(WideResNet)
register('dm_wrn<depth>_<widen_factor>')(DeepMindWideResNet)


@register('resnet18')
def resnet18(*, activation: str = 'relu') -> ResNet18:
  """ResNet-18 with a 3x3 first convolution.

  Args:
    activation: `relu` or `silu`.
  """
  return ResNet18(activation=activation)


@register('preact_resnet18')
def preact_resnet18(*, activation: str = 'relu') -> ResNet18:
  """PreActResNet-18 with a 3x3 first convolution.

  Args:
    activation: `relu` or `silu`.
  """
  return ResNet18(preact=True, activation=activation)


def check(backbone: Any) -> None:
  """Raises a ValueError if an object is not a backbone; see `Backbone`."""
  needed = ('block_names', 'attach_points', 'stem', 'blocks', 'tail')
  missing = [name for name in needed if not hasattr(backbone, name)]
  if missing:
    raise ValueError(f'backbone: got {backbone!r}, which lacks {missing}')
  try:
    hash(backbone)
  except TypeError as error:
    raise ValueError(
      f'backbone: got {backbone!r}, expected a hashable object, as a frozen '
      f'dataclass is ({error})'
    ) from None
  surplus = set(backbone.attach_points) - set(backbone.block_names)
  if surplus:
    raise ValueError(
      f'backbone: got attach points {sorted(surplus)}, choices are '
      f'{tuple(backbone.block_names)}'
    )
