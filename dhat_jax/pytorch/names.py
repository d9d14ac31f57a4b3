"""What the arrays of our networks are called in PyTorch, and their layouts.

Key names, as published:
  - WideResNet, as in TRADES and in DH-AT's code: conv1, block<i>.layer.<j>
    with bn1, conv1, bn2, conv2 and convShortcut, bn1, fc.
  - ResNet-18 and PreActResNet-18, as CIFAR code commonly has them: conv1,
    layer<i>.<j> with conv1, bn1, conv2, bn2, shortcut.0 and shortcut.1, linear;
    ResNet-18 has a bn1 behind conv1, PreActResNet-18 a `bn` before the
    pooling, which adversarial training code adds.
  - DH-AT: `WRN1.` trunk and main head as one whole network, `WRN2.` the
    second head (the blocks behind the attach point, bn1, fc), `cnn.` the
    aggregator with conv1, bn1, conv2, bn2, fc. Its linear layer reads
    [position, pooled channel], as ours does. The published code knows
    WideResNet, block1 and the pairwise aggregator only: with a ResNet, another
    attach point or `classwise` (conv1, bn1, fc) the names are by analogy.
"""

import dataclasses
import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dhat_jax.models import outputs as output_table
from dhat_jax.models.dual_head import DualHeadNet
from dhat_jax.models.resnet import ResNet18
from dhat_jax.models.wide_resnet import WideResNet
from dhat_jax.runtime import streams

_logger = logging.getLogger(__name__)

# Of the module of an aggregator; others than these have no PyTorch names.
_AGGREGATORS = ('pairwise', 'classwise', 'mean')
_AGGREGATOR_NAMES = {
  'features/conv': 'conv1',
  'features/norm': 'bn1',
  'conv': 'conv2',
  'norm': 'bn2',
  'dense': 'fc',
}
_UNIT_NAMES = {
  'conv1': 'conv1',
  'conv2': 'conv2',
  'norm1': 'bn1',
  'norm2': 'bn2',
  'shortcut': 'shortcut.0',
  'shortcut_norm': 'shortcut.1',
}
_HEAD = re.compile(r'WRN[0-9]+')
_BLOCK_PATH = re.compile(r'blocks/block(\d+)_unit(\d+)/(\w+)')
COUNTER = '.num_batches_tracked'


@dataclasses.dataclass(frozen=True)
class Layout:
  """How an array's axes change: `axes` leads to PyTorch's order.

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
  """One array in both worlds: `path` and `shape` are Flax's."""

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
  """Returns {part: prefix of its keys}; all are '' where there is one head.

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


def _network_name(backbone: Any, part: str, module: str) -> str:
  """Returns PyTorch's name of a trunk's or a head's module."""
  wide = isinstance(backbone, WideResNet)
  if match := _BLOCK_PATH.fullmatch(module):
    block, unit, name = match.groups()
    if wide:
      name = 'convShortcut' if name == 'shortcut' else _UNIT_NAMES[name]
      return f'block{block}.layer.{int(unit) - 1}.{name}'
    return f'layer{block}.{int(unit) - 1}.{_UNIT_NAMES[name]}'
  return {
    'conv': 'conv1',
    'norm': 'bn1' if wide or part == 'trunk' else 'bn',
    'classifier/dense': 'fc' if wide else 'linear',
  }[module]


def _key_and_layout(
  model: DualHeadNet, prefix: str, path: tuple[str, ...], ndim: int
) -> tuple[str, Layout]:
  """Returns PyTorch's key of a Flax path (collection, part, ..., leaf)."""
  _, part, *modules, leaf = path
  module = '/'.join(modules)
  if part == 'aggregator':
    name = _AGGREGATOR_NAMES[module]
  else:
    name = _network_name(model.backbone, part, module)
  leaf_name = {'mean': 'running_mean', 'var': 'running_var', 'bias': 'bias'}
  key = f'{prefix}{name}.{leaf_name.get(leaf, "weight")}'
  if ndim == 1:
    return key, _VECTOR
  if ndim == 4:
    return key, _CONV
  return key, _CONV1D if module.endswith('conv') else _LINEAR


