"""Twins for the oracle tests: one network in JAX and in PyTorch."""

import contextlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip('torch')
# Tiny networks: more threads only wait for each other.
torch.set_num_threads(1)


@contextlib.contextmanager
def float64():
  """Runs JAX and PyTorch in double precision.

  pyautoattack casts its inputs with `.float()`; within this context that means
  double.
  """
  before = torch.get_default_dtype()
  torch.set_default_dtype(torch.float64)
  cast = mock.patch.object(torch.Tensor, 'float', torch.Tensor.double)
  try:
    with jax.enable_x64(True), cast:
      yield
  finally:
    torch.set_default_dtype(before)


def make_weights(seed, sizes, scale):
  """Random weights of a network with one hidden layer: NumPy, float64."""
  rng = np.random.default_rng(seed)
  inputs, hidden, classes = sizes
  return [
    rng.normal(size=(inputs, hidden)) * scale / np.sqrt(inputs),
    rng.normal(size=hidden) * 0.1,
    rng.normal(size=(hidden, classes)) * 4 / np.sqrt(hidden),
    rng.normal(size=classes) * 0.1,
  ]


def jax_net(weights):
  """Returns [B, H, W, C] -> [B, K], smooth."""
  w1, b1, w2, b2 = (jnp.asarray(w) for w in weights)

  def logits_fn(images):
    features = images.reshape(images.shape[0], -1)
    hidden = jnp.tanh((features - 0.5) @ w1 + b1[None])
    return hidden @ w2 + b2[None]

  return logits_fn


class TorchNet(torch.nn.Module):
  """The same function of [B, C, H, W]; remembers its inputs if asked to."""

  def __init__(self, weights, dtype=torch.float64):
    super().__init__()
    self._weights = [torch.tensor(np.array(w), dtype=dtype) for w in weights]
    self.inputs = None

  def forward(self, images):
    if self.inputs is not None:
      self.inputs.append(nhwc(images))
    w1, b1, w2, b2 = self._weights
    features = images.permute(0, 2, 3, 1).reshape(images.shape[0], -1)
    return torch.tanh((features - 0.5) @ w1 + b1) @ w2 + b2


def nchw(images):
  """NumPy [B, H, W, C] -> torch [B, C, H, W]."""
  return torch.tensor(np.array(images)).permute(0, 3, 1, 2).contiguous()


def nhwc(images):
  """torch [B, C, H, W] -> NumPy [B, H, W, C]."""
  return images.detach().permute(0, 2, 3, 1).contiguous().numpy().copy()


def make_problem(
  seed=0, count=12, shape=(6, 5, 2), hidden=16, classes=7, scale=1.5
):
  """Weights, random images [B, H, W, C] and the labels that are predicted."""
  sizes = (int(np.prod(shape)), hidden, classes)
  weights = make_weights(seed, sizes, scale)
  images = np.random.default_rng(seed + 1).uniform(size=(count, *shape))
  # Some pixels on the box's faces.
  images = np.clip(1.2 * images - 0.1, 0.0, 1.0)
  with float64():
    logits = TorchNet(weights)(nchw(images))
  return weights, images, logits.argmax(dim=1).numpy()
