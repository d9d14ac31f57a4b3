"""Layers that all backbones share, with PyTorch's conventions.

PyTorch's conventions are explicit padding (Flax's 'SAME' pads (0, 1) at
stride 2, PyTorch (1, 1)), He initialisation over the fan out, and batch
normalisation with epsilon 1e-5 and momentum .9 (PyTorch writes .1).

Differs from PyTorch: the running variance is the biased estimate (PyTorch
stores the unbiased one, n / (n - 1) times as large; n is batch x positions).
"""

import functools
import math

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

_DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')

# PyTorch's default for linear layers: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
uniform_fan_in = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


def he_normal_fan_out(
  rng: chex.PRNGKey,
  shape: tuple[int, ...],
  dtype: chex.ArrayDType = jnp.float32,
) -> chex.Array:
  """Draws a kernel [h, w, C, F] from N(0, 2 / (h w F)).

  The values of `variance_scaling(2.0, 'fan_out', 'normal')`, but drawn flat:
  on the CPU, XLA takes ten times as long to compile random bits that are drawn
  in four dimensions, seconds for every shape of kernel.
  """
  flat = jax.random.normal(rng, (math.prod(shape),), dtype).reshape(shape)
  return flat * math.sqrt(2 / (shape[0] * shape[1] * shape[3]))


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


def _conv_general_dilated(lhs, rhs, window_strides, padding, **options):
  """The convolution that `nn.Conv` calls: `loop_conv` on the CPU."""
  if jax.default_backend() != 'cpu':
    return lax.conv_general_dilated(
      lhs, rhs, window_strides, padding, **options
    )
  return loop_conv(
    lhs, rhs, tuple(window_strides), tuple(tuple(pad) for pad in padding)
  )


def conv(
  features: int,
  kernel_size: int,
  stride: int = 1,
  *,
  dtype: chex.ArrayDType | None = None,
  name: str | None = None,
) -> nn.Conv:
  """Returns a square convolution without bias, padded as PyTorch pads it."""
  pad = kernel_size // 2
  return nn.Conv(
    features,
    (kernel_size, kernel_size),
    strides=(stride, stride),
    padding=((pad, pad), (pad, pad)),
    use_bias=False,
    kernel_init=he_normal_fan_out,
    dtype=dtype,
    conv_general_dilated=_conv_general_dilated,
    name=name,
  )


def norm(
  train: bool,
  *,
  axis_name: str | None = None,
  dtype: chex.ArrayDType | None = None,
  name: str | None = None,
) -> nn.BatchNorm:
  """Returns a batch normalisation with PyTorch's epsilon and momentum.

  Args:
    train: normalise with the batch's statistics and update the running ones;
      otherwise use the running statistics and leave them alone.
    axis_name: mapped axis over whose replicas the batch's statistics are
      shared. None: per replica.
    dtype: compute dtype; statistics and parameters stay float32.
    name: the submodule's name.
  """
  return nn.BatchNorm(
    use_running_average=not train,
    momentum=0.9,
    epsilon=1e-5,
    axis_name=axis_name if train else None,
    dtype=dtype,
    name=name,
  )


class Classifier(nn.Module):
  """Global average pooling and a linear layer: [B, H, W, C] -> [B, K].

  Computed in at least float32, so that logits are float32 in bfloat16
  networks too.
  """

  num_classes: int

  @nn.compact
  def __call__(self, features: chex.Array) -> chex.Array:
    dtype = jnp.promote_types(features.dtype, jnp.float32)
    pooled = features.astype(dtype).mean(axis=(1, 2))  # [B, C]
    return nn.Dense(self.num_classes, kernel_init=uniform_fan_in, name='dense')(
      pooled
    )
