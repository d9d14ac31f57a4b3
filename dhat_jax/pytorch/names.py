"""Names and layouts of the networks' arrays in PyTorch.

Key names, as published:
  - WideResNet, as in TRADES and in DH-AT's code: conv1, block<i>.layer.<j>
    with bn1, conv1, bn2, conv2 and convShortcut, bn1, fc.
  - ResNet-18 and PreActResNet-18, as in common CIFAR code: conv1, layer<i>.<j>
    with conv1, bn1, conv2, bn2, shortcut.0 and shortcut.1, linear. ResNet-18
    has a bn1 after conv1. PreActResNet-18 has a `bn` before the pooling, which
    adversarial training code adds.
  - DeepMind's WideResNet, as in RobustBench: init_conv, layer.<i>.block.<j>
    with batchnorm_0, conv_0, batchnorm_1, conv_1 and shortcut, batchnorm,
    logits. Its blocks are counted from 0.
  - DH-AT: `WRN1.` is trunk and main head as one whole network. `WRN2.` is the
    second head (the blocks after the attach point, bn1, fc). `cnn.` is the
    aggregator with conv1, bn1, conv2, bn2, fc. Its linear layer reads
    [position, pooled channel], as ours does. The published code has WideResNet,
    block1 and the pairwise aggregator only. The names for another backbone,
    another attach point or `classwise` (conv1, bn1, fc) are by analogy.

An activation has no weights. So the keys are the same for ReLU and SiLU, and
the config says which it is.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from dhat_jax.models import outputs as output_table
from dhat_jax.models.dual_head import DualHeadNet
from dhat_jax.models.resnet import ResNet18
from dhat_jax.models.wide_resnet import DeepMindWideResNet, WideResNet
from dhat_jax.runtime import streams

# Of the module of an aggregator; others than these have no PyTorch names.
_AGGREGATORS = ('pairwise', 'classwise', 'mean')
_AGGREGATOR_NAMES = {
  'features/conv': 'conv1',
  'features/norm': 'bn1',
  'conv': 'conv2',
  'norm': 'bn2',
  'dense': 'fc',
}


@dataclasses.dataclass(frozen=True)
class Scheme:
  """PyTorch's names of a backbone's modules.

  Attributes:
    config: what the config calls the backbone.
    unit: name of a unit, with {block} (counted from 1), {index} (the same,
      counted from 0) and {unit} (counted from 0).
    in_unit: {our name of a unit's module: theirs}.
    outside: {our path of another module: theirs}; 'trunk/' or the like in front
      where the parts differ.
  """

  config: str
  unit: str
  in_unit: Mapping[str, str]
  outside: Mapping[str, str]

  def module(self, part: str, path: str) -> str:
    """Returns the name of a module of a trunk or head.

    Args:
      part: 'trunk', 'main_head', ...
      path: 'conv', 'blocks/block1_unit2/norm1', ...
    """
    if match := _BLOCK_PATH.fullmatch(path):
      block, unit = int(match[1]), int(match[2]) - 1
      prefix = self.unit.format(block=block, index=block - 1, unit=unit)
      return f'{prefix}.{self.in_unit[match[3]]}'
    return self.outside.get(f'{part}/{path}') or self.outside[path]


_BASIC_UNIT = {
  'conv1': 'conv1',
  'conv2': 'conv2',
  'norm1': 'bn1',
  'norm2': 'bn2',
}
SCHEMES = {
  WideResNet: Scheme(
    config='wrn<depth>_<widen_factor>',
    unit='block{block}.layer.{unit}',
    in_unit={**_BASIC_UNIT, 'shortcut': 'convShortcut'},
    outside={'conv': 'conv1', 'norm': 'bn1', 'classifier/dense': 'fc'},
  ),
  DeepMindWideResNet: Scheme(
    config='dm_wrn<depth>_<widen_factor>',
    unit='layer.{index}.block.{unit}',
    in_unit={
      'norm1': 'batchnorm_0',
      'conv1': 'conv_0',
      'norm2': 'batchnorm_1',
      'conv2': 'conv_1',
      'shortcut': 'shortcut',
    },
    outside={
      'conv': 'init_conv',
      'norm': 'batchnorm',
      'classifier/dense': 'logits',
    },
  ),
  ResNet18: Scheme(
    config='resnet18 or preact_resnet18',
    unit='layer{block}.{unit}',
    in_unit={
      **_BASIC_UNIT,
      'shortcut': 'shortcut.0',
      'shortcut_norm': 'shortcut.1',
    },
    outside={
      'conv': 'conv1',
      'trunk/norm': 'bn1',
      'norm': 'bn',
      'classifier/dense': 'linear',
    },
  ),
}
_BLOCK_PATH = re.compile(r'blocks/block(\d+)_unit(\d+)/(\w+)')
COUNTER = '.num_batches_tracked'


@dataclasses.dataclass(frozen=True)
class Layout:
  """How an array's axes change from Flax to PyTorch.

  Attributes:
    axes: permutation from Flax's order to PyTorch's.
    pointwise: whether PyTorch has a third axis of length 1 (Conv1d).
  """

  axes: tuple[int, ...]
  pointwise: bool = False

  def to_torch(self, array: np.ndarray) -> np.ndarray:
    """Reorders an array for PyTorch, as a view."""
    array = array.transpose(self.axes)
    return array[..., None] if self.pointwise else array

  def to_flax(self, array: np.ndarray) -> np.ndarray:
    """Inverts `to_torch`."""
    array = array[..., 0] if self.pointwise else array
    return array.transpose(np.argsort(self.axes))


_VECTOR = Layout((0,))
_CONV = Layout((3, 2, 0, 1))  # HWIO -> OIHW
_LINEAR = Layout((1, 0))
_CONV1D = Layout((1, 0), pointwise=True)


@dataclasses.dataclass(frozen=True)
class Entry:
  """One array in both libraries; `path` and `shape` are Flax's."""

  path: tuple[str, ...]
  shape: tuple[int, ...]
  layout: Layout

  @property
  def torch_shape(self) -> tuple[int, ...]:
    """The shape in PyTorch."""
    # Broadcast: an array of this shape without its memory.
    empty = np.broadcast_to(np.float32(0), self.shape)
    return self.layout.to_torch(empty).shape


def prefixes(model: DualHeadNet) -> dict[str, str]:
  """Returns {part: prefix of its keys}; all are '' if there is one head.

  Heads are numbered in the order of the output table: `WRN1.`, `WRN2.`, ...
  The trunk belongs to the network's first head.
  """
  numbered = {
    part: f'WRN{number}.'
    for number, part in enumerate(output_table.heads().values(), start=1)
  }
  heads = [part for part in model.parts if part in numbered]
  if len(heads) == 1:
    return {'trunk': '', heads[0]: ''}
  all_parts = {part: numbered.get(part, 'cnn.') for part in model.parts}
  return {**all_parts, 'trunk': numbered[heads[0]]}


def _key_and_layout(
  model: DualHeadNet, prefix: str, path: tuple[str, ...], ndim: int
) -> tuple[str, Layout]:
  """Returns PyTorch's key of a Flax path (collection, part, ..., leaf)."""
  _, part, *modules, leaf = path
  module = '/'.join(modules)
  if part == 'aggregator':
    name = _AGGREGATOR_NAMES[module]
  else:
    name = SCHEMES[type(model.backbone)].module(part, module)
  leaf_name = {'mean': 'running_mean', 'var': 'running_var', 'bias': 'bias'}
  key = f'{prefix}{name}.{leaf_name.get(leaf, "weight")}'
  if ndim == 1:
    return key, _VECTOR
  if ndim == 4:
    return key, _CONV
  return key, _CONV1D if module.endswith('conv') else _LINEAR


def check_model(model: DualHeadNet) -> None:
  """Raises a ValueError if a network's parts have no PyTorch names."""
  if type(model.backbone) not in SCHEMES:
    choices = ', '.join(backbone.__name__ for backbone in SCHEMES)
    raise ValueError(
      f'backbone: got {model.backbone!r}, which has no PyTorch names; choices '
      f'are {choices}'
    )
  if 'aggregator' in model.parts and model.aggregator not in _AGGREGATORS:
    raise ValueError(
      f'aggregator: got {model.aggregator!r}, which has no PyTorch names; '
      f'choices are {_AGGREGATORS}'
    )


def entries(model: DualHeadNet, image_channels: int) -> dict[str, Entry]:
  """Returns {PyTorch's key: entry} for all arrays of a network.

  Args:
    model: the network; with one head its keys have no prefix.
    image_channels: of the images.

  Raises:
    ValueError: a backbone or an aggregator without known PyTorch names.
  """
  check_model(model)
  shapes = jax.eval_shape(
    model.clone(axis_name=None).init,
    streams.key(0),
    # Nothing depends on height and width.
    jax.ShapeDtypeStruct((1, 32, 32, image_channels), jnp.float32),
  )
  prefix_of = prefixes(model)
  by_key = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
    path = tuple(part.key for part in path)
    key, layout = _key_and_layout(model, prefix_of[path[1]], path, leaf.ndim)
    by_key[key] = Entry(path, leaf.shape, layout)
  return by_key


def is_first_conv(key: str) -> bool:
  """Whether a key, with any prefix, is the weight of a first convolution."""
  names = {f'{scheme.outside["conv"]}.weight' for scheme in SCHEMES.values()}
  # Others of that name are inside of blocks.
  inside = any(name.startswith(('block', 'layer')) for name in key.split('.'))
  return not inside and '.'.join(key.split('.')[-2:]) in names


def named_backbone(keys: Collection[str]) -> type | None:
  """Returns the backbone whose names keys with any prefix have, if any."""
  for backbone, scheme in SCHEMES.items():
    ends = (
      f'{scheme.module("", "blocks/block3_unit1/conv1")}.weight',
      f'{scheme.module("", "classifier/dense")}.weight',
    )
    if all(any(f'.{key}'.endswith(f'.{end}') for key in keys) for end in ends):
      return backbone
  return None


def counters(entries: Mapping[str, Entry]) -> list[str]:
  """Returns the keys of batch norm's counters, which Flax does not have."""
  suffix = '.running_var'
  return [
    key.removesuffix(suffix) + COUNTER for key in entries if suffix in key
  ]
