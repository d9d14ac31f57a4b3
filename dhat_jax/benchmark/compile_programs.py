"""The programs of a run, traced for devices that are not there.

Nothing is computed: all arguments are shapes.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from dhat_jax import from_config
from dhat_jax.attacks.autoattack import checks, passes
from dhat_jax.attacks.autoattack.budget import Budget
from dhat_jax.benchmark import training
from dhat_jax.evaluation import evaluator
from dhat_jax.evaluation.step import make_eval_step
from dhat_jax.models import outputs
from dhat_jax.runtime import devices, streams
from dhat_jax.training import cost
from dhat_jax.training.stages import Stage, initial_state

TRAINING = 'training'
EVALUATION = 'evaluation'
# What --programs chooses from: the training steps, the step of the evaluation
# that its attacks along gradients share, and the attacks of AutoAttack.
NAMES = (TRAINING, EVALUATION, *checks.NAMES)


@dataclasses.dataclass(frozen=True)
class Program:
  """A program that can be traced and compiled.

  Attributes:
    name: of the stage, 'evaluation', or the attack's.
    kind: 'training', 'evaluation' or 'attack'.
    dtype: of its convolutions.
    images: a device's [B, H, W, C].
    trace: () -> what has `compile()`.
    gradients: elements of all gradients, or None.
    state_leaves: arrays of the state, whose memory the next state takes over.
    flops: per device, what the traced program computes; loops as often as they
      run, but for those without an end that is known.
    needed_flops: per device, what the stage cannot avoid, or None.
  """

  name: str
  kind: str
  dtype: str
  images: tuple[int, int, int, int]
  trace: Callable[[], Any]
  flops: Callable[[], int]
  gradients: int | None = None
  state_leaves: int = 0
  needed_flops: int | None = None


def shaped(tree: Any, *leading: int) -> Any:
  """Returns a tree's shapes, with axes before them."""
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct((*leading, *leaf.shape), leaf.dtype), tree
  )


def _batch(
  images: tuple[int, ...], flags: Sequence[str] = ('mask',)
) -> dict[str, jax.ShapeDtypeStruct]:
  return {
    'images': jax.ShapeDtypeStruct(images, jnp.uint8),
    'labels': jax.ShapeDtypeStruct(images[:1], jnp.int32),
    **{flag: jax.ShapeDtypeStruct(images[:1], jnp.bool_) for flag in flags},
  }


def _lowered(
  mapped: Callable,
  arguments: Sequence[Any],
  axes: Sequence[int | None],
  count: int,
) -> Callable[[], Any]:
  """Returns () -> a mapped function, lowered.

  Args:
    mapped: over devices.
    arguments: shapes of one replica's.
    axes: 0 for arguments that every device has its own of, else None.
    count: number of devices.
  """
  stacked = [
    shaped(argument, count) if axis == 0 else shaped(argument)
    for argument, axis in zip(arguments, axes, strict=True)
  ]
  return lambda: mapped.lower(*stacked)


def _count(
  function: Callable, arguments: Sequence[Any], count: int
) -> Callable[[], int]:
  """Returns () -> floating point operations of one replica."""
  sizes = [(devices.AXIS, count)]

  def flops() -> int:
    closed = jax.make_jaxpr(function, axis_env=sizes)(*arguments)
    return 2 * cost.count_traced(closed.jaxpr)

  return flops


def training_step(
  config: ml_collections.ConfigDict,
  name: str,
  batch_size: int,
  targets: Sequence[Any],
) -> Program:
  """Returns the training step of a stage.

  Args:
    config: the run's config.
    name: of the stage.
    batch_size: per device.
    targets: the devices.
  """
  stage = training.make_stage(config, name, batch_size * len(targets))
  images = batch_size, *from_config.image_shape(config)
  state = jax.eval_shape(lambda: initial_state(stage, images[1:]))
  extra = from_config.completed(config).dataset.extra.files
  arguments = state, _batch(images, ('mask', 'own') if extra else ('mask',))
  trained = [state.params[part] for part in stage.role.trains]
  return Program(
    name=name,
    kind=TRAINING,
    dtype=config.model.dtype,
    images=images,
    trace=_lowered(
      devices.mapped_train_step(stage.step, targets),
      arguments,
      (0, 0),
      len(targets),
    ),
    flops=_count(stage.step, arguments, len(targets)),
    gradients=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trained)),
    state_leaves=len(jax.tree.leaves(state)),
    needed_flops=_needed(stage, images),
  )


