"""Training losses: logits [B, K] -> ([B], diagnostics); the caller averages.

A user's config file adds its own with `@losses.register('name')` on a function
of keyword-only settings that returns a `Loss`.

Notation: z(x) logits on the clean image x, z(x') on the adversarial one,
p = softmax z(x), q = softmax z(x'). Everything is computed through
log-softmax.
"""

import dataclasses
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from dhat_jax import arguments, divergences
from dhat_jax.attacks.balls import is_right
from dhat_jax.models.outputs import Outputs
from dhat_jax.registry import Registry

Diagnostics = dict[str, chex.Array]

LOSSES = Registry('loss')
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
      (logits [B, K] -> [B]), which the attack maximises.
    per_example: (clean Outputs or None, adversarial Outputs or None, labels
      [B], output name) -> (loss [B], {name: [B]}). With a `memory`, its state
      is a fifth argument.
    objective_uses_clean: whether `make_objective` uses the clean logits; it
      changes the counted cost of a step, not its result.
    only_output: the one output that the loss can train; None for any.
    teachers: outputs that the loss reads beside the trained one.
    memory: what it remembers from step to step, or None.
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


def _cross_entropy_objective(clean_logits, labels):
  """Ascent on the cross entropy (Madry et al. 2018)."""
  del clean_logits
  return lambda logits: divergences.cross_entropy(logits, labels)


def _kl_objective(clean_logits, labels):
  """Ascent on KL(p || q) from the clean prediction (Zhang et al. 2019)."""
  del labels
  target = jax.lax.stop_gradient(clean_logits)
  return lambda logits: divergences.kl_divergence(target, logits)


def _right(logits: chex.Array, labels: chex.Array) -> chex.Array:
  """Returns 1 where the prediction is correct, else 0: float32 [B]."""
  return is_right(logits, labels).astype(jnp.float32)


def _accuracies(
  clean: Outputs | None,
  adversarial: Outputs | None,
  labels: chex.Array,
  output: str,
) -> Diagnostics:
  accuracies = {}
  if clean is not None:
    accuracies['clean_accuracy'] = _right(clean.select(output), labels)
  if adversarial is not None:
    accuracies['robust_accuracy'] = _right(adversarial.select(output), labels)
  return accuracies


def _smoothed_cross_entropy(logits, labels, smoothing):
  """Cross entropy with the target (1 - s) one_hot + s / K."""
  uniform = -jax.nn.log_softmax(logits, axis=1).mean(axis=1)
  one_hot = divergences.cross_entropy(logits, labels)
  return (1 - smoothing) * one_hot + smoothing * uniform


def _one_minus(logits: chex.Array, classes: chex.Array) -> chex.Array:
  """Returns 1 - softmax(logits) of one class each: [B, K], [B] -> [B].

  It sums the other probabilities: in float32, 1 - p loses all digits where p is
  nearly 1.
  """
  chosen = jax.nn.one_hot(classes, logits.shape[1], dtype=bool)
  log_others = jax.nn.logsumexp(jnp.where(chosen, -jnp.inf, logits), axis=1)
  return jnp.exp(log_others - jax.nn.logsumexp(logits, axis=1))


@register('natural')
def natural(*, label_smoothing: float = 0.0) -> Loss:
  """Cross entropy on clean images: ordinary training.

  Args:
    label_smoothing: share s of the target that is spread over all K classes.

  Raises:
    ValueError: label_smoothing out of [0, 1].
  """
  arguments.number('label_smoothing', label_smoothing, 0, 1)

  def per_example(clean, adversarial, labels, output):
    del adversarial
    loss = _smoothed_cross_entropy(
      clean.select(output), labels, label_smoothing
    )
    return loss, _accuracies(clean, None, labels, output)

  return Loss(
    name='natural',
    uses_clean=True,
    uses_adversarial=False,
    make_objective=_cross_entropy_objective,
    per_example=per_example,
  )


