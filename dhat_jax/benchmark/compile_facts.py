"""What a compiled program does: types, layouts, loops, collectives, memory."""

import collections
import dataclasses
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from dhat_jax.benchmark import hlo

# Parts of the network that compute in float32 whatever its precision is.
FLOAT32_PARTS = ('aggregator', 'classifier')
_NAMES = 3  # names that a fact lists, those with most bytes
_MOVES = ('infeed', 'outfeed', 'send', 'recv')
_HOST_CALLS = ('callback', 'MoveToHost', 'MoveToDevice')


@dataclasses.dataclass(frozen=True)
class Convolution:
  """A convolution.

  Attributes:
    op_name: its place in the traced program.
    dtype: the widest of its operands.
    fastest: the dimension of its input that is contiguous in memory:
      'channels', 'batch' or 'positions'.
  """

  op_name: str
  dtype: str
  fastest: str


def all_reduces(program: hlo.Program) -> list[hlo.Instruction]:
  """Returns the sums over devices."""
  opcodes = ('all-reduce', 'all-reduce-start')
  return [each for each in program if each.opcode in opcodes]


def size(instruction: hlo.Instruction) -> int:
  """Returns the number of elements of an instruction's results."""
  return sum(shape.elements for shape in instruction.shapes)


def all_reduces_by_kind(
  program: hlo.Program, gradients: int | None
) -> dict[str, dict[str, int]]:
  """Returns {kind: {'number', 'bytes'}} of the sums over devices.

  Kinds are 'gradients', 'batch norm', and 'other' (what counts the examples).

  Args:
    program: parsed.
    gradients: number of elements of all gradients; None: there are none.
  """
  kinds: dict[str, dict[str, int]] = {}
  for each in all_reduces(program):
    if gradients is not None and size(each) >= gradients:
      kind = 'gradients'
    elif 'norm' in program.origin(each):
      kind = 'batch norm'
    else:
      kind = 'other'
    row = kinds.setdefault(kind, {'number': 0, 'bytes': 0})
    row['number'] += 1
    row['bytes'] += sum(shape.bytes for shape in each.shapes)
  return kinds


def convolutions(program: hlo.Program) -> list[Convolution]:
  """Returns all convolutions; matrix products are not among them."""
  return [
    Convolution(each.op_name, _dtype(program, each), _fastest(program, each))
    for each in program
    if _labels(each)
  ]


def _labels(instruction: hlo.Instruction) -> str:
  """Returns the input's dimensions, as 'b01f'; '' for what is no convolution.

  The TPU writes matrix products as convolutions without positions.
  """
  if instruction.opcode != 'convolution' and '$conv' not in instruction.target:
    return ''
  _, _, text = instruction.attributes.partition('dim_labels=')
  labels = text.partition('_')[0]
  return labels if '0' in labels else ''


def _dtype(program: hlo.Program, instruction: hlo.Instruction) -> str:
  shapes = program.operand_shapes(instruction)[:2] or instruction.shapes
  return max(shapes, key=lambda shape: hlo.ITEM_BYTES.get(shape.dtype, 0)).dtype


def _fastest(program: hlo.Program, instruction: hlo.Instruction) -> str:
  labels = _labels(instruction)
  (shape, *_) = program.operand_shapes(instruction) or instruction.shapes
  label = labels[shape.minor_to_major[0] if shape.minor_to_major else -1]
  # In the gradient of a kernel, batch and channels change places.
  if labels.startswith('f'):
    label = {'b': 'f', 'f': 'b'}.get(label, label)
  return {'b': 'batch', 'f': 'channels'}.get(label, 'positions')


def transfers(program: hlo.Program) -> list[str]:
  """Returns what moves data between device and host, by name."""
  return [
    each.name
    for each in program
    if each.opcode.removesuffix('-done') in _MOVES
    or any(word in each.target for word in _HOST_CALLS)
    or any(shape.space == hlo.HOST_MEMORY for shape in each.shapes)
  ]


def operations(program: hlo.Program) -> dict[str, int]:
  """Returns how many sorts, gathers, selections of the largest and loops."""
  counts = dict.fromkeys(('sorts', 'gathers', 'top_k', 'loops'), 0)
  kinds = {
    'sort': 'sorts',
    'gather': 'gathers',
    'topk': 'top_k',
    'while': 'loops',
  }
  for each in program:
    if each.opcode in kinds:
      counts[kinds[each.opcode]] += 1
    elif 'sort' in each.target.lower():
      counts['sorts'] += 1
    elif 'topk' in each.target.lower():
      counts['top_k'] += 1
  return counts


def traced_operations(text: str) -> dict[str, int]:
  """Returns how many of them a program has before it is optimised.

  Args:
    text: `lowered.as_text()`, in StableHLO; a function that is called several
      times counts once.
  """
  # Behind # are attributes.
  kinds = {
    'sorts': r'(?<!#)stablehlo\.sort\b',
    'gathers': r'(?<!#)stablehlo\.(?:dynamic_)?gather\b',
    'top_k': r'\bchlo\.top_k\b',
    'loops': r'\bstablehlo\.while\b',
  }
  return {
    kind: len(re.findall(pattern, text)) for kind, pattern in kinds.items()
  }


