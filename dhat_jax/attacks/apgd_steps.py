"""Auto-PGD's iteration: a step with momentum, step sizes that halve themselves.

Follows the reference implementation of AutoAttack, including its quirks, which
are noted where they occur. `docs/autoattack.md` lists them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dhat_jax.attacks import balls, finite


class ApgdState(NamedTuple):
  """Everything that one iteration passes to the next; B examples."""

  points: chex.Array  # [B, ...], the current iterate
  points_before: chex.Array  # [B, ...], the one before: momentum
  gradients: chex.Array  # [B, ...], at the current iterate
  losses: chex.Array  # [B], at the last evaluated iterate
  step_sizes: chex.Array  # [B]
  best_points: chex.Array  # [B, ...], highest loss so far
  best_gradients: chex.Array  # [B, ...]
  best_losses: chex.Array  # [B]
  checked_losses: chex.Array  # [B], best losses at the last check
  halved: chex.Array  # bool [B], at the last check
  rises: chex.Array  # int [B], of the loss since the last check
  robust: chex.Array  # bool [B], predicted correctly at every iterate
  images_adv: chex.Array  # [B, ...], latest misclassified iterate
  broken_gradients: chex.Array  # bool [B], an entry was not finite so far
  flat: chex.Array  # bool [B], the gradient at the start vanished


def check_windows(n_iter: int) -> np.ndarray:
  """Plans when step sizes are reviewed.

  Windows of .22 n_iter iterations, then .03 n_iter shorter each time but at
  least .06 n_iter: with 100 iterations, checks end iterations 22, 41, 57, 70,
  80, 87, 93, 99.

  Args:
    n_iter: number of iterations.

  Returns:
    int [n_iter]: the window's length at the iteration that ends it, else 0.
  """
  window = max(int(0.22 * n_iter), 1)
  shortest = max(int(0.06 * n_iter), 1)
  shorter = max(int(0.03 * n_iter), 1)
  windows = np.zeros(n_iter, np.int32)
  end = window
  while end <= n_iter:
    windows[end - 1] = window
    window = max(window - shorter, shortest)
    end += window
  return windows


def project(
  points: chex.Array, images: chex.Array, epsilon: chex.Numeric, norm: str
) -> chex.Array:
  """Projects on the ball around the images, then clips to [0, 1].

  In L2 the delta is rebuilt as direction times length, as in the reference. So
  points inside the ball also move by a rounding error.
  """
  if norm == 'linf':
    points = jnp.clip(points, images - epsilon, images + epsilon)
    return jnp.clip(points, 0.0, 1.0)
  deltas = points - images
  lengths = jnp.minimum(epsilon, balls.norms(deltas, norm))
  deltas = balls.normalise(deltas, norm)
  lengths = balls.spread(lengths, images)
  return jnp.clip(images + deltas * lengths, 0.0, 1.0)


def apgd_init(points: chex.Array, epsilon: chex.Numeric) -> ApgdState:
  """State at a start [B, ...] that iteration 0 will evaluate."""
  zeros = jnp.zeros(len(points), points.dtype)
  right = jnp.ones(len(points), bool)
  return _begin(points, zeros, right, jnp.zeros_like(points), epsilon)


def _begin(
  points: chex.Array,
  losses: chex.Array,
  correct: chex.Array,
  gradients: chex.Array,
  epsilon: chex.Numeric,
) -> ApgdState:
  """State at an evaluated start; steps begin at 2 epsilon."""
  broken = finite.any_broken(gradients)
  gradients = finite.without_broken(gradients)
  return ApgdState(
    points=points,
    points_before=points,
    gradients=gradients,
    # The reference compares the first iterate's loss with a row of zeros, not
    # with the start's loss: cross entropy gains a rise for free, the DLR loss
    # of a correct point does not.
    losses=jnp.zeros_like(losses),
    step_sizes=jnp.full_like(losses, 2.0) * epsilon,
    best_points=points,
    best_gradients=gradients,
    best_losses=losses,
    checked_losses=losses,
    # So that the first check does not halve for lack of improvement.
    halved=jnp.ones_like(correct),
    rises=jnp.zeros(losses.shape, jnp.int32),
    robust=correct,
    images_adv=points,
    broken_gradients=broken,
    flat=(balls.norms(gradients, 'linf') == 0) & ~broken,
  )


def move(
  state: Any,
  images: chex.Array,
  i: chex.Numeric,
  epsilon: chex.Numeric,
  norm: str,
) -> chex.Array:
  """Takes an ascent step with momentum, both half steps projected.

  Args:
    state: `ApgdState`, or anything with its points, points_before, gradients
      and step_sizes.
    images: float [B, ...] in [0, 1], the centres of the balls.
    i: iteration; the first one has no momentum.
    epsilon: radius.
    norm: 'linf' or 'l2'.

  Returns:
    The next points [B, ...].
  """
  if norm == 'linf':
    directions = jnp.sign(state.gradients)
  else:
    directions = balls.normalise(state.gradients, norm)
  steps = balls.spread(state.step_sizes, images)
  ascended = project(state.points + steps * directions, images, epsilon, norm)
  share = jnp.where(i == 0, 1.0, 0.75).astype(images.dtype)
  moved = (
    state.points
    + (ascended - state.points) * share
    + (state.points - state.points_before) * (1 - share)
  )
  return project(moved, images, epsilon, norm)


def _record(
  state: ApgdState,
  points: chex.Array,
  losses: chex.Array,
  correct: chex.Array,
  gradients: chex.Array,
) -> ApgdState:
  """Takes in a new iterate: best loss (strictly higher), adversarial image."""
  better = losses > state.best_losses
  broken = finite.any_broken(gradients)
  gradients = finite.without_broken(gradients)
  return state._replace(
    points=points,
    points_before=state.points,
    gradients=gradients,
    rises=state.rises + (losses > state.losses).astype(jnp.int32),
    losses=losses,
    best_points=balls.select(better, points, state.best_points),
    best_gradients=balls.select(better, gradients, state.best_gradients),
    best_losses=jnp.where(better, losses, state.best_losses),
    robust=state.robust & correct,
    images_adv=balls.select(correct, state.images_adv, points),
    broken_gradients=state.broken_gradients | broken,
  )


def _reconsider(
  state: ApgdState, window: chex.Numeric, rho: float
) -> ApgdState:
  """Halves step sizes that oscillate or stall; restarts from the best point.

  The previous iterate is not reset: the next momentum is best minus previous.
  """
  check = window > 0
  limit = jnp.asarray(window, float) * rho
  oscillates = state.rises.astype(float) <= limit
  stalls = ~state.halved & (state.checked_losses >= state.best_losses)
  halve = (oscillates | stalls) & check
  return state._replace(
    points=balls.select(halve, state.best_points, state.points),
    gradients=balls.select(halve, state.best_gradients, state.gradients),
    step_sizes=jnp.where(halve, state.step_sizes / 2, state.step_sizes),
    halved=jnp.where(check, halve, state.halved),
    checked_losses=jnp.where(check, state.best_losses, state.checked_losses),
    rises=jnp.where(check, 0, state.rises),
  )


def make_apgd_step(
  evaluate: Callable,
  images: chex.Array,
  *,
  epsilon: chex.Numeric,
  norm: str,
  n_iter: int,
  rho: float,
) -> Callable:
  """One iteration, (i, state) -> state.

  Iteration 0 evaluates the start, and 1 ... n_iter take steps. So a loop's
  program holds the network and its gradient once, and compiles faster.

  Args:
    evaluate: of `apgd.make_evaluate`.
    images: float [B, ...] in [0, 1], the centres of the balls.
    epsilon: radius; may be traced.
    norm: 'linf' or 'l2'.
    n_iter: of the whole run; it determines when step sizes are reviewed.
    rho: share of rises below which a window counts as oscillating.
  """
  windows = jnp.asarray(check_windows(n_iter))

  def step(i, state):
    starts = jnp.equal(i, 0)
    moved = move(state, images, i - 1, epsilon, norm)
    points = jnp.where(starts, state.points, moved)
    evaluated = points, *evaluate(points, i)
    begun = _begin(*evaluated, epsilon)
    stepped = _reconsider(_record(state, *evaluated), windows[i - 1], rho)
    return jax.tree.map(lambda a, b: jnp.where(starts, a, b), begun, stepped)

  return step
