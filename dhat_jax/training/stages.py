"""What a training stage is."""

import dataclasses
from collections.abc import Callable

import optax

from dhat_jax.losses import Loss


@dataclasses.dataclass(frozen=True)
class Role:
  """A stage's place in the method.

  Attributes:
    trains: the parts with gradients and batch statistics; the rest is frozen.
    output: the output that is attacked and trained.
    outputs: the outputs that the network has during the stage.
  """

  trains: tuple[str, ...]
  output: str
  outputs: tuple[str, ...]


# The method's, in the order of training; a run's stages are a prefix of it.
ROLES = {
  'main_head': Role(('trunk', 'main_head'), 'main', ('main',)),
  'second_head': Role(('second_head',), 'second', ('main', 'second')),
  'aggregator': Role(
    ('aggregator',), 'aggregated', ('main', 'second', 'aggregated')
  ),
}
# What the method is compared with: all parts at once, alone in its run.
ALL_ROLES = {
  **ROLES,
  'joint': Role(
    ('trunk', 'main_head', 'second_head', 'aggregator'),
    'aggregated',
    ('main', 'second', 'aggregated'),
  ),
}


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage of a run, everything resolved.

  Attributes:
    name: key of `ALL_ROLES`.
    role: what trains, what is frozen, which output.
    loss: the training loss.
    attack: (objective, rng, images, scale) -> images_adv, or None where the
      loss needs no adversarial images.
    attack_scale: step -> factor in [0, 1] of the attack's epsilon and step
      size.
    tx: the optimiser.
    schedule: step -> learning rate, for the records.
    num_steps: the stage's length.
    steps_per_epoch: steps in one pass over the training set.
    batch_size: global.
    ema_decay: of the moving average of the weights; 0 keeps none.
    keep: 'best' or 'last': the checkpoint that is handed on and evaluated.
  """

  name: str
  role: Role
  loss: Loss
  attack: Callable | None
  attack_scale: Callable
  tx: optax.GradientTransformation
  schedule: optax.Schedule
  num_steps: int
  steps_per_epoch: int
  batch_size: int
  ema_decay: float
  keep: str
