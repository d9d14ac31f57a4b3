"""An optimised program of XLA's, read from its text.

`compiled.as_text()` is parsed into instructions; what they say of layouts,
types, loops and collectives is read by `dhat_jax.benchmark.compile_facts`. The
text of XLA's compilers for CPU, GPU and TPU is understood.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

# Bytes of an element; what is not here (tokens, opaque values) takes none.
ITEM_BYTES = {
  **dict.fromkeys(('pred', 's8', 'u8', 'f8e4m3fn', 'f8e5m2'), 1),
  **dict.fromkeys(('s16', 'u16', 'f16', 'bf16'), 2),
  **dict.fromkeys(('s32', 'u32', 'f32'), 4),
  **dict.fromkeys(('s64', 'u64', 'f64', 'c64'), 8),
}
# Instructions that compute and move nothing.
FREE = (
  'parameter',
  'constant',
  'tuple',
  'get-tuple-element',
  'bitcast',
  'after-all',
  'partition-id',
  'replica-id',
  'iota',
)
HOST_MEMORY = 5  # the memory space of arrays that lie on the host

_SHAPE = re.compile(r'([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?')
_INSTRUCTION = re.compile(
  r'\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)', re.DOTALL
)
_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{')
_CALLED = re.compile(
  r'\b(calls|to_apply|body|condition|branch_computations|true_computation|'
  r'false_computation)=(\{[^}]*\}|%?[\w.\-]+)'
)


@dataclasses.dataclass(frozen=True)
class Shape:
  """An array's type.

  Attributes:
    dtype: as XLA names it: 'f32', 'bf16', ...
    dims: sizes.
    minor_to_major: the order of the dimensions in memory, fastest first; ()
      where the text does not say it.
    space: the memory that it lies in; 0: the device's main memory.
  """

  dtype: str
  dims: tuple[int, ...]
  minor_to_major: tuple[int, ...] = ()
  space: int = 0

  @property
  def elements(self) -> int:
    """Number of elements."""
    return math.prod(self.dims)

  @property
  def bytes(self) -> int:
    """Size without padding, in bytes."""
    return self.elements * ITEM_BYTES.get(self.dtype, 0)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One instruction.

  Attributes:
    name: unique in its computation.
    opcode: as XLA names it.
    shapes: of its results.
    arguments: the text between its parentheses.
    attributes: the rest of its line.
    computation: the name of what it belongs to.
    is_root: whether the computation returns it.
  """

  name: str
  opcode: str
  shapes: tuple[Shape, ...]
  arguments: str
  attributes: str
  computation: str
  is_root: bool = False

  @property
  def operands(self) -> tuple[str, ...]:
    """Names of what it reads, instructions of the same computation."""
    return tuple(re.findall(r'%([\w.\-]+)', self.arguments))

  @property
  def op_name(self) -> str:
    """The place in the traced Python program, '' where it is not known."""
    match = re.search(r'op_name="([^"]*)"', self.attributes)
    return match[1] if match else ''

  @property
  def target(self) -> str:
    """The function that a custom call calls, or ''."""
    match = re.search(r'custom_call_target="([^"]*)"', self.attributes)
    return match[1] if match else ''

  def called(self, *kinds: str) -> list[str]:
    """Returns the computations that it calls as body, condition, ..."""
    return [
      name
      for kind, names in _CALLED.findall(self.attributes)
      if kind in kinds
      for name in re.findall(r'[\w.\-]+', names)
    ]


def shapes(text: str) -> tuple[Shape, ...]:
  """Returns the arrays of a type, of a tuple all."""
  return tuple(_shape(match) for match in _SHAPE.finditer(text))


def _shape(match: re.Match) -> Shape:
  layout = match[3] or ''
  order, _, tiles = layout.partition(':')
  space = re.search(r'S\((\d+)\)', tiles)
  return Shape(
    dtype=match[1],
    dims=_integers(match[2]),
    minor_to_major=_integers(order),
    space=int(space[1]) if space else 0,
  )


def _integers(text: str) -> tuple[int, ...]:
  return tuple(int(n) for n in text.split(',') if n.strip().isdigit())


