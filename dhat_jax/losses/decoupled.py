"""The improved Kullback-Leibler loss, DKL: it remembers the classes' means."""

import chex
import jax
import jax.numpy as jnp

from dhat_jax import arguments
from dhat_jax.losses.base import (
  Loss,
  Memory,
  accuracies,
  kl_objective,
  register,
  smoothed_cross_entropy,
)


@register('dkl')
def dkl(
  *,
  alpha: float = 4.0,
  beta: float = 20.0,
  temperature: float = 4.0,
  attack_beta: float = 0.0,
  label_smoothing: float = 0.0,
  num_classes: int,
  steps_per_epoch: int,
) -> Loss:
  """Improved KL: CE(p, y) + alpha SCE + beta wMSE (Cui et al. 2024).

  SCE = -sum_k p_k log q_k, with no gradient through p. wMSE is `pairwise_mse`
  with the weights s_y, and its gradient flows through both logits. s_y is the
  mean of softmax(z(x) / temperature) over the images of class y. It is that of
  the epoch before, of the clean logits that the loss saw in training mode; 1/K
  in the first one. The attack ascends KL(p || q) + attack_beta wMSE, which for
  SCE has the same gradient.

  Differs from the published code in the order of the forward passes: there the
  adversarial images go first, which the running statistics of batch norm see.
  A class that an epoch did not see keeps its mean; there it becomes NaN.

  Args:
    alpha: weight of the soft cross entropy.
    beta: weight of the pairwise term.
    temperature: of the predictions whose means are the weights.
    attack_beta: weight of the pairwise term in the attack's objective.
      Published: 0 for CIFAR-10, 1 for CIFAR-100.
    label_smoothing: of the cross entropy's target. Published: 0.
    num_classes: K.
    steps_per_epoch: steps in one pass over the training set.

  Raises:
    ValueError: an argument out of its range; in `per_example`, logits of
      another number of classes.
  """
  arguments.number('alpha', alpha, 0)
  arguments.number('beta', beta, 0)
  arguments.number('temperature', temperature, above=0)
  arguments.number('attack_beta', attack_beta, 0)
  arguments.number('label_smoothing', label_smoothing, 0, 1)

  def make_objective(clean_logits, labels, *state):
    ascend_kl = kl_objective(clean_logits, labels)
    if not attack_beta:
      return ascend_kl
    weights = state[0]['class_means'][labels]  # [B, K]
    target = jax.lax.stop_gradient(clean_logits)
    return lambda logits: (
      ascend_kl(logits) + attack_beta * pairwise_mse(target, logits, weights)
    )

  def per_example(clean, adversarial, labels, output, state):
    z, z_adv = clean.select(output), adversarial.select(output)
    if z.shape[1] != num_classes:
      raise arguments.mistake('num_classes', num_classes, f'{z.shape[1]}')
    detached = jax.lax.stop_gradient(z)
    terms = {
      'natural_loss': smoothed_cross_entropy(z, labels, label_smoothing),
      'soft_loss': _soft_cross_entropy(detached, z_adv),
      'pairwise_loss': pairwise_mse(z, z_adv, state['class_means'][labels]),
    }
    loss = (
      terms['natural_loss']
      + alpha * terms['soft_loss']
      + beta * terms['pairwise_loss']
    )
    one_hot = jax.nn.one_hot(labels, num_classes)
    softened = jax.nn.softmax(detached / temperature, axis=1)
    terms['class_sums'] = one_hot[:, :, None] * softened[:, None]  # [B, K, K]
    return loss, accuracies(clean, adversarial, labels, output) | terms

  return Loss(
    name='dkl',
    uses_clean=True,
    uses_adversarial=True,
    make_objective=make_objective,
    per_example=per_example,
    objective_uses_clean=True,
    objective_uses_memory=attack_beta > 0,
    memory=class_means(num_classes, steps_per_epoch),
  )


def pairwise_mse(
  z: chex.Array, z_adv: chex.Array, weights: chex.Array
) -> chex.Array:
  """1/4 sum_ij s_i s_j ((z_i - z_j) - (z'_i - z'_j))^2: 3 x [B, K] -> [B].

  Computed as S/2 sum_i s_i (d_i - m)^2, with d = z - z', S = sum_i s_i and the
  weighted mean m of d. So no array has K x K entries, and nothing cancels.

  Args:
    z: float [B, K].
    z_adv: float [B, K].
    weights: s, float [B, K], not negative, of a positive sum.
  """
  difference = z - z_adv
  total = weights.sum(axis=1, keepdims=True)
  mean = jnp.sum(weights * difference, axis=1, keepdims=True) / total
  squares = jnp.sum(weights * (difference - mean) ** 2, axis=1)
  return 0.5 * total[:, 0] * squares


def class_means(num_classes: int, steps_per_epoch: int) -> Memory:
  """Mean prediction of each class over the epoch before: rows of [K, K].

  The diagnostic `class_sums` [B, K, K] has an example's prediction in the row
  of its label. So a row's sum counts the examples.

  Args:
    num_classes: K.
    steps_per_epoch: after so many steps the means are replaced.

  Raises:
    ValueError: an argument out of its range.
  """
  arguments.integer('num_classes', num_classes, 2)
  arguments.integer('steps_per_epoch', steps_per_epoch, 1)
  shape = (num_classes, num_classes)

  def advance(state, sums, step):
    total = state['class_sums'] + sums['class_sums']
    count = total.sum(axis=1, keepdims=True)
    seen = count > 0
    means = jnp.where(
      seen, total / jnp.where(seen, count, 1), state['class_means']
    )
    ends = (step + 1) % steps_per_epoch == 0
    return {
      'class_means': jnp.where(ends, means, state['class_means']),
      'class_sums': jnp.where(ends, 0, total),
    }

  return Memory(
    initial=lambda: {
      # With a type: a weak one would have the step compiled twice.
      'class_means': jnp.full(shape, 1 / num_classes, float),
      'class_sums': jnp.zeros(shape),
    },
    sums=('class_sums',),
    advance=advance,
  )


def _soft_cross_entropy(target: chex.Array, logits: chex.Array) -> chex.Array:
  """Returns -sum_k softmax(target)_k log softmax(logits)_k: [B, K] -> [B]."""
  p = jax.nn.softmax(target, axis=1)
  return -jnp.sum(p * jax.nn.log_softmax(logits, axis=1), axis=1)