def float32_features(
  program: hlo.Program, images: tuple[int, ...]
) -> dict[str, Any]:
  """Returns the float32 arrays of features that are written to memory.

  Args:
    program: parsed.
    images: a device's [B, H, W, C]; features are [B, ...] and larger.

  Returns:
    {'number', 'bytes', 'names'}.
  """
  return _large(
    (each, shape)
    for each, _ in program.executed()
    for shape in each.shapes
    if shape.dtype == 'f32' and _is_of_features(shape, images)
  )


def _is_of_features(shape: hlo.Shape, images: tuple[int, ...]) -> bool:
  return (
    len(shape.dims) > 2
    and shape.dims[0] == images[0]
    and shape.elements > math.prod(images)
  )


def layout_changes(
  program: hlo.Program, images: tuple[int, ...]
) -> dict[str, Any]:
  """Returns transposes of features, and copies of them to another layout.

  Args:
    program: parsed.
    images: as in `float32_features`.

  Returns:
    {'number', 'bytes', 'names'}.
  """
  return _large(
    (each, each.shapes[0])
    for each, _ in program.executed()
    if each.shapes
    and _is_of_features(each.shapes[0], images)
    and _changes_layout(program, each)
  )


def _changes_layout(program: hlo.Program, instruction: hlo.Instruction) -> bool:
  if program.root_opcode(instruction) == 'transpose':
    return True
  if instruction.opcode not in ('copy', 'copy-start'):
    return False
  before = {
    shape.minor_to_major for shape in program.operand_shapes(instruction)
  }
  return instruction.shapes[0].minor_to_major not in before


def _large(found: Collection) -> dict[str, Any]:
  """Sums (instruction, shape) up."""
  sizes: collections.Counter = collections.Counter()
  number = 0
  for instruction, shape in found:
    number += 1
    sizes[short(instruction.op_name) or instruction.name] += shape.bytes
  names = [name for name, _ in sizes.most_common(_NAMES)]
  return {'number': number, 'bytes': sizes.total(), 'names': names}


def traffic(program: hlo.Program) -> int:
  """Returns bytes that kernels read and write in the device's main memory.

  Each kernel's operands and results count whole, those in loops as often as the
  loop runs, as far as that is known. What caches spare is not left out.
  """
  total = 0
  for each, times in program.executed():
    if each.opcode.endswith('-done'):
      continue
    moved = each.shapes
    if not each.opcode.endswith('-start'):  # an asynchronous copy moves once
      moved += program.operand_shapes(each)
    total += times * sum(shape.bytes for shape in moved if shape.space == 0)
  return total


def short(op_name: str) -> str:
  """Returns an op_name without what all have in common."""
  words = ('jit(_fun)', 'shard_map', 'closed_call', 'body')
  return '/'.join(word for word in op_name.split('/') if word not in words)


def memory(analysis: Any) -> dict[str, int]:
  """Returns bytes per device, of `compiled.memory_analysis()`.

  'total' is what has to lie in the device's memory at once.
  """
  sizes = {
    'arguments': analysis.argument_size_in_bytes,
    'temporaries': analysis.temp_size_in_bytes,
    'outputs': analysis.output_size_in_bytes,
    'donated': analysis.alias_size_in_bytes,
    'code': analysis.generated_code_size_in_bytes,
  }
  return {**sizes, 'total': sum(sizes.values()) - 2 * sizes['donated']}


def facts(
  text: str,
  *,
  images: tuple[int, ...],
  gradients: int | None,
  half_precision: bool,
) -> dict[str, Any]:
  """Returns what a program's text says, as JSON can hold it.

  Args:
    text: `compiled.as_text()`.
    images: the shape [B, H, W, C] of a device's images.
    gradients: elements of all gradients, or None.
    half_precision: whether it should be bfloat16: then 'float32_outside' lists
      the convolutions in float32 outside of `FLOAT32_PARTS`.
  """
  program = hlo.Program(text)
  found = convolutions(program)
  outside = [
    short(each.op_name)
    for each in found
    if half_precision
    and each.dtype == 'f32'
    and not any(part in each.op_name for part in FLOAT32_PARTS)
  ]
  return {
    'convolutions': {
      'number': len(found),
      'by_dtype': _counts(each.dtype for each in found),
      'by_fastest': _counts(each.fastest for each in found),
      'float32_outside': outside,
    },
    'all_reduces': all_reduces_by_kind(program, gradients),
    'transfers': transfers(program),
    **operations(program),
    'aliases': program.aliases,
    'float32_features': float32_features(program, images),
    'layout_changes': layout_changes(program, images),
    'traffic_bytes': traffic(program),
  }


def _counts(values: Collection[str]) -> Mapping[str, int]:
  return dict(collections.Counter(values).most_common())
