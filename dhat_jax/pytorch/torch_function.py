"""PyTorch modules as JAX functions: the inverse of `jax_module`.

Slow: every forward and backward pass leaves the compiled program and calls
PyTorch. Convert the weights instead where `dhat_jax.convert` knows the network.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import numpy as np

from dhat_jax.attacks import arguments
from dhat_jax.pytorch.jax_module import import_torch


def as_jax(net: Any) -> Callable[[chex.Array], chex.Array]:
  """Makes a JAX function of a PyTorch module, for the attacks here.

  The function computes logits by `jax.pure_callback`. Its gradients with
  respect to the images come from `torch.autograd`, after a second forward pass.
  It works inside `jax.jit`; gradients of gradients are not supported. The
  weights stay in PyTorch: `state_dir` of `autoattack` knows such a network by
  its logits alone.

  Args:
    net: torch.nn.Module in evaluation mode, images [B, C, H, W] in [0, 1] ->
      logits [B, K]. It computes on the device and in the dtype of its
      parameters.

  Returns:
    images float [B, H, W, C] in [0, 1] -> logits [B, K]; float64 for images in
    float64, else float32. Other images raise ValueError.

  Raises:
    ImportError: PyTorch is not installed.
    TypeError: not a torch.nn.Module.
    ValueError: it is in training mode.
  """
  torch = import_torch()
  if not isinstance(net, torch.nn.Module):
    raise TypeError(
      f'net: got {type(net).__name__}, expected a torch.nn.Module'
    )
  training = [name or 'net' for name, m in net.named_modules() if m.training]
  if training:
    raise ValueError(
      f'net: got training mode ({", ".join(training[:3])}), expected '
      'evaluation mode: net.eval()'
    )
  like = next(net.parameters(), torch.zeros(()))

  def to_torch(images):  # [B, H, W, C] -> [B, C, H, W]
    array = np.ascontiguousarray(np.asarray(images).transpose(0, 3, 1, 2))
    return torch.tensor(array).to(like.device, like.dtype)

  def forward(images):
    with torch.no_grad():
      logits = net(to_torch(images))
    return logits.cpu().numpy().astype(images.dtype)

  def backward(images, cotangent):
    leaf = to_torch(images).requires_grad_()
    with torch.enable_grad():
      logits = net(leaf)
    cotangent = torch.tensor(np.asarray(cotangent)).to(logits)
    (gradient,) = torch.autograd.grad(logits, leaf, cotangent)
    gradient = gradient.permute(0, 2, 3, 1).contiguous()
    return gradient.cpu().numpy().astype(images.dtype)

  logits_fn = _differentiable(forward, backward)
  return lambda images: logits_fn(arguments.float_images(images, rank=4))


def _differentiable(forward: Callable, backward: Callable) -> Callable:
  """Makes a JAX function of two functions of NumPy arrays.

  Args:
    forward: images [B, ...] -> logits [B, K].
    backward: (images, cotangent [B, K]) -> gradient [B, ...].
  """

  @jax.custom_vjp
  def logits_fn(images):
    shape = forward(np.zeros((1, *images.shape[1:]), images.dtype)).shape
    output = jax.ShapeDtypeStruct((len(images), *shape[1:]), images.dtype)
    return jax.pure_callback(forward, output, images, vmap_method='sequential')

  def pull_back(images, cotangent):
    gradient = jax.ShapeDtypeStruct(images.shape, images.dtype)
    return (
      jax.pure_callback(
        backward, gradient, images, cotangent, vmap_method='sequential'
      ),
    )

  logits_fn.defvjp(lambda images: (logits_fn(images), images), pull_back)
  return logits_fn
