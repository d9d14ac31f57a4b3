"""The operations of a network, one by one, here and in PyTorch."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dhat_jax import from_config
from dhat_jax.benchmark import timing, training
from dhat_jax.models import cpu_conv, layers
from dhat_jax.pytorch import jax_module
from dhat_jax.runtime import documents, provenance, streams

# Short operations are called so often in a turn.
_CALLS = 5
# The forward pass; the gradients of inputs and kernel, each alone; of batch
# norm both passes together.
FORWARD, INPUTS, KERNEL, BOTH = 'forward', 'inputs', 'kernel', 'both'
# How far the sides may be apart, relative to the largest value.
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Operation:
  """A convolution, or batch norm and ReLU with the batch's statistics.

  Attributes:
    shape: of the inputs, [B, H, W, C].
    kernel: (h, w, C, F); () of batch norm.
    stride: of rows and columns.
    padding: ((low, high), (low, high)), symmetric.
  """

  shape: tuple[int, ...]
  kernel: tuple[int, ...] = ()
  stride: int = 1
  padding: tuple[tuple[int, int], ...] = ((0, 0), (0, 0))

  @property
  def label(self) -> str:
    """What a table calls it."""
    size = 'x'.join(map(str, self.shape[1:3]))
    if not self.kernel:
      return f'batch norm, ReLU, {self.shape[3]} channels, {size}'
    height, width, inputs, outputs = self.kernel
    stride = f', stride {self.stride}' if self.stride > 1 else ''
    return f'{height}x{width}{stride}, {inputs} to {outputs}, {size}'


def operations_of(
  net: nn.Module, shape: tuple[int, ...]
) -> dict[Operation, int]:
  """Returns how often each operation is in a network's forward pass.

  Args:
    net: with square strides. Whatever activation it has, ReLU is measured.
    shape: of its images, [B, H, W, C].
  """
  counts = {}

  def count(run, args, kwargs, context):
    layer, operation = context.module, None
    if context.method_name == '__call__' and isinstance(layer, nn.Conv):
      (inputs,) = args
      kernel = *layer.kernel_size, inputs.shape[-1], layer.features
      padding = tuple(map(tuple, layer.padding))
      operation = Operation(inputs.shape, kernel, layer.strides[0], padding)
    elif context.method_name == '__call__' and isinstance(layer, nn.BatchNorm):
      if args[0].ndim == 4:  # not the aggregator's
        operation = Operation(args[0].shape)
    if operation is not None:
      counts[operation] = counts.get(operation, 0) + 1
    return run(*args, **kwargs)

  images = jax.ShapeDtypeStruct(shape, jnp.float32)
  with nn.intercept_methods(count):
    jax.eval_shape(net.init, streams.key(0), images)
  return counts


def conv_sides(operation: Operation) -> dict[str, dict[str, Callable]]:
  """Returns {pass: {'ours': function, 'torch': function}} of a convolution.

  Raises:
    ValueError: padding that differs between the sides of an axis.
  """
  if any(low != high for low, high in operation.padding):
    raise ValueError(
      f'{operation.label}: got padding {operation.padding}, which PyTorch '
      'does not have, expected the same on both sides of an axis'
    )
  torch = jax_module.import_torch()
  rng = np.random.default_rng(0)
  inputs = rng.normal(size=operation.shape).astype(np.float32)
  kernel = rng.normal(size=operation.kernel).astype(np.float32)
  strides = (operation.stride, operation.stride)

  def conv(inputs, kernel):
    return cpu_conv.conv_general_dilated(
      inputs,
      kernel,
      strides,
      operation.padding,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )

  cotangent = rng.normal(size=jax.eval_shape(conv, inputs, kernel).shape)
  arrays = inputs, kernel, cotangent.astype(np.float32)
  ours = {
    FORWARD: lambda x, k, g: conv(x, k),
    INPUTS: lambda x, k, g: jax.vjp(lambda x: conv(x, k), x)[1](g)[0],
    KERNEL: lambda x, k, g: jax.vjp(lambda k: conv(x, k), k)[1](g)[0],
  }
  last = {'memory_format': torch.channels_last}
  x, g = (
    torch.tensor(a.transpose(0, 3, 1, 2)).contiguous(**last)
    for a in (inputs, arrays[2])
  )
  k = torch.tensor(kernel.transpose(3, 2, 0, 1)).contiguous(**last)
  pads = [pad[0] for pad in operation.padding]

  def gradient(index: int) -> Any:
    mask = [index == i for i in range(3)]
    return torch.ops.aten.convolution_backward(
      g, x, k, None, strides, pads, [1, 1], False, [0, 0], 1, mask
    )[index]

  theirs = {
    FORWARD: lambda: torch.conv2d(x, k, stride=strides, padding=pads),
    INPUTS: lambda: gradient(0),
    KERNEL: lambda: gradient(1),
  }
  return _paired(ours, arrays, theirs, kernels=(KERNEL,))


def norm_sides(operation: Operation) -> dict[str, dict[str, Callable]]:
  """Returns `conv_sides` of batch norm and ReLU."""
  torch = jax_module.import_torch()
  rng = np.random.default_rng(0)
  inputs, cotangent = (
    rng.normal(size=operation.shape).astype(np.float32) for _ in range(2)
  )
  variables = layers.norm(train=True).init(streams.key(0), inputs)

  def forward(inputs):
    layer = layers.norm(train=True)
    out, _ = layer.apply(variables, inputs, mutable=['batch_stats'])
    return nn.relu(out)

  ours = {
    FORWARD: lambda x, g: forward(x),
    BOTH: lambda x, g: jax.vjp(forward, x)[1](g)[0],
  }
  last = {'memory_format': torch.channels_last}
  x, g = (
    torch.tensor(a.transpose(0, 3, 1, 2)).contiguous(**last)
    for a in (inputs, cotangent)
  )
  layer = torch.nn.BatchNorm2d(operation.shape[3])

  def both() -> Any:
    leaf = x.detach().requires_grad_()
    torch.relu(layer(leaf)).backward(g)
    return leaf.grad

  def their_forward() -> Any:
    with torch.no_grad():
      return torch.relu(layer(x))

  return _paired(
    ours, (inputs, cotangent), {FORWARD: their_forward, BOTH: both}
  )


def _paired(ours, arrays, theirs, kernels=()):
  """Compiles our side; raises ValueError if the sides' values differ."""
  sides = {}
  arrays = [jnp.asarray(array) for array in arrays]
  for name, function in ours.items():
    compiled = jax.jit(function).lower(*arrays).compile()
    got = np.asarray(compiled(*arrays))
    axes = (2, 3, 1, 0) if name in kernels else (0, 2, 3, 1)
    expected = theirs[name]().detach().numpy().transpose(axes)
    error = np.abs(got - expected).max() / np.abs(expected).max()
    if not error < TOLERANCE:
      raise ValueError(f'{name}: the sides differ by {error:.2g}')
    sides[name] = {
      'ours': lambda compiled=compiled: compiled(*arrays),
      'torch': theirs[name],
    }
  return sides


