import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dhat_jax.models import cpu_conv, cpu_winograd, layers
from tests.helpers.tiny import normal
from tests.models.convolutions import assert_close, plain_conv, random_arrays

PADDED = ((1, 1), (1, 1))
# (height, width, kernel size, strides, padding)
CASES = [
  ((8, 8), 3, (1, 1), PADDED),
  ((8, 8), 3, (2, 2), PADDED),  # the last row and column are left over
  ((7, 5), 3, (2, 2), PADDED),  # odd: nothing is left over
  ((6, 9), 3, (2, 1), ((0, 1), (2, 0))),  # nothing symmetric
  ((8, 7), 1, (2, 2), ((0, 0), (0, 0))),  # shortcut
  ((9, 9), 5, (3, 3), ((2, 2), (0, 0))),
  ((4, 4), 4, (2, 2), PADDED),  # even kernel
  ((2, 2), 3, (1, 1), PADDED),  # a kernel larger than the image
  ((1, 1), 3, (1, 1), PADDED),
  ((4, 4), 3, (2, 2), PADDED),  # larger than the gradient's image
  ((3, 1), 5, (2, 1), ((3, 1), (2, 4))),
]


def gradients_of(conv, strides, padding):
  """((loss, output), gradients); every output has its own weight."""

  def loss(inputs, kernel):
    out = conv(inputs, kernel, strides, padding)
    return jnp.sum(jnp.sin(out)), out

  return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)


@pytest.mark.parametrize(('size', 'kernel_size', 'strides', 'padding'), CASES)
def test_loop_conv_equals_lax(size, kernel_size, strides, padding):
  arrays = random_arrays(size, kernel_size)
  got, expected = (
    jax.jit(gradients_of(conv, strides, padding))(*arrays)
    for conv in (cpu_conv.loop_conv, plain_conv)
  )
  assert_close(got, expected)


# (batch and size, channels, strides, padding) of 3x3 kernels: three that
# Winograd's rows compute, and eight that are next to them.
WIDE = [
  ((2, 8, 5), (64, 128), (1, 1), PADDED),
  ((1, 7, 6), (64, 64), (1, 1), ((0, 3), (2, 0))),
  ((1, 2, 1), (64, 64), (1, 1), ((2, 2), (1, 1))),
  ((1, 7, 6), (64, 64), (1, 1), PADDED),  # 7 rows
  ((2, 8, 5), (65, 64), (1, 1), PADDED),
  ((1, 8, 6), (64, 64), (2, 2), PADDED),
  ((1, 9, 6), (64, 64), (1, 1), ((-2, 0), (-1, 1))),
  ((1, 9, 6), (64, 64), (1, 1), ((3, 4), (3, 3))),  # a gradient's is negative
  ((2, 8, 8), (64, 64), (1, 1), ((1, 1), (-1, 1))),
  ((2, 8, 8), (64, 64), (1, 1), ((1, 1), (3, 1))),  # here too
  ((2, 8, 8), (64, 64), (1, 1), ((1, 1), (4, 0))),
]


@pytest.mark.parametrize(('size', 'channels', 'strides', 'padding'), WIDE)
def test_wide_equal_lax_in_float64(size, channels, strides, padding):
  inputs = normal(*size, channels[0])
  kernel = normal(3, 3, *channels, seed=1) / np.float32(24)
  got = jax.jit(gradients_of(cpu_conv.loop_conv, strides, padding))(
    inputs, kernel
  )
  with jax.enable_x64(True):
    expected = jax.jit(gradients_of(plain_conv, strides, padding))(
      inputs.astype(np.float64), kernel.astype(np.float64)
    )
    expected = jax.tree.map(np.asarray, expected)
  for name, ours, exact in zip(
    ('output', 'inputs', 'kernel'),
    map(np.asarray, (got[0][1], *got[1])),
    (expected[0][1], *expected[1]),
    strict=True,
  ):
    error = np.abs(ours - exact).max() / np.abs(exact).max()
    assert error < 4e-6, name


def test_wide_are_chosen():
  def convolutions(shape, kernel, strides=(1, 1)):
    arrays = np.zeros(shape, np.float32), np.zeros(kernel, np.float32)
    jaxpr = jax.make_jaxpr(gradients_of(cpu_conv.loop_conv, strides, PADDED))
    return str(jaxpr(*arrays)).count('= conv_general_dilated[')

  # Of the output, of the inputs' gradient, and two of the kernel's.
  assert convolutions((1, 8, 8, 64), (3, 3, 64, 64)) == 6 + 6 + 2
  assert convolutions((1, 8, 8, 63), (3, 3, 63, 64)) == 1 + 1 + 2
  assert convolutions((1, 8, 8, 64), (3, 3, 64, 64), (2, 2)) == 1 + 1 + 2


