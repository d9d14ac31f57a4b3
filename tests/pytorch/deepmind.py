"""DeepMind's WideResNet, written out for the tests from its description.

The names of the attributes, and so the keys, are those of RobustBench's
`DMWideResNet`. Nothing here is shared with `dhat_jax.pytorch`.
"""

import torch
import torch.nn.functional as F
from torch import nn


def conv(inputs, outputs, size, stride=1, padding=0):
  return nn.Conv2d(inputs, outputs, size, stride, padding, bias=False)


class Block(nn.Module):
  def __init__(self, inputs, outputs, stride):
    super().__init__()
    self.stride = stride
    self.batchnorm_0 = nn.BatchNorm2d(inputs)
    self.conv_0 = conv(inputs, outputs, 3, stride)
    self.batchnorm_1 = nn.BatchNorm2d(outputs)
    self.conv_1 = conv(outputs, outputs, 3, padding=1)
    self.widens = inputs != outputs
    if self.widens:
      self.shortcut = conv(inputs, outputs, 1, stride)

  def forward(self, x):
    y = self.batchnorm_0(x)
    y = y * torch.sigmoid(y)
    rest = self.shortcut(y) if self.widens else x
    # One zero on each side; at stride 2 none on the left and on top.
    before = 1 if self.stride == 1 else 0
    y = self.batchnorm_1(self.conv_0(F.pad(y, (before, 1, before, 1))))
    return rest + self.conv_1(y * torch.sigmoid(y))


class Group(nn.Module):
  def __init__(self, count, inputs, outputs, stride):
    super().__init__()
    self.block = nn.Sequential(
      Block(inputs, outputs, stride),
      *(Block(outputs, outputs, 1) for _ in range(count - 1)),
    )

  def forward(self, x):
    return self.block(x)


class DMWideResNet(nn.Module):
  """Images [B, C, H, W] in [0, 1] -> logits [B, K]."""

  def __init__(self, depth, width, num_classes, mean, std):
    super().__init__()
    shape = (len(mean), 1, 1)
    self.register_buffer('mean', torch.tensor(mean).view(shape), False)
    self.register_buffer('std', torch.tensor(std).view(shape), False)
    channels = [16, 16 * width, 32 * width, 64 * width]
    self.init_conv = conv(len(mean), 16, 3, padding=1)
    self.layer = nn.Sequential(
      *(
        Group((depth - 4) // 6, *channels[index : index + 2], stride)
        for index, stride in enumerate((1, 2, 2))
      )
    )
    self.batchnorm = nn.BatchNorm2d(channels[3])
    self.logits = nn.Linear(channels[3], num_classes)

  def forward(self, images):
    x = self.layer(self.init_conv((images - self.mean) / self.std))
    x = self.batchnorm(x)
    return self.logits((x * torch.sigmoid(x)).mean(dim=(2, 3)))