def _needed(stage: Stage, images: tuple[int, int, int, int]) -> int:
  costs = cost.parts(stage.net, images[1:])
  multiplications = cost.needed(
    costs, stage.role, stage.loss, stage.attack_steps, stage.gradients
  )
  return 2 * multiplications * images[0]


def evaluation_step(
  config: ml_collections.ConfigDict, batch_size: int, targets: Sequence[Any]
) -> Program:
  """Returns the step that clean images, FGSM, PGD and CW share.

  Against the final output, in the evaluation's precision.

  Args:
    config: the run's config.
    batch_size: per device.
    targets: the devices.
  """
  evaluated = from_config.make_evaluator(
    config, from_config.make_network(config)
  ).net
  attack, _ = from_config.validation_attacks(config)
  output = outputs.final(evaluated.outputs)
  net = evaluator.smallest(evaluated, output)
  step = make_eval_step(
    net=net,
    output=output,
    attack=attack.function,
    axis_name=devices.AXIS,
    returns_images=True,
  )
  images = batch_size, *from_config.image_shape(config)
  settings = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, attack.settings))
  arguments = (
    _variables(net, images),
    _batch(images),
    jax.eval_shape(lambda: streams.key(0)),
    jax.ShapeDtypeStruct((), jnp.int32),
    settings,
  )
  axes = 0, 0, None, None, None
  mapped = devices.mapped_eval_step(
    evaluator.full_precision(step), axes, targets
  )
  return Program(
    name=EVALUATION,
    kind=EVALUATION,
    dtype=config.evaluation.dtype,
    images=images,
    trace=_lowered(mapped, arguments, axes, len(targets)),
    flops=_count(step, arguments, len(targets)),
  )


def _variables(net: nn.Module, images: tuple[int, ...]) -> Any:
  example = jax.ShapeDtypeStruct((1, *images[1:]), jnp.float32)
  return jax.eval_shape(net.init, streams.key(0), example)


def attack_pass(
  config: ml_collections.ConfigDict,
  name: str,
  batch_size: int,
  targets: Sequence[Any],
) -> Program:
  """Returns one pass of an attack of AutoAttack on the final output.

  Args:
    config: the run's config.
    name: of the attack.
    batch_size: per device.
    targets: the devices.
  """
  network = from_config.make_network(config)
  output = outputs.final(network.outputs)
  net = evaluator.smallest(network, output).clone(
    dtype=jnp.float32, axis_name=None
  )
  images = batch_size, *from_config.image_shape(config)

  @evaluator.full_precision
  def run(variables, *batch):
    return passes.make_attack(
      name,
      lambda inputs: net.apply(variables, inputs).select(output),
      norm=config.evaluation.norm,
      budget=Budget(),
    )(*batch)

  pixels = jax.ShapeDtypeStruct(images, jnp.float32)
  whole = jax.ShapeDtypeStruct(images[:1], jnp.int32)
  arguments = (
    _variables(net, images),
    *(pixels, whole, whole, jax.ShapeDtypeStruct(images[:1], jnp.bool_)),
    *(pixels, whole, whole, whole),
    jax.eval_shape(lambda: streams.key(0)[None]),
    jax.ShapeDtypeStruct((), jnp.float32),
  )
  axes = 0, *passes.ATTACK_AXES
  return Program(
    name=name,
    kind='attack',
    dtype='float32',
    images=images,
    trace=_lowered(
      devices.mapped_eval_step(run, axes, targets),
      arguments,
      axes,
      len(targets),
    ),
    flops=_count(run, arguments, len(targets)),
  )