def check_model(model: DualHeadNet) -> None:
  """Raises a ValueError if a network's parts have no PyTorch names."""
  if not isinstance(model.backbone, WideResNet | ResNet18):
    raise ValueError(
      f'backbone: got {model.backbone!r}, which has no PyTorch names; choices '
      'are WideResNet and ResNet18'
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
    ValueError: a backbone or an aggregator whose PyTorch names are not known
      here.
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


def counters(entries: Mapping[str, Entry]) -> list[str]:
  """Returns the keys of batch norm's counters, which Flax does not have."""
  suffix = '.running_var'
  return [
    key.removesuffix(suffix) + COUNTER for key in entries if suffix in key
  ]


def check_state_dict(
  arrays: Mapping[str, np.ndarray], entries: Mapping[str, Entry]
) -> None:
  """Raises one ValueError that lists all missing, surplus, misshapen keys.

  Accepted though not used: batch norm's counters; copies of the trunk under
  `WRN2.` that equal the one under `WRN1.`; and, with a warning, `sub_block1`,
  which TRADES' published WideResNet stores but never runs.

  Args:
    arrays: {PyTorch's key: array}.
    entries: of the function `entries`.
  """
  copies = _trunk_copies(arrays, entries)
  unused = _unused_blocks(arrays, entries)
  if unused:
    _logger.warning(
      'left out, because the published network never runs it: sub_block1 '
      '(%d arrays)',
      len(unused),
    )
  ignored = {*copies, *unused, *counters(entries)}
  check_shapes(
    {key: a.shape for key, a in arrays.items() if key not in ignored},
    {key: entry.torch_shape for key, entry in entries.items()},
    wrong=[
      f'  surplus: {key}, which is not equal to the trunk in WRN1, and that is '
      'what feeds the second head'
      for key, same in copies.items()
      if not same
    ],
    hint=lambda: _hint(arrays.keys(), entries.keys()),
  )


def _other_heads(key: str, entries: Mapping[str, Entry]) -> list[str]:
  """Returns a key as it would be under the other heads' prefixes."""
  prefix, _, name = key.partition('.')
  heads = {other.partition('.')[0] for other in entries} - {prefix}
  return [f'{head}.{name}' for head in heads if _HEAD.fullmatch(head)]


def _trunk_copies(
  arrays: Mapping[str, np.ndarray], entries: Mapping[str, Entry]
) -> dict[str, bool]:
  """Finds the trunk's keys under other heads: {key: whether it is the same}."""
  trunk = {k: e for k, e in entries.items() if e.path[1] == 'trunk'}
  copies = {}
  for key in [*trunk, *counters(trunk)]:
    for copy in _other_heads(key, entries):
      if copy in arrays and copy not in entries:
        copies[copy] = key.endswith(COUNTER) or (
          key in arrays and np.array_equal(arrays[copy], arrays[key])
        )
  return copies


def _unused_blocks(
  arrays: Mapping[str, np.ndarray], entries: Mapping[str, Entry]
) -> set[str]:
  """Finds the keys of `sub_block1`, where they are shaped as `block1`'s."""
  shapes = {key: entry.torch_shape for key, entry in entries.items()}
  shapes |= dict.fromkeys(counters(entries), ())
  unused = set()
  for key, shape in shapes.items():
    if 'block1.' not in key:
      continue
    for name in (key, *_other_heads(key, entries)):
      name = name.replace('block1.', 'sub_block1.', 1)
      if name in arrays and arrays[name].shape == shape:
        unused.add(name)
  return unused


def check_shapes(
  got: Mapping[str, tuple[int, ...]],
  expected: Mapping[str, tuple[int, ...]],
  *,
  wrong: Sequence[str] = (),
  hint: Callable[[], str] = str,
) -> None:
  """Raises one ValueError that lists everything that does not fit.

  Args:
    got: {name: shape}.
    expected: {name: shape}.
    wrong: further lines of the error.
    hint: what to say at its end; called only if there is an error.
  """
  lines = [
    *(
      f'  missing: {key}, expected {tuple(expected[key])}'
      for key in sorted(expected.keys() - got.keys())
    ),
    *(
      f'  surplus: {key}, got {tuple(got[key])}'
      for key in sorted(got.keys() - expected.keys())
    ),
    *(
      f'  misshapen: {key}, got {tuple(got[key])}, '
      f'expected {tuple(expected[key])}'
      for key in sorted(got.keys() & expected.keys())
      if tuple(got[key]) != tuple(expected[key])
    ),
    *wrong,
  ]
  if lines:
    raise ValueError(
      f'{len(lines)} arrays do not fit the network:\n'
      + '\n'.join(lines)
      + hint()
    )


def _hint(arrays: Collection[str], expected: Collection[str]) -> str:
  """Says what the likely reason is, where there is one."""
  missing = set(expected) - set(arrays)
  dual, dual_expected = (
    any(key.startswith('WRN1.') for key in keys) for keys in (arrays, expected)
  )
  if arrays and dual != dual_expected:
    kinds = ('a network with one head', "DH-AT's network with two heads")
    return (
      f'\nThe state dict is of {kinds[dual]}, the model is '
      f"{kinds[dual_expected]}: config.stages=('main_head',) "
      'makes one head, all three make two.'
    )
  if missing and all(re.match(r'(WRN[0-9]+\.)?bn\.', key) for key in missing):
    return (
      '\nThis network has batch norm and ReLU before the pooling (bn.*), as '
      'adversarial training code has; the state dict is of the other '
      'PreActResNet-18, without them, which computes something else.'
    )
  return ''
