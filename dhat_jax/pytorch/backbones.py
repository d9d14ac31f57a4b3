"""The backbones in PyTorch, whole or after an attach point.

`dhat_jax.pytorch.networks` makes DH-AT's network of them. Their modules have
the published names; see `dhat_jax.pytorch.names`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from dhat_jax.models.resnet import ResNet18
from dhat_jax.models.wide_resnet import DeepMindWideResNet, WideResNet

_ACTIVATIONS = {'relu': F.relu, 'silu': F.silu}


def _conv(inputs: int, features: int, size: int, stride: int = 1) -> nn.Conv2d:
  return nn.Conv2d(
    inputs, features, size, stride, padding=size // 2, bias=False
  )


class _WideUnit(nn.Module):
  """Unit of WideResNet, with a 1x1 shortcut where the width changes."""

  def __init__(self, act: Callable, inputs: int, features: int, stride: int):
    super().__init__()
    self.act = act
    self.bn1 = nn.BatchNorm2d(inputs)
    self.conv1 = _conv(inputs, features, 3, stride)
    self.bn2 = nn.BatchNorm2d(features)
    self.conv2 = _conv(features, features, 3)
    if inputs != features:
      self.convShortcut = _conv(inputs, features, 1, stride)

  def forward(self, x):
    out = self.act(self.bn1(x))
    if hasattr(self, 'convShortcut'):
      x = self.convShortcut(out)
    return x + self.conv2(self.act(self.bn2(self.conv1(out))))


class _DeepMindUnit(nn.Module):
  """Unit of DeepMind's WideResNet, with TensorFlow's padding at stride 2."""

  def __init__(
    self,
    act: Callable,
    momentum: float,
    inputs: int,
    features: int,
    stride: int,
  ):
    super().__init__()
    self.act = act
    self.batchnorm_0 = nn.BatchNorm2d(inputs, momentum=momentum)
    self.conv_0 = _conv(inputs, features, 3, stride)
    self.batchnorm_1 = nn.BatchNorm2d(features, momentum=momentum)
    self.conv_1 = _conv(features, features, 3)
    if stride == 2:
      # Left, right, top, bottom.
      self.pad = nn.ZeroPad2d((0, 1, 0, 1))
      self.conv_0.padding = (0, 0)
    else:
      self.pad = nn.Identity()
    if inputs != features:
      self.shortcut = _conv(inputs, features, 1, stride)

  def forward(self, x):
    out = self.act(self.batchnorm_0(x))
    if hasattr(self, 'shortcut'):
      x = self.shortcut(out)
    out = self.act(self.batchnorm_1(self.conv_0(self.pad(out))))
    return x + self.conv_1(out)


class _PostActUnit(nn.Module):
  """Basic unit of ResNet."""

  def __init__(self, act: Callable, inputs: int, features: int, stride: int):
    super().__init__()
    self.act = act
    self.conv1 = _conv(inputs, features, 3, stride)
    self.bn1 = nn.BatchNorm2d(features)
    self.conv2 = _conv(features, features, 3)
    self.bn2 = nn.BatchNorm2d(features)
    self.shortcut = nn.Sequential()
    if inputs != features or stride != 1:
      self.shortcut.append(_conv(inputs, features, 1, stride))
      self.shortcut.append(nn.BatchNorm2d(features))

  def forward(self, x):
    out = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
    return self.act(out + self.shortcut(x))


class _PreActUnit(nn.Module):
  """Basic unit of PreActResNet."""

  def __init__(self, act: Callable, inputs: int, features: int, stride: int):
    super().__init__()
    self.act = act
    self.bn1 = nn.BatchNorm2d(inputs)
    self.conv1 = _conv(inputs, features, 3, stride)
    self.bn2 = nn.BatchNorm2d(features)
    self.conv2 = _conv(features, features, 3)
    if inputs != features or stride != 1:
      self.shortcut = nn.Sequential(_conv(inputs, features, 1, stride))

  def forward(self, x):
    out = self.act(self.bn1(x))
    if hasattr(self, 'shortcut'):
      x = self.shortcut(out)
    return x + self.conv2(self.act(self.bn2(self.conv1(out))))


class _Named(nn.Module):
  """A block of WideResNet: its units under the name that the keys have."""

  def __init__(self, name: str, units: nn.Sequential):
    super().__init__()
    self.name = name
    setattr(self, name, units)

  def forward(self, x):
    return getattr(self, self.name)(x)


class Network(nn.Module):
  """A backbone, or the part of it after an attach point.

  Subclasses set `names`, the dotted names of the blocks' modules, in order, and
  have two methods: `stem`, images to features, and `classify`, the last
  block's features to logits.
  """

  names: tuple[str, ...]

  def __init__(self, backbone: Any):
    super().__init__()
    self.act = _ACTIVATIONS[backbone.activation]

  def normalize(self, mean: Sequence[float], std: Sequence[float]):
    """Puts a normalisation per channel in front, without keys."""
    for name, values in (('mean', mean), ('std', std)):
      values = torch.tensor(values).reshape(-1, 1, 1)
      self.register_buffer(name, values, persistent=False)

  def trunk(self, images, count: int):
    """First convolution and the first `count` blocks."""
    if hasattr(self, 'mean'):
      images = (images - self.mean) / self.std
    x = self.stem(images)
    for name in self.names[:count]:
      x = self.get_submodule(name)(x)
    return x

  def head(self, x, count: int):
    """The blocks after the first `count` ones, and the classifier."""
    for name in self.names[count:]:
      x = self.get_submodule(name)(x)
    return self.classify(x)

  def forward(self, images):
    """Computes the logits [B, K] of images [B, C, H, W] in [0, 1]."""
    return self.head(self.trunk(images, 0), 0)


def _units(
  make_unit: Callable[[int, int, int], nn.Module],
  backbone: Any,
  stem: int,
  after: int,
) -> Iterator[tuple[int, nn.Sequential]]:
  """Yields (index of a block, its units) for the blocks from `after` on.

  Args:
    make_unit: (input channels, channels, stride) -> module.
    backbone: the network's.
    stem: channels of the first convolution.
    after: how many blocks belong to another network.
  """
  for index in range(after, len(backbone.block_names)):
    features = backbone.width(index)
    inputs = backbone.width(index - 1) if index else stem
    first = make_unit(inputs, features, 2 if index else 1)
    rest = range(backbone.units_per_block - 1)
    yield (
      index,
      nn.Sequential(first, *(make_unit(features, features, 1) for _ in rest)),
    )


class _WideResNet(Network):
  """WideResNet; with `after` > 0 only what follows that many blocks."""

  names = ('block1', 'block2', 'block3')

  def __init__(self, backbone: Any, classes: int, channels: int, after: int):
    super().__init__(backbone)

    def make_unit(*sizes):
      return _WideUnit(self.act, *sizes)

    if not after:
      self.conv1 = _conv(channels, 16, 3)
    for index, units in _units(make_unit, backbone, 16, after):
      setattr(self, self.names[index], _Named('layer', units))
    self.bn1 = nn.BatchNorm2d(backbone.width(2))
    self.fc = nn.Linear(backbone.width(2), classes)

  def stem(self, images):
    return self.conv1(images)

  def classify(self, x):
    return self.fc(self.act(self.bn1(x)).mean(dim=(2, 3)))


class _DeepMindWideResNet(Network):
  """DeepMind's WideResNet, or what follows `after` blocks."""

  names = ('layer.0', 'layer.1', 'layer.2')

  def __init__(self, backbone: Any, classes: int, channels: int, after: int):
    super().__init__(backbone)
    momentum = 1 - backbone.momentum

    def make_unit(*sizes):
      return _DeepMindUnit(self.act, momentum, *sizes)

    if not after:
      self.init_conv = _conv(channels, 16, 3)
    # A dict: the blocks keep their numbers where the first ones are missing.
    self.layer = nn.ModuleDict(
      {
        str(index): _Named('block', units)
        for index, units in _units(make_unit, backbone, 16, after)
      }
    )
    self.batchnorm = nn.BatchNorm2d(backbone.width(2), momentum=momentum)
    self.logits = nn.Linear(backbone.width(2), classes)

  def stem(self, images):
    return self.init_conv(images)

  def classify(self, x):
    return self.logits(self.act(self.batchnorm(x)).mean(dim=(2, 3)))


class _ResNet18(Network):
  """ResNet-18 or PreActResNet-18, or what follows `after` blocks."""

  names = ('layer1', 'layer2', 'layer3', 'layer4')

  def __init__(self, backbone: Any, classes: int, channels: int, after: int):
    super().__init__(backbone)
    self.preact = backbone.preact
    unit = _PreActUnit if self.preact else _PostActUnit

    def make_unit(*sizes):
      return unit(self.act, *sizes)

    if not after:
      self.conv1 = _conv(channels, 64, 3)
      if not self.preact:
        self.bn1 = nn.BatchNorm2d(64)
    for index, units in _units(make_unit, backbone, 64, after):
      setattr(self, self.names[index], units)
    if self.preact:
      self.bn = nn.BatchNorm2d(512)
    self.linear = nn.Linear(512, classes)

  def stem(self, images):
    x = self.conv1(images)
    return x if self.preact else self.act(self.bn1(x))

  def classify(self, x):
    if self.preact:
      x = self.act(self.bn(x))
    return self.linear(x.mean(dim=(2, 3)))


NETWORKS = {
  WideResNet: _WideResNet,
  DeepMindWideResNet: _DeepMindWideResNet,
  ResNet18: _ResNet18,
}
