"""What several tests share: a tiny backbone and random variables."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dhat_jax.models import layers


class Trunk(nn.Module):
  """One 3x3 convolution with 4 channels, batch norm, ReLU."""

  backbone: 'TinyBackbone'
  attach: str
  dtype: jnp.dtype | None = None
  axis_name: str | None = None

  @nn.compact
  def __call__(self, images, train):
    x = layers.conv(4, 3, dtype=self.dtype, name='conv')(images)
    x = layers.norm(
      train, axis_name=self.axis_name, dtype=self.dtype, name='norm'
    )(x)
    return nn.relu(x)


class Head(nn.Module):
  """One 3x3 convolution with 6 channels, batch norm, ReLU, classifier."""

  backbone: 'TinyBackbone'
  attach: str
  num_classes: int
  dtype: jnp.dtype | None = None
  axis_name: str | None = None

  @nn.compact
  def __call__(self, features, train):
    x = layers.conv(6, 3, 2, dtype=self.dtype, name='conv')(features)
    x = layers.norm(
      train, axis_name=self.axis_name, dtype=self.dtype, name='norm'
    )(x)
    return layers.Classifier(self.num_classes, name='classifier')(nn.relu(x))


@dataclasses.dataclass(frozen=True)
class TinyBackbone:
  """A backbone that compiles in a fraction of a second."""

  attach_points = ('block1',)
  trunk = Trunk
  head = Head


def random_like(tree, seed):
  """Returns a tree of random arrays of the same shapes; variances in [.5, 2].

  So that a test sees biases and running statistics that are not 0 and 1.
  """
  generator = np.random.default_rng(seed)

  def draw(path, leaf):
    if path[-1].key == 'var':
      values = generator.uniform(0.5, 2, leaf.shape)
    else:
      # Of about the size that keeps activations near 1.
      fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 4
      values = generator.normal(size=leaf.shape) * np.sqrt(1.5 / fan_in)
      values += path[-1].key == 'scale'
    return jnp.asarray(values, jnp.float32)

  return jax.tree_util.tree_map_with_path(draw, tree)


def shapes_of(module, *args, **kwargs):
  """Returns the shapes of a module's variables; nothing is compiled."""
  rng = jax.eval_shape(lambda: jax.random.key(0))
  return jax.eval_shape(
    lambda rng, *args: module.init(rng, *args, **kwargs), rng, *args
  )


def normal(*shape, seed=0):
  """Returns a float32 NumPy array of normal values."""
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def random_variables(module, *args, seed=0, **kwargs):
  """Returns random variables of a module, without compiling its `init`."""
  return random_like(shapes_of(module, *args, **kwargs), seed)


def flat(tree):
  """Returns {'path/of/leaf': NumPy array}."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
