"""Convolution with fewer multiplications, for CPUs: Winograd along the rows.

F(4, 3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks"
(2016), in one dimension: four rows of the output need six row convolutions in
place of twelve. Rounding errors are two to three times those of the plain form,
relative to the largest values of a tile: where the plain form gives an exact 0
beside larger values, this one gives a rounding error.
"""

import chex
import jax.numpy as jnp
from jax import lax

_DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')
_TILE = 4  # rows of the output that are computed together
# The rows' polynomials are evaluated at 0, +-_P, +-_Q and infinity. These
# points have short binary fractions and round less than the usual 1 and 2.
_P, _Q = 0.75, 1.5
# Where it was measured, and gained; narrower ones lose. Each convolution takes
# longer to compile, so the many of a WRN-34-10 are left alone.
_CHANNELS = frozenset({64, 128, 256})

Padding = tuple[tuple[int, int], tuple[int, int]]


def applies(
  inputs: chex.Array,
  kernel: chex.Array,
  strides: tuple[int, int],
  padding: Padding,
) -> bool:
  """Returns whether `conv` computes this convolution, and is the faster way.

  Args:
    inputs: [B, H, W, C].
    kernel: [h, w, C, F].
    strides: of rows and columns.
    padding: ((low, high), (low, high)), explicit.
  """
  rows = inputs.shape[1] + sum(padding[0]) - 2  # of the output
  return (
    kernel.shape[:2] == (3, 3)
    and tuple(strides) == (1, 1)
    and inputs.dtype == kernel.dtype == jnp.float32
    and _CHANNELS.issuperset(kernel.shape[2:])
    and min(map(min, padding)) >= 0
    and rows > 0
    and rows % _TILE == 0
  )


def conv(
  inputs: chex.Array, kernel: chex.Array, padding: Padding
) -> chex.Array:
  """Convolves with a 3x3 kernel, stride 1.

  Args:
    inputs: [B, H, W, C].
    kernel: [3, 3, C, F].
    padding: ((low, high), (low, high)), so that the output has 4n rows.

  Returns:
    [B, 4n, W', F].
  """
  products = [
    lax.conv_general_dilated(
      tile,
      row[None],
      (1, 1),
      ((0, 0), padding[1]),
      dimension_numbers=_DIMENSIONS,
    )
    for tile, row in zip(
      _transform_inputs(inputs, padding[0]),
      _transform_kernel(kernel),
      strict=True,
    )
  ]  # of [B, n, W', F]
  outputs = jnp.stack(_transform_products(products), axis=2)
  batch, tiles, _, width, features = outputs.shape
  return outputs.reshape(batch, tiles * _TILE, width, features)


def _transform_inputs(inputs, padding):
  """Returns the six inputs of the row convolutions, each [B, n, W, C]."""
  padded = jnp.pad(inputs, ((0, 0), padding, (0, 0), (0, 0)))
  end = padded.shape[1] - 5
  rows = [padded[:, first : first + end : _TILE] for first in range(6)]
  pp, qq = _P**2, _Q**2
  even_p, odd_p = rows[4] - qq * rows[2], _P * (rows[3] - qq * rows[1])
  even_q, odd_q = rows[4] - pp * rows[2], _Q * (rows[3] - pp * rows[1])
  return (
    rows[4] - (pp + qq) * rows[2] + pp * qq * rows[0],
    even_p + odd_p,
    even_p - odd_p,
    even_q + odd_q,
    even_q - odd_q,
    rows[5] - (pp + qq) * rows[3] + pp * qq * rows[1],
  )


def _transform_kernel(kernel):
  """Returns the six kernels of the row convolutions, each [3, C, F]."""
  top, middle, bottom = kernel
  pp, qq = _P**2, _Q**2
  at_p, at_q = 0.5 / (pp * (pp - qq)), 0.5 / (qq * (qq - pp))
  return (
    top / (pp * qq),
    at_p * (top + pp * bottom + _P * middle),
    at_p * (top + pp * bottom - _P * middle),
    at_q * (top + qq * bottom + _Q * middle),
    at_q * (top + qq * bottom - _Q * middle),
    bottom,
  )


def _transform_products(products):
  """Returns the four rows of each tile, each [B, n, W', F]."""
  at_0, plus_p, minus_p, plus_q, minus_q, at_infinity = products
  pp, qq = _P**2, _Q**2
  even_p, odd_p = plus_p + minus_p, _P * (plus_p - minus_p)
  even_q, odd_q = plus_q + minus_q, _Q * (plus_q - minus_q)
  return (
    at_0 + even_p + even_q,
    odd_p + odd_q,
    pp * even_p + qq * even_q,
    pp * odd_p + qq * odd_q + at_infinity,
  )
