"""Losses of the second head, whose teacher is the main head."""

import chex
import jax
import jax.numpy as jnp

from dhat_jax import arguments, divergences
from dhat_jax.losses.base import (
  Loss,
  accuracies,
  correct,
  kl_objective,
  one_minus,
  register,
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
  b = factor * m / (1e-4 + one_minus(logits, labels))
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
    right = correct(main_clean, labels)
    withstands = correct(main_adv, labels) > 0
    targets = jnp.where(
      withstands[:, None],
      reverse_log_probabilities(main_adv, labels, correct_factor),
      reverse_log_probabilities(main_adv, labels, fooled_factor),
    )
    robust_loss = right * _kl_from_log(targets, adversarial.second)
    natural_loss = _kl_from_log(
      reverse_log_probabilities(main_clean, labels, clean_factor), clean.second
    )
    diagnostics = accuracies(clean, adversarial, labels, output)
    diagnostics |= {'natural_loss': natural_loss, 'robust_loss': robust_loss}
    return robust_loss + clean_weight * natural_loss, diagnostics

  return Loss(
    name='reverse_smoothing',
    uses_clean=True,
    uses_adversarial=True,
    make_objective=kl_objective,
    per_example=per_example,
    objective_uses_clean=True,
    only_output='second',
    teachers=('main',),
  )
