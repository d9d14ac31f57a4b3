"""What a training loss is, and what several losses share."""

import dataclasses
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from dhat_jax import divergences
from dhat_jax.attacks.balls import is_right
from dhat_jax.models.outputs import Outputs
from dhat_jax.registry import Registry

Diagnostics = dict[str, chex.Array]

LOSSES = Registry('loss', shared=('num_classes', 'steps_per_epoch'))
register = LOSSES.register


@dataclasses.dataclass(frozen=True)
class Memory:
  """What a loss remembers from step to step: a part of the training state.

  It is stored in checkpoints, and the same on all devices.

  Attributes:
    initial: () -> tree of float arrays, at step 0 of a stage.
    sums: names of diagnostics, each [B, ...], that are no metrics. Their sums
      over the global batch go to `advance`.
    advance: (state, {name: sum [...]}, step) -> state of the next step.
  """

  initial: Callable
  sums: tuple[str, ...]
  advance: Callable


@dataclasses.dataclass(frozen=True)
class Loss:
  """A training loss with the objective of its attack.

  Attributes:
    name: key of `LOSSES`.
    uses_clean: whether it needs clean logits in training mode.
    uses_adversarial: whether it needs adversarial images.
    make_objective: (clean logits [B, K] in evaluation mode, labels [B]) ->
      (logits [B, K] -> [B]), which the attack maximises. Where
      `objective_uses_memory`, the memory's state is a third argument.
    per_example: (clean Outputs or None, adversarial Outputs or None, labels
      [B], output name) -> (loss [B], {name: [B]}). With a `memory`, its state
      is a fifth argument.
    objective_uses_clean: whether `make_objective` uses the clean logits; it
      changes the counted cost of a step, not its result.
    only_output: the one output that the loss can train; None for any.
    teachers: outputs that the loss reads beside the trained one.
    memory: what it remembers from step to step, or None.
    objective_uses_memory: whether `make_objective` takes the memory's state.
  """

  name: str
  uses_clean: bool
  uses_adversarial: bool
  make_objective: Callable
  per_example: Callable
  objective_uses_clean: bool = False
  only_output: str | None = None
  teachers: tuple[str, ...] = ()
  memory: Memory | None = None
  objective_uses_memory: bool = False


def cross_entropy_objective(
  clean_logits: chex.Array, labels: chex.Array
) -> Callable[[chex.Array], chex.Array]:
  """Ascent on the cross entropy (Madry et al. 2018)."""
  del clean_logits
  return lambda logits: divergences.cross_entropy(logits, labels)


def kl_objective(
  clean_logits: chex.Array, labels: chex.Array
) -> Callable[[chex.Array], chex.Array]:
  """Ascent on KL(p || q) from the clean prediction (Zhang et al. 2019)."""
  del labels
  target = jax.lax.stop_gradient(clean_logits)
  return lambda logits: divergences.kl_divergence(target, logits)


def correct(logits: chex.Array, labels: chex.Array) -> chex.Array:
  """Returns 1 where the prediction is correct, else 0: float32 [B]."""
  return is_right(logits, labels).astype(jnp.float32)


def accuracies(
  clean: Outputs | None,
  adversarial: Outputs | None,
  labels: chex.Array,
  output: str,
) -> Diagnostics:
  """Returns the accuracies of an output on the images that there are."""
  values = {}
  if clean is not None:
    values['clean_accuracy'] = correct(clean.select(output), labels)
  if adversarial is not None:
    values['robust_accuracy'] = correct(adversarial.select(output), labels)
  return values


def smoothed_cross_entropy(
  logits: chex.Array, labels: chex.Array, smoothing: float
) -> chex.Array:
  """Cross entropy with the target (1 - s) one_hot + s / K: [B, K] -> [B]."""
  uniform = -jax.nn.log_softmax(logits, axis=1).mean(axis=1)
  one_hot = divergences.cross_entropy(logits, labels)
  return (1 - smoothing) * one_hot + smoothing * uniform


def one_minus(logits: chex.Array, classes: chex.Array) -> chex.Array:
  """Returns 1 - softmax(logits) of one class each: [B, K], [B] -> [B].

  It sums the other probabilities: in float32, 1 - p loses all digits where p is
  nearly 1.
  """
  chosen = jax.nn.one_hot(classes, logits.shape[1], dtype=bool)
  log_others = jax.nn.logsumexp(jnp.where(chosen, -jnp.inf, logits), axis=1)
  return jnp.exp(log_others - jax.nn.logsumexp(logits, axis=1))