@register('sat')
def sat(*, label_smoothing: float = 0.0) -> Loss:
  """Standard adversarial training: CE(q, y) (Madry et al. 2018, eq. 2.1).

  Args:
    label_smoothing: as in `natural`; the attack ascends the plain one.

  Raises:
    ValueError: label_smoothing out of [0, 1].
  """
  arguments.number('label_smoothing', label_smoothing, 0, 1)

  def per_example(clean, adversarial, labels, output):
    del clean
    loss = _smoothed_cross_entropy(
      adversarial.select(output), labels, label_smoothing
    )
    return loss, _accuracies(None, adversarial, labels, output)

  return Loss(
    name='sat',
    uses_clean=False,
    uses_adversarial=True,
    make_objective=_cross_entropy_objective,
    per_example=per_example,
  )


@register('trades')
def trades(*, beta: float, label_smoothing: float = 0.0) -> Loss:
  """TRADES: CE(p, y) + beta KL(p || q) (Zhang et al. 2019, eq. 5).

  The gradient flows through both p and q, as in the published code.

  Args:
    beta: weight of the robustness term (1 / lambda in the paper).
    label_smoothing: of the cross entropy's target.

  Raises:
    ValueError: an argument out of its range.
  """
  arguments.number('beta', beta, 0)
  arguments.number('label_smoothing', label_smoothing, 0, 1)

  def per_example(clean, adversarial, labels, output):
    p, q = clean.select(output), adversarial.select(output)
    natural_loss = _smoothed_cross_entropy(p, labels, label_smoothing)
    robust_loss = divergences.kl_divergence(p, q)
    diagnostics = _accuracies(clean, adversarial, labels, output)
    diagnostics |= {'natural_loss': natural_loss, 'robust_loss': robust_loss}
    return natural_loss + beta * robust_loss, diagnostics

  return Loss(
    name='trades',
    uses_clean=True,
    uses_adversarial=True,
    make_objective=_kl_objective,
    per_example=per_example,
    objective_uses_clean=True,
  )


def _boosted_cross_entropy(q, labels):
  """CE(q, y) - log(1.0001 - max_{k != y} q_k + 1e-12): [B, K] -> [B]."""
  is_label = jax.nn.one_hot(labels, q.shape[1], dtype=bool)
  rivals = jnp.where(is_label, -jnp.inf, q).argmax(axis=1)  # [B]
  slack = 1e-4 + 1e-12 + _one_minus(q, rivals)
  return divergences.cross_entropy(q, labels) - jnp.log(slack)


@register('mart')
def mart(*, beta: float) -> Loss:
  """MART: BCE + beta KL(p || q) (1.0000001 - p_y) (Wang et al. 2020, eq. 11).

  BCE = CE(q, y) - log(1.0001 - max_{k != y} q_k + 1e-12), with the constants of
  the published code. The gradient flows through p_y too, as there.

  Differs from the published code in the KL divergence: there it uses log(q +
  1e-12), which saturates at about 27.6.

  Args:
    beta: weight of the second term.

  Raises:
    ValueError: beta is negative or not finite.
  """
  arguments.number('beta', beta, 0)

  def per_example(clean, adversarial, labels, output):
    p, q = clean.select(output), adversarial.select(output)
    boosted_loss = _boosted_cross_entropy(q, labels)
    doubt = 1e-7 + _one_minus(p, labels)
    robust_loss = divergences.kl_divergence(p, q) * doubt
    diagnostics = _accuracies(clean, adversarial, labels, output)
    diagnostics |= {'boosted_loss': boosted_loss, 'robust_loss': robust_loss}
    return boosted_loss + beta * robust_loss, diagnostics

  return Loss(
    name='mart',
    uses_clean=True,
    uses_adversarial=True,
    make_objective=_cross_entropy_objective,
    per_example=per_example,
  )