def compare(operation: Operation, *, repeats: int) -> dict[str, Any]:
  """Times the passes of an operation on both sides, taking turns.

  Returns:
    {pass: {side: `timing.summary`}}.

  Raises:
    ValueError: the sides do not compute the same.
  """
  sides = (conv_sides if operation.kernel else norm_sides)(operation)
  flat = {
    (name, side): function
    for name, functions in sides.items()
    for side, function in functions.items()
  }
  times = timing.alternate(flat, repeats=repeats, warmup=2, calls=_CALLS)
  return {
    name: {side: timing.summary(times[name, side]) for side in functions}
    for name, functions in sides.items()
  }


def run(
  config: ml_collections.ConfigDict,
  stage: str,
  batch_size: int,
  *,
  repeats: int = 5,
  report: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Compares each distinct operation of a stage's network with PyTorch.

  PyTorch has `channels_last`. Everything is float32.

  Returns:
    {'rows': of each operation its shapes, how often a forward pass has it, and
    the times of `compare`}.

  Raises:
    ImportError: PyTorch is not installed.
    ValueError: the sides do not compute the same.
  """
  jax_module.import_torch().set_num_threads(provenance.cores())  # as XLA does
  net = training.make_stage(config, stage, batch_size).net
  shape = batch_size, *from_config.image_shape(config)
  rows = []
  for operation, count in operations_of(net, shape).items():
    times = compare(operation, repeats=repeats)
    report(f'{operation.label}: {_ratios(times)}')
    fields = dataclasses.asdict(operation)
    rows.append(
      {'operation': operation.label, 'count': count, **fields, 'times': times}
    )
  return {'batch_size': batch_size, 'rows': rows}


def _ratios(times: Mapping[str, Any]) -> str:
  return ', '.join(
    f'{name} {side["torch"]["median"] / side["ours"]["median"]:.2f} x'
    for name, side in times.items()
  )


def table(measured: Mapping[str, Any]) -> str:
  """Returns the Markdown table of what `run` returns: milliseconds."""
  headers = (
    'operation',
    'times',
    'forward, ms: here',
    'PyTorch',
    "inputs' gradient: here",
    'PyTorch',
    "kernel's gradient: here",
    'PyTorch',
    'forward and backward: here',
    'PyTorch',
  )
  rows = []
  for row in measured['rows']:
    cells = [row['operation'], str(row['count'])]
    for name in (FORWARD, INPUTS, KERNEL, BOTH):
      for side in ('ours', 'torch'):
        times = row['times'].get(name)
        cells.append(f'{1e3 * times[side]["median"]:.2f}' if times else '')
    rows.append(cells)
  return documents.markdown_table(headers, rows)