def test_wide_under_vmap_and_in_a_loop():
  inputs = normal(2, 3, 8, 4, 64)
  weights = normal(3, 3, 64, 64, seed=1) / np.float32(24)

  def ascend(conv):
    gradients = gradients_of(conv, (1, 1), PADDED)

    def body(_, images):
      return images + 0.1 * gradients(images, weights)[1][0]

    return jax.jit(jax.vmap(lambda images: lax.fori_loop(0, 2, body, images)))

  got = ascend(cpu_conv.loop_conv)(inputs)
  assert_close(got, ascend(plain_conv)(inputs))


@pytest.mark.parametrize('padding', [(-1, 1), (1, -1), (-2, 2)])
def test_negative_padding_keeps_the_plain_form(padding):
  # XLA's flags decide whether its values are wrong, and tests have others.
  inputs, kernel = np.zeros((1, 10, 10, 64), 'f'), np.zeros((3, 3, 64, 64), 'f')
  valid = (0, 0)
  assert cpu_winograd.applies(inputs, kernel, (1, 1), (valid, valid))
  assert not cpu_winograd.applies(inputs, kernel, (1, 1), (padding, valid))
  assert not cpu_winograd.applies(inputs, kernel, (1, 1), (valid, padding))


def test_bfloat16_keeps_the_plain_form():
  arrays = [
    jnp.zeros(shape, jnp.bfloat16) for shape in ((1, 8, 8, 64), (3, 3, 64, 64))
  ]
  assert not cpu_winograd.applies(*arrays, (1, 1), PADDED)


def test_no_operands_are_swapped():
  """XLA would make the batch a dimension of the kernel, which is slow."""
  arrays = random_arrays((2, 2), 3)
  got, expected = (
    jax.jit(gradients_of(conv, (1, 1), PADDED)).lower(*arrays).compile()
    for conv in (cpu_conv.loop_conv, plain_conv)
  )
  swapped = 'dim_labels=01fb_o01i->f01b'
  assert swapped in expected.as_text()
  assert swapped not in got.as_text()


def test_loop_conv_in_bfloat16():
  arrays = [jnp.asarray(a, jnp.bfloat16) for a in random_arrays((8, 8), 3)]
  got, expected = (
    jax.jit(gradients_of(conv, (2, 2), PADDED))(*arrays)
    for conv in (cpu_conv.loop_conv, plain_conv)
  )
  assert {leaf.dtype for leaf in got[1]} == {jnp.dtype(jnp.bfloat16)}
  assert_close(got, expected, tolerance=0.1)


def test_loop_conv_inside_fori_loop():
  def ascend(conv):
    gradients = gradients_of(conv, (2, 2), PADDED)

    def body(_, carry):
      _, grads = gradients(*carry)
      return jax.tree.map(lambda a, g: a + 0.01 * g, carry, grads)

    return jax.jit(lambda *carry: lax.fori_loop(0, 3, body, carry))

  arrays = random_arrays((7, 7), 3)
  got = ascend(cpu_conv.loop_conv)(*arrays)
  assert_close(got, ascend(plain_conv)(*arrays))
  assert np.abs(got[0] - arrays[0]).max() > 0.01


@pytest.mark.parametrize('in_axes', [(0, None), (0, 0)])
def test_loop_conv_under_vmap(in_axes):
  arrays = [
    array if axis is None else np.stack([array, 0.5 * array, -array])
    for array, axis in zip(random_arrays((6, 6), 3), in_axes, strict=True)
  ]
  got, expected = (
    jax.jit(jax.vmap(gradients_of(conv, (2, 2), PADDED), in_axes))(*arrays)
    for conv in (cpu_conv.loop_conv, plain_conv)
  )
  assert_close(got, expected)


def test_conv_uses_loop_conv_on_the_cpu():
  variables = {'params': {'kernel': np.ones((3, 3, 3, 4))}}
  gradient = jax.grad(lambda x: layers.conv(4, 3, 2).apply(variables, x).sum())
  jaxpr = jax.make_jaxpr(gradient)(np.ones((1, 8, 8, 3), np.float32))
  assert 'optimization_barrier' in str(jaxpr)


def test_platform_to_compile_for():
  variables = {'params': {'kernel': np.ones((3, 3, 3, 4))}}

  @jax.jit
  def gradient(images):
    return jax.grad(
      lambda images: layers.conv(4, 3, 2).apply(variables, images).sum()
    )(images)

  def uses_loop_conv(platform):
    images = np.ones((1, 8, 8, 3), np.float32)
    with cpu_conv.compiling_for(platform):
      return 'optimization_barrier' in str(gradient.trace(images).jaxpr)

  assert uses_loop_conv('cpu')
  assert not uses_loop_conv('tpu')
  assert uses_loop_conv(None) == (jax.default_backend() == 'cpu')
