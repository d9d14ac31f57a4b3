"""A PyTorch module as a JAX function: logits, gradients, mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.pytorch import jax_module, torch_function

torch = pytest.importorskip('torch')

from tests.attacks import oracle  # noqa: E402
from tests.pytorch.functions import smooth  # noqa: E402

pytestmark = pytest.mark.oracle


class Smooth(torch.nn.Module):
  """The same in PyTorch, of [B, 2, H, W]."""

  def forward(self, images):
    height = torch.arange(images.shape[2]).to(images).reshape(1, -1, 1)
    red, green = images[:, 0], images[:, 1]
    return torch.stack(
      [
        (torch.sin(red) * height).sum((1, 2)),
        (red * green).sum((1, 2)),
        (green[:, :, 0] ** 3).sum(1),
      ],
      dim=1,
    )


def random_images(count):
  shape = (count, 3, 5, 2)
  return np.random.default_rng(0).uniform(size=shape).astype(np.float32)


def test_logits_and_gradients_are_those_of_jax():
  images = random_images(4)
  weights = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
  logits_fn = torch_function.as_jax(Smooth().eval())

  def value(logits_fn, images):
    logits = logits_fn(images)
    return (logits * weights).sum(), logits

  both = jax.value_and_grad(value, argnums=1, has_aux=True)
  (_, logits), gradient = jax.jit(both, static_argnums=0)(logits_fn, images)
  (_, expected), expected_gradient = both(smooth, images)
  np.testing.assert_allclose(logits, expected, rtol=1e-6)
  np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-6)


def test_vmap_takes_the_batches_one_by_one():
  images = random_images(6).reshape(2, 3, 3, 5, 2)
  logits = jax.vmap(torch_function.as_jax(Smooth().eval()))(images)
  np.testing.assert_allclose(logits, jax.vmap(smooth)(images), rtol=1e-6)


def test_there_and_back():
  images = random_images(4)
  module = jax_module.as_torch(torch_function.as_jax(Smooth().eval()))
  logits = module(oracle.nchw(images))
  np.testing.assert_allclose(logits, smooth(images), rtol=1e-6)


def test_a_network_in_float64_returns_the_images_dtype():
  net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(30, 3))
  logits = torch_function.as_jax(net.double().eval())(random_images(2))
  assert (logits.shape, logits.dtype) == ((2, 3), jnp.float32)


def test_mistakes_are_named():
  net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5))
  net.eval()[1].train()
  with pytest.raises(ValueError, match=r'net: got training mode \(1\), expect'):
    torch_function.as_jax(net)
  with pytest.raises(ValueError, match=r'images: got uint8 \(2, 3, 5, 2\)'):
    torch_function.as_jax(Smooth().eval())(np.uint8(random_images(2)))
  with pytest.raises(TypeError, match=r'net: got function, expected a torch'):
    torch_function.as_jax(smooth)
