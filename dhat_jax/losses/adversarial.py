"""Losses of one head: natural, standard adversarial training, TRADES, MART."""

import jax
import jax.numpy as jnp

from dhat_jax import arguments, divergences
from dhat_jax.losses.base import (
  Loss,
  accuracies,
  cross_entropy_objective,
  kl_objective,
  one_minus,
  register,
  smoothed_cross_entropy,
)


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
    loss = smoothed_cross_entropy(clean.select(output), labels, label_smoothing)
    return loss, accuracies(clean, None, labels, output)

  return Loss(
    name='natural',
    uses_clean=True,
    uses_adversarial=False,
    make_objective=cross_entropy_objective,
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
    loss = smoothed_cross_entropy(
      adversarial.select(output), labels, label_smoothing
    )
    return loss, accuracies(None, adversarial, labels, output)

  return Loss(
    name='sat',
    uses_clean=False,
    uses_adversarial=True,
    make_objective=cross_entropy_objective,
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
    natural_loss = smoothed_cross_entropy(p, labels, label_smoothing)
    robust_loss = divergences.kl_divergence(p, q)
    diagnostics = accuracies(clean, adversarial, labels, output)
    diagnostics |= {'natural_loss': natural_loss, 'robust_loss': robust_loss}
    return natural_loss + beta * robust_loss, diagnostics

  return Loss(
    name='trades',
    uses_clean=True,
    uses_adversarial=True,
    make_objective=kl_objective,
    per_example=per_example,
    objective_uses_clean=True,
  )


def _boosted_cross_entropy(q, labels, smoothing):
  """CE(q, y) - log(1.0001 - max_{k != y} q_k + 1e-12): [B, K] -> [B]."""
  is_label = jax.nn.one_hot(labels, q.shape[1], dtype=bool)
  rivals = jnp.where(is_label, -jnp.inf, q).argmax(axis=1)  # [B]
  slack = 1e-4 + 1e-12 + one_minus(q, rivals)
  ce = divergences.cross_entropy(q, labels)
  if smoothing:
    ce = smoothed_cross_entropy(q, labels, smoothing)
  return ce - jnp.log(slack)


@register('mart')
def mart(*, beta: float, label_smoothing: float = 0.0) -> Loss:
  """MART: BCE + beta KL(p || q) (1.0000001 - p_y) (Wang et al. 2020, eq. 11).

  BCE = CE(q, y) - log(1.0001 - max_{k != y} q_k + 1e-12), with the constants of
  the published code. The gradient flows through p_y too, as there.

  Differs from the published code in the KL divergence: there it uses log(q +
  1e-12), which saturates at about 27.6.

  Args:
    beta: weight of the second term.
    label_smoothing: of the target of the cross entropy in BCE, not of its
      margin; not in the published code.

  Raises:
    ValueError: an argument out of its range.
  """
  arguments.number('beta', beta, 0)
  arguments.number('label_smoothing', label_smoothing, 0, 1)

  def per_example(clean, adversarial, labels, output):
    p, q = clean.select(output), adversarial.select(output)
    boosted_loss = _boosted_cross_entropy(q, labels, label_smoothing)
    doubt = 1e-7 + one_minus(p, labels)
    robust_loss = divergences.kl_divergence(p, q) * doubt
    diagnostics = accuracies(clean, adversarial, labels, output)
    diagnostics |= {'boosted_loss': boosted_loss, 'robust_loss': robust_loss}
    return boosted_loss + beta * robust_loss, diagnostics

  return Loss(
    name='mart',
    uses_clean=True,
    uses_adversarial=True,
    make_objective=cross_entropy_objective,
    per_example=per_example,
  )
