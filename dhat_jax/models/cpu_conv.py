"""Convolution for CPUs: fewer multiplications, and gradients for loops."""

import functools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import lax

from dhat_jax.models import cpu_winograd

_DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')

# The platform that networks are traced for; None: JAX's default backend.
# `with compiling_for('tpu'):` traces them for a machine that is not there, as
# an estimate of a network's memory does. `jax.jit` caches each value apart.
compiling_for = jax.make_user_context(None)


def conv_general_dilated(
  lhs: chex.Array, rhs: chex.Array, window_strides, padding, **options: Any
) -> chex.Array:
  """The convolution that `nn.Conv` calls: `loop_conv` on the CPU."""
  platform = compiling_for.value or jax.default_backend()
  if platform != 'cpu':
    return lax.conv_general_dilated(
      lhs, rhs, window_strides, padding, **options
    )
  return loop_conv(
    lhs, rhs, tuple(window_strides), tuple(tuple(pad) for pad in padding)
  )


def _plain_conv(inputs, kernel, strides, padding, dilation=(1, 1)):
  """The convolution of inputs with zeros in between, as `lax` computes it.

  XLA swaps the operands where the kernel has more rows times columns than the
  image, as 3x3 on 2x2. The CPU has no fast code for the swapped form. There the
  image is padded first, behind a barrier that keeps XLA from undoing it. So it
  is with negative padding, for which the CPU's float32 code is wrong.
  """
  small = math.prod(kernel.shape[:2]) > math.prod(inputs.shape[1:3])
  if small or min(map(min, padding)) < 0:
    sides = zip(padding, dilation, strict=True)
    pads = [(low, high, step - 1) for (low, high), step in sides]
    zero = jnp.zeros((), inputs.dtype)
    padded = lax.pad(inputs, zero, ((0, 0, 0), *pads, (0, 0, 0)))
    inputs = lax.optimization_barrier(padded)
    padding = dilation = None
  return lax.conv_general_dilated(
    inputs,
    kernel,
    strides,
    padding or 'VALID',
    lhs_dilation=dilation,
    dimension_numbers=_DIMENSIONS,
  )


def _conv(inputs, kernel, strides, padding):
  if cpu_winograd.applies(inputs, kernel, strides, padding):
    return cpu_winograd.conv(inputs, kernel, padding)
  return _plain_conv(inputs, kernel, strides, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def loop_conv(inputs, kernel, strides, padding):
  """Convolution that is fast on the CPU, with an input gradient for loops.

  XLA's CPU compiler rewrites the input gradient of a convolution to a fast
  form, but only outside loops. Inside `fori_loop`, `scan` and `while_loop` the
  gradient keeps a form that is several times slower. Here the input gradient is
  an ordinary convolution with the flipped, transposed kernel. A barrier keeps
  XLA from undoing this. Wide ones and their input gradients are computed by
  `cpu_winograd`. Values and gradients equal those of
  `lax.conv_general_dilated` up to rounding.

  Args:
    inputs: [B, H, W, C].
    kernel: [h, w, C, F].
    strides: (int, int).
    padding: ((low, high), (low, high)), explicit.

  Returns:
    [B, H', W', F].
  """
  return _conv(inputs, kernel, strides, padding)


def _loop_conv_forward(inputs, kernel, strides, padding):
  return _conv(inputs, kernel, strides, padding), (inputs, kernel)


def _input_gradient(cotangent, kernel, strides, padding, size):
  """Returns the gradient of the inputs.

  Args:
    cotangent: [B, H', W', F].
    kernel: [h, w, C, F].
    strides: (int, int).
    padding: of the convolution.
    size: (H, W) of the inputs.

  Returns:
    [B, H, W, C].
  """
  flipped = lax.optimization_barrier(
    kernel[::-1, ::-1].transpose(0, 1, 3, 2)
  )  # [h, w, F, C]
  pads = []
  for axis in range(2):
    low = kernel.shape[axis] - 1 - padding[axis][0]
    dilated = (cotangent.shape[1 + axis] - 1) * strides[axis] + 1
    total = size[axis] + kernel.shape[axis] - 1 - dilated
    pads.append((low, total - low))
  if strides == (1, 1):
    return _conv(cotangent, flipped, strides, tuple(pads))
  return _plain_conv(cotangent, flipped, (1, 1), pads, strides)


def _loop_conv_backward(strides, padding, residuals, cotangent):
  inputs, kernel = residuals
  _, kernel_vjp = jax.vjp(
    lambda k: _plain_conv(inputs, k, strides, padding), kernel
  )
  size = inputs.shape[1:3]
  return (
    _input_gradient(cotangent, kernel, strides, padding, size),
    kernel_vjp(cotangent)[0],
  )


loop_conv.defvjp(_loop_conv_forward, _loop_conv_backward)