def reverse_log_probabilities(
  logits: chex.Array, labels: chex.Array, factor: float
) -> chex.Array:
  """Reverse smoothing of a prediction, as logarithms [B, K].

  With m = softmax(logits)_y and b = factor m / (1.0001 - m), entry y stays m
  and all others are scaled by 1 + b. As published, the result is not
  normalised; the entries sum to about 1 + factor m.

  Args:
    logits: float [B, K].
    labels: int [B].
    factor: how much the other classes gain, >= 0.
  """
  log_probabilities = jax.nn.log_softmax(logits, axis=1)
  m = jnp.exp(divergences.label_logits(log_probabilities, labels))
  b = factor * m / (1e-4 + _one_minus(logits, labels))
  is_label = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
  scaled = log_probabilities + jnp.log1p(b)[:, None]
  return jnp.where(is_label, log_probabilities, scaled)


def _kl_from_log(log_target, logits):
  """sum_k t_k (log t_k - log r_k), t of any total, r = softmax(logits)."""
  log_r = jax.nn.log_softmax(logits, axis=1)
  return jnp.sum(jnp.exp(log_target) * (log_target - log_r), axis=1)


@register('reverse_smoothing')
def reverse_smoothing(
  *,
  clean_weight: float = 0.1,
  clean_factor: float = 0.9,
  correct_factor: float = 1.0,
  fooled_factor: float = 1.1,
) -> Loss:
  """Teaches the second head from the main head's reverse-smoothed output.

  From the authors' repository (`trades_dual_head.py`). Let s be the main head's
  prediction, r the second head's, and rev the reverse smoothing. The loss on
  adversarial images is KL(rev(s(x'), y, a) || r(x')). Here a = `correct_factor`
  where the main head is correct on both images, and `fooled_factor` where it is
  correct on the clean one only. There is no such loss where it is wrong on the
  clean one. All images add `clean_weight` KL(rev(s(x), y, `clean_factor`) ||
  r(x)). The targets pass no gradient: the main head is frozen.

  Differs from the published code, which trains both heads at once, attacks
  the main head, and lets the weights decay over the epochs. Here the attack is
  TRADES' on the second head.

  Args:
    clean_weight: weight of the clean term.
    clean_factor: a on clean images.
    correct_factor: a where the main head withstands the attack.
    fooled_factor: a where it does not.

  Raises:
    ValueError: a negative or infinite argument; in `per_example`, an output
      other than 'second'.
  """
  arguments.number('clean_weight', clean_weight, 0)
  arguments.number('clean_factor', clean_factor, 0)
  arguments.number('correct_factor', correct_factor, 0)
  arguments.number('fooled_factor', fooled_factor, 0)

  def per_example(clean, adversarial, labels, output):
    if output != 'second':
      raise ValueError(
        f"reverse_smoothing: got output {output!r}, expected 'second': the "
        'main head is its teacher'
      )
    main_clean, main_adv = jax.lax.stop_gradient((clean.main, adversarial.main))
    right = _right(main_clean, labels)
    withstands = _right(main_adv, labels) > 0
    targets = jnp.where(
      withstands[:, None],
      reverse_log_probabilities(main_adv, labels, correct_factor),
      reverse_log_probabilities(main_adv, labels, fooled_factor),
    )
    robust_loss = right * _kl_from_log(targets, adversarial.second)
    natural_loss = _kl_from_log(
      reverse_log_probabilities(main_clean, labels, clean_factor), clean.second
    )
    diagnostics = _accuracies(clean, adversarial, labels, output)
    diagnostics |= {'natural_loss': natural_loss, 'robust_loss': robust_loss}
    return robust_loss + clean_weight * natural_loss, diagnostics

  return Loss(
    name='reverse_smoothing',
    uses_clean=True,
    uses_adversarial=True,
    make_objective=_kl_objective,
    per_example=per_example,
    objective_uses_clean=True,
    only_output='second',
    teachers=('main',),
  )
