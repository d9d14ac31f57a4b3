"""The networks of this project in PyTorch, with the published key names.

Tests compare the JAX networks with them. They also load a converted state dict
(`load_state_dict(..., strict=True)`) wherever a PyTorch module is needed. They
need PyTorch, the extra [oracle].

Differs from the published code of DH-AT in four points. The trunk runs once.
The pooling of the aggregator is repaired (2 channels, as in
`dhat_jax.models.aggregator`). Images may have any size. The pairs of classes
are gathered, not copied in a loop.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from dhat_jax.models import outputs as output_table
from dhat_jax.models.aggregator import CHANNELS, HIDDEN, POOL, class_pairs
from dhat_jax.models.dual_head import DualHeadNet
from dhat_jax.models.outputs import Outputs
from dhat_jax.models.resnet import ResNet18
from dhat_jax.models.wide_resnet import WideResNet
from dhat_jax.pytorch import names


def _conv(inputs: int, features: int, size: int, stride: int = 1) -> nn.Conv2d:
  return nn.Conv2d(
    inputs, features, size, stride, padding=size // 2, bias=False
  )


class _WideUnit(nn.Module):
  """Unit of WideResNet, with a 1x1 shortcut where the width changes."""

  def __init__(self, inputs: int, features: int, stride: int):
    super().__init__()
    self.bn1 = nn.BatchNorm2d(inputs)
    self.conv1 = _conv(inputs, features, 3, stride)
    self.bn2 = nn.BatchNorm2d(features)
    self.conv2 = _conv(features, features, 3)
    if inputs != features:
      self.convShortcut = _conv(inputs, features, 1, stride)

  def forward(self, x):
    out = F.relu(self.bn1(x))
    if hasattr(self, 'convShortcut'):
      x = self.convShortcut(out)
    return x + self.conv2(F.relu(self.bn2(self.conv1(out))))


class _PostActUnit(nn.Module):
  """Basic unit of ResNet."""

  def __init__(self, inputs: int, features: int, stride: int):
    super().__init__()
    self.conv1 = _conv(inputs, features, 3, stride)
    self.bn1 = nn.BatchNorm2d(features)
    self.conv2 = _conv(features, features, 3)
    self.bn2 = nn.BatchNorm2d(features)
    self.shortcut = nn.Sequential()
    if inputs != features or stride != 1:
      self.shortcut.append(_conv(inputs, features, 1, stride))
      self.shortcut.append(nn.BatchNorm2d(features))

  def forward(self, x):
    out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
    return F.relu(out + self.shortcut(x))


class _PreActUnit(nn.Module):
  """Basic unit of PreActResNet."""

  def __init__(self, inputs: int, features: int, stride: int):
    super().__init__()
    self.bn1 = nn.BatchNorm2d(inputs)
    self.conv1 = _conv(inputs, features, 3, stride)
    self.bn2 = nn.BatchNorm2d(features)
    self.conv2 = _conv(features, features, 3)
    if inputs != features or stride != 1:
      self.shortcut = nn.Sequential(_conv(inputs, features, 1, stride))

  def forward(self, x):
    out = F.relu(self.bn1(x))
    if hasattr(self, 'shortcut'):
      x = self.shortcut(out)
    return x + self.conv2(F.relu(self.bn2(self.conv1(out))))


class _WideBlock(nn.Module):
  """A block of WideResNet, whose units the published keys call `layer`."""

  def __init__(self, *units: nn.Module):
    super().__init__()
    self.layer = nn.Sequential(*units)

  def forward(self, x):
    return self.layer(x)


class _Network(nn.Module):
  """A backbone, or the part of it after an attach point.

  Subclasses set `names`, the names of the blocks' modules, in order.
  """

  names: tuple[str, ...]

  def normalize(self, mean: Sequence[float], std: Sequence[float]):
    """Puts a normalisation per channel in front, without keys."""
    for name, values in (('mean', mean), ('std', std)):
      values = torch.tensor(values).reshape(-1, 1, 1)
      self.register_buffer(name, values, persistent=False)

  def _add_blocks(
    self,
    make_block: Callable[[int, int, int], nn.Module],
    stem: int,
    widths: Sequence[int],
    after: int,
  ):
    """Adds the blocks after the first `after` ones.

    Args:
      make_block: (input channels, channels, stride) -> module.
      stem: channels of the first convolution.
      widths: channels of each block.
      after: how many blocks belong to another network.
    """
    for index in range(after, len(widths)):
      inputs = widths[index - 1] if index else stem
      block = make_block(inputs, widths[index], 2 if index else 1)
      setattr(self, self.names[index], block)

  def stem(self, images):
    return self.conv1(images)

  def trunk(self, images, count: int):
    """First convolution and the first `count` blocks."""
    if hasattr(self, 'mean'):
      images = (images - self.mean) / self.std
    x = self.stem(images)
    for name in self.names[:count]:
      x = getattr(self, name)(x)
    return x

  def head(self, x, count: int):
    """The blocks after the first `count` ones, and the classifier."""
    for name in self.names[count:]:
      x = getattr(self, name)(x)
    return self.classify(x)

  def forward(self, images):
    return self.head(self.trunk(images, 0), 0)


class _WideResNet(_Network):
  """WideResNet; with `after` > 0 only what follows that many blocks."""

  names = ('block1', 'block2', 'block3')

  def __init__(self, backbone: Any, classes: int, channels: int, after: int):
    super().__init__()
    units = (backbone.depth - 4) // 6
    widths = [backbone.width(block) for block in range(3)]

    def block(inputs, features, stride):
      first = _WideUnit(inputs, features, stride)
      rest = (_WideUnit(features, features, 1) for _ in range(units - 1))
      return _WideBlock(first, *rest)

    if not after:
      self.conv1 = _conv(channels, 16, 3)
    self._add_blocks(block, 16, widths, after)
    self.bn1 = nn.BatchNorm2d(widths[-1])
    self.fc = nn.Linear(widths[-1], classes)

  def classify(self, x):
    return self.fc(F.relu(self.bn1(x)).mean(dim=(2, 3)))


class _ResNet18(_Network):
  """ResNet-18 or PreActResNet-18, or what follows `after` blocks."""

  names = ('layer1', 'layer2', 'layer3', 'layer4')

  def __init__(self, backbone: Any, classes: int, channels: int, after: int):
    super().__init__()
    self.preact = backbone.preact
    unit = _PreActUnit if self.preact else _PostActUnit

    def block(inputs, features, stride):
      return nn.Sequential(
        unit(inputs, features, stride), unit(features, features, 1)
      )

    if not after:
      self.conv1 = _conv(channels, 64, 3)
      if not self.preact:
        self.bn1 = nn.BatchNorm2d(64)
    self._add_blocks(block, 64, [64, 128, 256, 512], after)
    if self.preact:
      self.bn = nn.BatchNorm2d(512)
    self.linear = nn.Linear(512, classes)

  def stem(self, images):
    x = self.conv1(images)
    return x if self.preact else F.relu(self.bn1(x))

  def classify(self, x):
    if self.preact:
      x = F.relu(self.bn(x))
    return self.linear(x.mean(dim=(2, 3)))


class _ClassFeatures(nn.Module):
  """The first layers of both learned aggregators: [B, 2, K] -> [B, 8, K]."""

  def __init__(self):
    super().__init__()
    self.conv1 = nn.Conv1d(2, HIDDEN, 1)
    self.bn1 = nn.BatchNorm1d(HIDDEN)

  def features(self, logits):
    return F.relu(self.bn1(self.conv1(logits)))


class _Pairwise(_ClassFeatures):
  """The published aggregator, repaired."""

  def __init__(self, classes: int):
    super().__init__()
    self.conv2 = nn.Conv1d(2, CHANNELS, 1)
    self.bn2 = nn.BatchNorm1d(CHANNELS)
    pairs = torch.from_numpy(class_pairs(classes))  # [P, 2]
    self.register_buffer('pairs', pairs, persistent=False)
    positions = HIDDEN * len(pairs)
    self.fc = nn.Linear(positions * CHANNELS // POOL, classes)

  def forward(self, logits):
    x = self.features(logits)[:, :, self.pairs]  # [B, 8, P, 2]
    x = x.permute(0, 3, 2, 1).flatten(start_dim=2)  # [B, 2, 8P]
    x = self.bn2(self.conv2(x)).transpose(1, 2)  # [B, 8P, 16]
    return self.fc(F.avg_pool1d(x, POOL).flatten(start_dim=1))


class _Classwise(_ClassFeatures):
  """The collapsed form: one hidden layer per class."""

  def __init__(self, classes: int):
    super().__init__()
    self.fc = nn.Linear(HIDDEN * classes, classes)

  def forward(self, logits):
    return self.fc(self.features(logits).transpose(1, 2).flatten(start_dim=1))


class _Mean(nn.Module):
  """The average of the heads' logits."""

  def __init__(self, classes: int):
    super().__init__()
    del classes

  def forward(self, logits):
    return logits.mean(dim=1)


