"""What the tests of convolutions share."""

import jax
import numpy as np
from jax import lax

from tests.helpers.tiny import normal


def plain_conv(inputs, kernel, strides, padding):
  return lax.conv_general_dilated(
    inputs,
    kernel,
    strides,
    padding,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def random_arrays(size, kernel_size):
  return (
    normal(2, *size, 3),
    normal(kernel_size, kernel_size, 3, 4, seed=1),
  )


def assert_close(got, expected, tolerance=1e-4):
  jax.tree.map(
    lambda g, e: np.testing.assert_allclose(
      np.asarray(g, np.float32),
      np.asarray(e, np.float32),
      rtol=tolerance,
      atol=tolerance,
    ),
    got,
    expected,
  )
