"""JAX functions as PyTorch modules.

PyTorch is imported only when something here needs it.
"""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp


def import_torch() -> Any:
  """Returns the module `torch`.

  Raises:
    ImportError: it is not installed.
  """
  try:
    import torch
  except ImportError as error:
    raise ImportError(
      "PyTorch is needed here: pip install 'dhat_jax[oracle]'"
    ) from error
  return torch


def as_torch(logits_fn: Callable[[chex.Array], chex.Array]) -> Any:
  """Makes a PyTorch module of a JAX function, for attack libraries.

  The module computes logits and their gradients with respect to the images.
  It has no parameters, and gradients of gradients are not supported. Batches
  are padded with black images to powers of two; forward and backward compile
  once for each.

  PyTorch and JAX share the memory of the inputs. Nothing is read from it after
  a call returns, and PyTorch owns the result. So either side may write in place
  afterwards.

  Args:
    logits_fn: images [B, H, W, C] in [0, 1] -> logits [B, K]; each image's
      logits must not depend on the other images (batch norm in evaluation
      mode).

  Returns:
    torch.nn.Module: images [B, C, H, W] -> logits [B, K] on the images'
    device. float64 images are computed in float32, unless JAX's x64 mode is
    on.

  Raises:
    ImportError: PyTorch is not installed.
  """
  import_torch()

  def forward(images):  # [B, C, H, W]
    return logits_fn(jnp.transpose(images, (0, 2, 3, 1)))

  def backward(images, cotangent):
    # Computes the forward pass again: nothing to keep in between, so that
    # PyTorch may go backward any number of times, or never.
    return jax.vjp(forward, images)[1](cotangent)[0]

  return _module_class()(jax.jit(forward), jax.jit(backward))


def _to_jax(tensor: Any) -> jax.Array:
  """Shares a tensor with JAX, on JAX's default device."""
  tensor = tensor.detach().contiguous()
  if tensor.device.type != 'cpu' and jax.default_backend() == 'cpu':
    tensor = tensor.cpu()
  return jax.device_put(jax.dlpack.from_dlpack(tensor), jax.devices()[0])


def _to_torch(array: jax.Array, like: Any) -> Any:
  """Copies an array into a tensor on the device of the tensor `like`."""
  # Computed before anyone may change the tensors that it was computed from.
  array = jax.block_until_ready(array)
  if like.device.type == 'cpu' and jax.default_backend() != 'cpu':
    array = jax.device_put(array, jax.devices('cpu')[0])
  # A clone: JAX's arrays must not change, and PyTorch may write in place.
  return import_torch().from_dlpack(array).to(like.device).clone()


@functools.cache
def _module_class() -> type:
  """Defines the module's class, once PyTorch is imported."""
  torch = import_torch()

  class JaxFunction(torch.autograd.Function):
    """Forward and backward pass, both by JAX."""

    @staticmethod
    def forward(ctx, images, forward, backward):
      ctx.save_for_backward(images)
      ctx.backward = backward
      return _to_torch(forward(_to_jax(images)), images)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, cotangent):
      (images,) = ctx.saved_tensors
      gradient = ctx.backward(_to_jax(images), _to_jax(cotangent))
      return _to_torch(gradient, images), None, None

  class JaxModule(torch.nn.Module):
    """A JAX function of images; see `as_torch`."""

    def __init__(self, forward, backward):
      super().__init__()
      self._functions = forward, backward

    def forward(self, images):
      if images.ndim != 4:
        raise ValueError(
          f'images: got shape {tuple(images.shape)}, expected [B, C, H, W]'
        )
      if images.dtype == torch.float64 and not jax.config.jax_enable_x64:
        images = images.float()
      count = len(images)
      padding = (1 << max(count - 1, 0).bit_length()) - count
      if padding:
        black = images.new_zeros(padding, *images.shape[1:])
        images = torch.cat([images, black])
      return JaxFunction.apply(images, *self._functions)[:count]

  return JaxModule