_AGGREGATORS = {'pairwise': _Pairwise, 'classwise': _Classwise, 'mean': _Mean}


class _DualHead(nn.Module):
  """DH-AT's network: `WRN1` with the trunk, `WRN2`, ..., `cnn`."""

  def __init__(self, network: type, model: DualHeadNet, channels: int):
    super().__init__()
    self.count = model.backbone.attach_points.index(model.attach) + 1
    self.model_outputs = model.outputs
    prefixes = names.prefixes(model)
    self.first = prefixes['trunk'].removesuffix('.')
    self.heads = {
      output: prefixes[part].removesuffix('.')
      for output, part in output_table.heads().items()
      if part in prefixes
    }
    for head in self.heads.values():
      after = 0 if head == self.first else self.count
      net = network(model.backbone, model.num_classes, channels, after=after)
      setattr(self, head, net)
    if 'aggregator' in prefixes:
      self.cnn = _AGGREGATORS[model.aggregator](model.num_classes)

  def outputs(self, images) -> Outputs:
    """Returns the logits of all the model's outputs."""
    features = getattr(self, self.first).trunk(images, self.count)
    logits = {
      output: getattr(self, head).head(features, self.count)
      for output, head in self.heads.items()
    }
    if hasattr(self, 'cnn'):
      inputs = output_table.OUTPUTS['aggregated'].aggregates
      stacked = torch.stack([logits[name] for name in inputs], dim=1)
      logits['aggregated'] = self.cnn(stacked)
    return Outputs(**{name: logits[name] for name in self.model_outputs})

  def forward(self, images):
    return self.outputs(images).select(self.model_outputs[-1])


_BACKBONES = {WideResNet: _WideResNet, ResNet18: _ResNet18}


def make_torch_network(
  model: DualHeadNet, *, image_channels: int = 3
) -> nn.Module:
  """Makes the PyTorch network of a `DualHeadNet`, freshly initialised.

  Args:
    model: the network.
    image_channels: of the images.

  Returns:
    A module: images [B, C, H, W] in [0, 1] -> logits [B, K] of the last of
    the model's outputs. With two heads it also has `outputs(images)`, which
    returns all of them. Its state dict has the keys of `dhat_jax.convert`,
    without the normalisation of the images.

  Raises:
    ValueError: a backbone or an aggregator that has no PyTorch names.
  """
  names.check_model(model)
  network = _BACKBONES[type(model.backbone)]
  if names.prefixes(model)['trunk'] == '':
    net = first = network(
      model.backbone, model.num_classes, image_channels, after=0
    )
  else:
    net = _DualHead(network, model, image_channels)
    first = getattr(net, net.first)
  if model.mean:
    first.normalize(model.mean, model.std)
  return net
