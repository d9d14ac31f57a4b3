"""The networks of this project in PyTorch, with the published key names.

Tests compare the JAX networks with them. They also load a converted state dict
(`load_state_dict(..., strict=True)`) wherever a PyTorch module is needed. They
need PyTorch, the extra [oracle].

Differs from the published code of DH-AT in four points. The trunk runs once.
The pooling of the aggregator is repaired (2 channels, as in
`dhat_jax.models.aggregator`). Images may have any size. The pairs of classes
are gathered, not copied in a loop.
"""

import torch
import torch.nn.functional as F
from torch import nn

from dhat_jax.models import outputs as output_table
from dhat_jax.models.aggregator import CHANNELS, HIDDEN, POOL, class_pairs
from dhat_jax.models.dual_head import DualHeadNet
from dhat_jax.models.outputs import Outputs
from dhat_jax.pytorch import backbones, names


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
  network = backbones.NETWORKS[type(model.backbone)]
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