class Program:
  """A parsed program.

  Attributes:
    computations: {name: its instructions, by name}.
    entry: the name of the computation that runs first.
    aliases: number of results that take the place of an argument.
  """

  computations: Mapping[str, Mapping[str, Instruction]]
  entry: str
  aliases: int

  def __init__(self, text: str):
    """Parses the text.

    Raises:
      ValueError: no text of a program.
    """
    self.computations, self.entry = _parse(text)
    if not self.entry:
      raise ValueError(f'got {text[:40]!r}, expected the text of a program')
    self.aliases = len(
      re.findall(r'm(?:ay|ust)-alias', text.partition('\n')[0])
    )

  def __iter__(self) -> Iterator[Instruction]:
    """Yields all instructions, those inside fusions too."""
    for instructions in self.computations.values():
      yield from instructions.values()

  @functools.cached_property
  def times(self) -> dict[str, int]:
    """{computation that runs by itself: how often}.

    What fusions, reductions and sorts call is not among them. A loop whose
    number of steps is unknown counts as one step.
    """
    times: dict[str, int] = {}
    self._visit(self.entry, 1, times)
    return times

  def _visit(self, name: str, count: int, times: dict[str, int]) -> None:
    times[name] = times.get(name, 0) + count
    for instruction in self.computations.get(name, {}).values():
      inner = count * (self.steps(instruction) or 1)
      for called in _runs(instruction):
        self._visit(called, inner, times)

  def steps(self, loop: Instruction) -> int | None:
    """Returns how often a loop's body runs, or None.

    The compiler says it, or the condition is counter < constant; counters begin
    at 0.
    """
    match = re.search(r'known_trip_count[^\d}]*(\d+)', loop.attributes)
    if match:
      return int(match[1])
    for name in loop.called('condition'):
      condition = self.computations.get(name, {})
      for compare in condition.values():
        if compare.is_root and 'direction=LT' in compare.attributes:
          limit = condition.get(compare.operands[-1])
          if limit and limit.opcode == 'constant' and limit.arguments.isdigit():
            return int(limit.arguments)
    return None

  def executed(self) -> Iterator[tuple[Instruction, int]]:
    """Yields what runs as a kernel of its own, and how often."""
    for name, count in self.times.items():
      for instruction in self.computations.get(name, {}).values():
        if instruction.opcode not in FREE and not _runs(instruction):
          yield instruction, count

  def operand_shapes(self, instruction: Instruction) -> tuple[Shape, ...]:
    """Returns the arrays that an instruction reads."""
    known = self.computations[instruction.computation]
    return tuple(
      shape
      for name in instruction.operands
      if name in known
      for shape in known[name].shapes
    )

  def root_opcode(self, instruction: Instruction) -> str:
    """Returns the opcode, of a fusion that of what it returns."""
    for name in instruction.called('calls'):
      for inner in self.computations.get(name, {}).values():
        if inner.is_root:
          return inner.opcode
    return instruction.opcode

  def origin(self, instruction: Instruction, depth: int = 8) -> str:
    """Returns the op_name of an instruction, or of the nearest operand's."""
    if instruction.op_name or depth == 0:
      return instruction.op_name
    known = self.computations[instruction.computation]
    for name in instruction.operands:
      if name in known and (found := self.origin(known[name], depth - 1)):
        return found
    return ''


def _runs(instruction: Instruction) -> list[str]:
  """Returns the computations that an instruction runs as they stand."""
  if instruction.opcode == 'call':
    return instruction.called('to_apply')
  if instruction.opcode == 'async-start':
    return instruction.called('calls')
  if instruction.opcode in ('while', 'conditional'):
    return instruction.called(
      'body',
      'condition',
      'branch_computations',
      'true_computation',
      'false_computation',
    )
  return []


def _parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
  """Returns ({computation: {name: instruction}}, the entry's name)."""
  computations: dict[str, dict[str, Instruction]] = {}
  current = entry = ''
  for line in text.splitlines():
    if line[:1].isspace():
      instruction = _instruction(line, current) if current else None
      if instruction:
        computations[current][instruction.name] = instruction
    elif match := _COMPUTATION.match(line):
      current = match[2]
      computations[current] = {}
      entry = current if match[1] else entry
  return computations, entry


def _instruction(line: str, computation: str) -> Instruction | None:
  match = _INSTRUCTION.match(line)
  if match is None:
    return None
  root, name, result, opcode, rest = match.groups()
  arguments, _, attributes = rest.partition('), ')
  return Instruction(
    name=name,
    opcode=opcode,
    shapes=shapes(result),
    arguments=arguments.removesuffix(')'),
    attributes=attributes,
    computation=computation,
    is_root=bool(root),
  )
