"""What networks and their training cost: parameters, multiply-adds."""

import jax
import jax.numpy as jnp
import ml_collections

from dhat_jax import from_config
from dhat_jax.models.outputs import OUTPUTS
from dhat_jax.runtime import streams
from dhat_jax.training import cost as flops


def parameters(
  config: ml_collections.ConfigDict,
  output: str,
  image_shape: tuple[int, int, int],
) -> int:
  """Returns how many parameters an output of a config's network needs."""
  net = from_config.make_network(config)
  images = jnp.zeros((1, *image_shape))
  params = jax.eval_shape(net.init, streams.key(0), images)['params']
  used = OUTPUTS[output].parts
  return sum(
    leaf.size
    for part, tree in params.items()
    if part in used
    for leaf in jax.tree.leaves(tree)
  )


def stage_gmacs(
  config: ml_collections.ConfigDict,
  name: str,
  image_shape: tuple[int, int, int],
  num_train: int,
) -> float:
  """Returns the multiply-adds, in 1e9, that a stage needs.

  Args:
    config: of the run.
    name: of the stage.
    image_shape: (H, W, C).
    num_train: number of training images.
  """
  stage = from_config.make_stage(config, name, num_train)
  costs = flops.parts(stage.net, image_shape)
  per_image = flops.needed(
    costs, stage.role, stage.loss, stage.attack_steps, stage.gradients
  )
  return per_image * stage.num_steps * stage.batch_size / 1e9


def training_gmacs(
  config: ml_collections.ConfigDict,
  output: str,
  image_shape: tuple[int, int, int],
  num_train: int,
) -> float:
  """Returns the multiply-adds, in 1e9, that training an output needs.

  Args:
    config: of the run.
    output: a key of `OUTPUTS`; the stages that train a part of it count.
    image_shape: (H, W, C).
    num_train: number of training images.
  """
  used = set(OUTPUTS[output].parts)
  return sum(
    stage_gmacs(config, name, image_shape, num_train)
    for name in config.stages
    if used & set(from_config.make_stage(config, name, num_train).role.trains)
  )


def of(
  config: ml_collections.ConfigDict,
  output: str,
  image_shape: tuple[int, int, int],
  num_train: int,
) -> dict[str, float]:
  """Returns the size of an output's network, and what its training needs."""
  network = config, output, image_shape
  return {
    'parameters': parameters(*network),
    'training_gmacs': training_gmacs(*network, num_train),
  }
