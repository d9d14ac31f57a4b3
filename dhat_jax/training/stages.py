"""Training stages: the role in the method, and everything that one needs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import optax
from flax import linen as nn

from dhat_jax.datasets.batches import BatchSource
from dhat_jax.losses.base import Loss
from dhat_jax.models import outputs
from dhat_jax.training.state import TrainState, create_train_state

# What the method is compared with: all parts at once, alone in its run.
JOINT = 'joint'


@dataclasses.dataclass(frozen=True)
class Role:
  """A stage's place in the method.

  Attributes:
    trains: the parts with gradients and batch statistics; the rest is frozen.
    output: the output that is attacked and trained.
    outputs: the outputs that the network computes during the stage.
  """

  trains: tuple[str, ...]
  output: str
  outputs: tuple[str, ...]


def roles() -> dict[str, Role]:
  """Returns the method's stages in the order of training, by name.

  They follow from the table of outputs. A stage trains the parts of its output
  that no earlier stage trains. A run's stages are the first ones.
  """
  by_name, trained_parts, computed = {}, [], []
  for name in outputs.trained():
    row = outputs.OUTPUTS[name]
    computed.append(name)
    trains = tuple(part for part in row.parts if part not in trained_parts)
    trained_parts += trains
    by_name[row.stage] = Role(trains, name, tuple(computed))
  return by_name


def all_roles() -> dict[str, Role]:
  """Returns `roles` and the joint stage, which trains all parts at once."""
  output = outputs.final(outputs.trained())
  parts = outputs.OUTPUTS[output].parts
  computed = tuple(
    name
    for name in outputs.trained()
    if set(outputs.OUTPUTS[name].parts) <= set(parts)
  )
  return {**roles(), JOINT: Role(parts, output, computed)}


@dataclasses.dataclass(frozen=True)
class Validation:
  """How a stage's checkpoints are judged.

  Attributes:
    judge: replicated variables -> (accuracies, pictures), in one attack. The
      accuracies are {'clean_accuracy': ..., 'robust_accuracy': ...} in [0, 1];
      the best checkpoint has the highest robust accuracy. The pictures are
      {name: images float [n, H, W, C]}, for TensorBoard.
  """

  judge: Callable[[Any], tuple[dict[str, float], dict[str, chex.Array]]]


@dataclasses.dataclass(frozen=True)
class Fitted:
  """What a stage that trains nothing computes instead.

  Attributes:
    params: {part: parameters} that replace those of the state.
    numbers: {name: number}, for the records.
  """

  params: dict[str, Any]
  numbers: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage of a run, everything resolved.

  Attributes:
    name: of the stage, under which its checkpoints and records are stored.
    role: what trains, what is frozen, which output.
    net: the network, with the outputs of the role.
    loss: the training loss.
    tx: the optimiser.
    step: one replica's (state, batch) -> (state, metrics), to be mapped over
      `devices.AXIS`.
    schedule: step -> learning rate, for the records. They also have its
      `momentum`, if it is a `CycledSchedule`.
    num_steps: the stage's length; 0 trains nothing.
    steps_per_epoch: of the source; schedules and intervals count in these
      epochs.
    batch_size: global.
    attack_steps: gradient steps of the training attack.
    gradients: how often a step takes the loss's gradient: once, and more often
      with a weight perturbation.
    rng: typed key of the initial values of new parts, and of all noise.
    ema: whether a moving average of the weights is kept.
    ema_statistics: whether it has the running statistics too.
    ema_use: whether validation, the next stage and the evaluation get the
      average, if there is one.
    keep: 'best' or 'last': the checkpoint that the next stage starts from.
    source: of the batches.
    validation: how checkpoints are judged, or None.
    fit: replicated variables -> `Fitted`, for a stage without steps; or None.
  """

  name: str
  role: Role
  net: nn.Module
  loss: Loss
  tx: optax.GradientTransformation
  step: Callable
  schedule: optax.Schedule
  num_steps: int
  steps_per_epoch: int
  batch_size: int
  rng: chex.PRNGKey
  attack_steps: int = 0
  gradients: int = 1
  ema: bool = False
  ema_statistics: bool = False
  ema_use: bool = True
  keep: str = 'last'
  source: BatchSource | None = None
  validation: Validation | None = None
  fit: Callable[[Any], Fitted] | None = None


def initial_state(
  stage: Stage, image_shape: tuple[int, int, int], variables: Any = None
) -> TrainState:
  """Returns the state at step 0 of a stage.

  Args:
    stage: what is trained.
    image_shape: (H, W, C).
    variables: of the parts that earlier stages trained; others are new.
  """
  return create_train_state(
    net=stage.net,
    tx=stage.tx,
    trains=stage.role.trains,
    rng=stage.rng,
    image_shape=image_shape,
    variables=variables,
    ema=stage.ema,
    ema_statistics=stage.ema_statistics,
    loss=stage.loss,
  )
