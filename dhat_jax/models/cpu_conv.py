"""Convolution for CPUs, whose input gradient stays fast inside loops."""

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Any

import chex
import jax
from jax import lax

_DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')

_platform: contextvars.ContextVar[str | None] = contextvars.ContextVar(
  'platform', default=None
)


@contextlib.contextmanager
def compiling_for(platform: str | None) -> Iterator[None]:
  """Traces networks for another platform than JAX's default one.

  Lowering for a GPU or TPU on a machine that has none, as an estimate of a
  network's memory does, has to trace inside this context. What `jax.jit` has
  traced before stays as it was.

  Args:
    platform: 'cpu', 'gpu', 'tpu', ...; None: JAX's default backend.
  """
  token = _platform.set(platform)
  try:
    yield
  finally:
    _platform.reset(token)


def conv_general_dilated(
  lhs: chex.Array, rhs: chex.Array, window_strides, padding, **options: Any
) -> chex.Array:
  """The convolution that `nn.Conv` calls: `loop_conv` on the CPU."""
  platform = _platform.get() or jax.default_backend()
  if platform != 'cpu':
    return lax.conv_general_dilated(
      lhs, rhs, window_strides, padding, **options
    )
  return loop_conv(
    lhs, rhs, tuple(window_strides), tuple(tuple(pad) for pad in padding)
  )


def _plain_conv(inputs, kernel, strides, padding):
  return lax.conv_general_dilated(
    inputs, kernel, strides, padding, dimension_numbers=_DIMENSIONS
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def loop_conv(inputs, kernel, strides, padding):
  """Convolution whose input gradient stays fast inside loops on the CPU.

  XLA's CPU compiler rewrites the input gradient of a convolution to its fast
  form outside loops only; inside `fori_loop`, `scan` and `while_loop` the
  gradient keeps a transposed-kernel form that runs several times slower. Here
  the input gradient is written as an ordinary convolution with the flipped,
  transposed kernel, behind a barrier which keeps XLA from undoing it. Values
  and gradients are those of `lax.conv_general_dilated`.

  Args:
    inputs: [B, H, W, C].
    kernel: [h, w, C, F].
    strides: (int, int).
    padding: ((low, high), (low, high)), explicit.

  Returns:
    [B, H', W', F].
  """
  return _plain_conv(inputs, kernel, strides, padding)


def _loop_conv_forward(inputs, kernel, strides, padding):
  return _plain_conv(inputs, kernel, strides, padding), (inputs, kernel)


def _loop_conv_backward(strides, padding, residuals, cotangent):
  inputs, kernel = residuals
  flipped = lax.optimization_barrier(
    kernel[::-1, ::-1].transpose(0, 1, 3, 2)
  )  # [h, w, F, C]
  pads = []
  for axis in range(2):
    low = kernel.shape[axis] - 1 - padding[axis][0]
    dilated = (cotangent.shape[1 + axis] - 1) * strides[axis] + 1
    total = inputs.shape[1 + axis] + kernel.shape[axis] - 1 - dilated
    pads.append((low, total - low))
  grad_inputs = lax.conv_general_dilated(
    cotangent,
    flipped,
    (1, 1),
    pads,
    lhs_dilation=strides,
    dimension_numbers=_DIMENSIONS,
  )
  _, kernel_vjp = jax.vjp(
    lambda k: _plain_conv(inputs, k, strides, padding), kernel
  )
  return grad_inputs, kernel_vjp(cotangent)[0]


loop_conv.defvjp(_loop_conv_forward, _loop_conv_backward)
