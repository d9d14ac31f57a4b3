"""Networks, their variables and their PyTorch state dicts."""

import jax
import jax.numpy as jnp
import numpy as np

from dhat_jax.models.dual_head import DualHeadNet
from dhat_jax.models.wide_resnet import WideResNet
from dhat_jax.pytorch import state_dicts
from tests.helpers.tiny import random_variables

WRN = WideResNet(10, 1)


def make(backbone=WRN, *, heads=3, num_classes=4, **kwargs):
  return DualHeadNet(
    backbone=backbone,
    num_classes=num_classes,
    outputs=('main', 'second', 'aggregated')[:heads],
    **kwargs,
  )


def variables_of(model, channels=3, seed=0):
  return random_variables(model, jnp.zeros((1, 8, 8, channels)), seed=seed)


def state_dict_of(model, channels=3, seed=0):
  return state_dicts.to_torch(variables_of(model, channels, seed), model)


def counted_variables(model):
  """Returns variables of a large network cheaply: each array counts on."""
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3))
  )
  leaves, structure = jax.tree.flatten(shapes)
  return structure.unflatten(
    np.arange(leaf.size, dtype=np.float32).reshape(leaf.shape) + index
    for index, leaf in enumerate(leaves)
  )
