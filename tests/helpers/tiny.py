"""What several tests share: a tiny backbone and random variables."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dhat_jax.models import backbones, layers


@backbones.register('tiny')
@dataclasses.dataclass(frozen=True)
class TinyBackbone:
  """A backbone that compiles in a fraction of a second.

  A 3x3 convolution with 4 channels, one with 6 at stride 2, each with batch
  norm and ReLU; the trunk is the first one.
  """

  block_names = ('block1', 'block2')
  attach_points = ('block1',)

  def stem(self, images, *, train, dtype, axis_name):
    return layers.conv(4, 3, dtype=dtype, name='conv')(images)

  def blocks(self, features, names, *, train, dtype, axis_name):
    if 'block1' in names:
      features = layers.norm_relu(
        features, train, dtype=dtype, axis_name=axis_name, name='norm'
      )
    if 'block2' in names:
      features = layers.conv(6, 3, 2, dtype=dtype, name='conv')(features)
    return features

  def tail(self, features, *, train, dtype, axis_name):
    return layers.norm_relu(
      features, train, dtype=dtype, axis_name=axis_name, name='norm'
    )


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
