"""Auto-PGD: step sizes that halve themselves (Croce & Hein, ICML 2020).

Follows the reference implementation of AutoAttack, its quirks included; what
is peculiar is said where it happens. `docs/autoattack.md` has the list.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dhat_jax import divergences
from dhat_jax.attacks import balls, per_example

LOSSES = ('ce', 'dlr', 'targeted_dlr')


class ApgdState(NamedTuple):
  """Everything that one iteration hands to the next; B examples."""

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


def check_windows(n_iter: int) -> np.ndarray:
  """Plans when step sizes are reconsidered.

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

  In L2 the delta is rebuilt as direction times length, as the reference does,
  so that also points inside the ball move by a rounding error.
  """
  if norm == 'linf':
    points = jnp.clip(points, images - epsilon, images + epsilon)
    return jnp.clip(points, 0.0, 1.0)
  deltas = points - images
  lengths = jnp.minimum(epsilon, per_example.norms(deltas, norm))
  deltas = per_example.normalise(deltas, norm)
  lengths = balls.spread(lengths, images)
  return jnp.clip(images + deltas * lengths, 0.0, 1.0)


def random_start(
  rng: chex.PRNGKey,
  indices: chex.Array,
  images: chex.Array,
  epsilon: chex.Numeric,
  norm: str,
) -> chex.Array:
  """Draws a start on the surface of the ball, then clips to [0, 1].

  A uniform (Linf) or normal (L2) draw is scaled to norm epsilon: in Linf one
  coordinate reaches epsilon, the others are uniform below it.

  Differs from the reference: each example has a stream of its own, folded by
  its place in the data set; there every batch restarts one shared stream.
  """

  def sample(key, shape):
    if norm == 'linf':
      return jax.random.uniform(key, shape, images.dtype, -1.0, 1.0)
    return jax.random.normal(key, shape, images.dtype)

  noise = per_example.draw_each(sample, rng, indices, images.shape[1:])
  start = images + epsilon * per_example.normalise(noise, norm)
  return jnp.clip(start, 0.0, 1.0)


def make_loss(
  loss: str, labels: chex.Array, targets: chex.Array | None
) -> Callable:
  """Returns logits [B, K] -> [B], to be maximised.

  Raises:
    ValueError: unknown loss, or targets missing where they are needed.
  """
  if loss == 'ce':
    return lambda logits: divergences.cross_entropy(logits, labels)
  if loss == 'dlr':
    return lambda logits: divergences.dlr(logits, labels)
  if loss != 'targeted_dlr':
    raise ValueError(f'loss: got {loss!r}, choices {list(LOSSES)}')
  if targets is None:
    raise ValueError('targeted_dlr: got no targets, expected int [B]')
  return lambda logits: divergences.targeted_dlr(logits, labels, targets)


def make_evaluate(
  logits_fn: Callable,
  loss_fn: Callable,
  labels: chex.Array,
  noise_rng: chex.PRNGKey | None,
  eot_iter: int,
) -> Callable:
  """Returns (points, i) -> (losses [B], correct [B], gradients [B, ...]).

  With `eot_iter` > 1 the gradient is an average over the network's noise, but
  loss and prediction are the last sample's, as in the reference. One network
  evaluation and one gradient per sample.
  """

  def sample(points, key):
    def total(points):
      logits = logits_fn(points) if key is None else logits_fn(points, key)
      losses = loss_fn(logits)
      return jnp.sum(losses), (losses, logits)

    (_, aux), gradients = jax.value_and_grad(total, has_aux=True)(points)
    return aux, gradients

  def evaluate(points, i):
    if noise_rng is None:
      # Without noise all samples are the same one.
      (losses, logits), gradients = sample(points, None)
      return losses, per_example.is_correct(logits, labels), gradients
    rng = jax.random.fold_in(noise_rng, i)

    def add(j, carry):
      aux, gradients = sample(points, jax.random.fold_in(rng, j))
      return aux, carry[1] + gradients

    first = sample(points, jax.random.fold_in(rng, 0))
    (losses, logits), total = jax.lax.fori_loop(1, eot_iter, add, first)
    return losses, per_example.is_correct(logits, labels), total / eot_iter

  return evaluate


def apgd_init(
  evaluate: Callable, points: chex.Array, epsilon: chex.Numeric
) -> ApgdState:
  """Evaluates the start; steps begin at 2 epsilon."""
  losses, correct, gradients = evaluate(points, 0)
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
  )


def _move(state, images, i, epsilon, norm):
  """One ascent step with momentum, both half steps projected."""
  if norm == 'linf':
    directions = jnp.sign(state.gradients)
  else:
    directions = per_example.normalise(state.gradients, norm)
  steps = balls.spread(state.step_sizes, images)
  ascended = project(state.points + steps * directions, images, epsilon, norm)
  share = jnp.where(i == 0, 1.0, 0.75).astype(images.dtype)
  moved = (
    state.points
    + (ascended - state.points) * share
    + (state.points - state.points_before) * (1 - share)
  )
  return project(moved, images, epsilon, norm)


def _record(state, points, losses, correct, gradients):
  """Takes in a new iterate: best loss (strictly higher), adversarial image."""
  better = losses > state.best_losses
  return state._replace(
    points=points,
    points_before=state.points,
    gradients=gradients,
    rises=state.rises + (losses > state.losses),
    losses=losses,
    best_points=per_example.select(better, points, state.best_points),
    best_gradients=per_example.select(better, gradients, state.best_gradients),
    best_losses=jnp.where(better, losses, state.best_losses),
    robust=state.robust & correct,
    images_adv=per_example.select(correct, state.images_adv, points),
  )


def _reconsider(state, window, rho):
  """Halves step sizes that oscillate or stall; restarts from the best point.

  The previous iterate is not reset: the next momentum is best minus previous.
  """
  check = window > 0
  oscillates = state.rises <= window * rho
  stalls = ~state.halved & (state.checked_losses >= state.best_losses)
  halve = (oscillates | stalls) & check
  return state._replace(
    points=per_example.select(halve, state.best_points, state.points),
    gradients=per_example.select(halve, state.best_gradients, state.gradients),
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
  """Returns (i, state) -> state, one iteration; i counts from 0."""
  windows = jnp.asarray(check_windows(n_iter))

  def step(i, state):
    points = _move(state, images, i, epsilon, norm)
    losses, correct, gradients = evaluate(points, i + 1)
    state = _record(state, points, losses, correct, gradients)
    return _reconsider(state, windows[i], rho)

  return step


def apgd(
  logits_fn: Callable,
  images: chex.Array,
  labels: chex.Array,
  rng: chex.PRNGKey,
  *,
  epsilon: chex.Numeric,
  norm: str = 'linf',
  loss: str = 'ce',
  targets: chex.Array | None = None,
  n_iter: int = 100,
  rho: float = 0.75,
  eot_iter: int = 1,
  randomized: bool = False,
  active: chex.Array | None = None,
  indices: chex.Array | None = None,
  images_start: chex.Array | None = None,
  with_zero_gradients: bool = False,
) -> tuple[chex.Array, ...]:
  """One run of APGD from one random start.

  n_iter + 1 evaluations of the network and as many gradients; every example
  runs all iterations, broken or not, as in the reference.

  Args:
    logits_fn: images -> logits [B, K]; with `randomized`, (images, key).
    images: float [B, ...] in [0, 1].
    labels: int [B].
    rng: typed key.
    epsilon: radius of the ball, in [0, 1] units; may be traced.
    norm: 'linf' or 'l2'.
    loss: 'ce', 'dlr' (K >= 3) or 'targeted_dlr' (K >= 4).
    targets: int [B], for 'targeted_dlr'. Success is any misclassification.
    n_iter: iterations.
    rho: share of rises below which a window counts as oscillating.
    eot_iter: gradients averaged per iteration over the network's noise.
    randomized: whether logits_fn takes a key.
    active: bool [B], the examples that are attacked; default all.
    indices: int [B], places in the data set by which the starts are drawn;
      default 0 ... B - 1.
    images_start: [B, ...], used instead of random starts.
    with_zero_gradients: also return bool [B], whether the gradient at the
      start vanished.

  Returns:
    robust bool [B]: correct at all n_iter + 1 iterates, or not active.
    images_adv [B, ...]: the latest misclassified iterate (not the one with
    the highest loss), or the image itself where robust.
  """
  balls.check_choice('norm', norm, balls.NORMS)
  if active is None:
    active = jnp.ones(images.shape[0], bool)
  if indices is None:
    indices = jnp.arange(images.shape[0])
  start_rng, noise_rng = jax.random.split(rng)
  evaluate = make_evaluate(
    logits_fn,
    make_loss(loss, labels, targets),
    labels,
    noise_rng if randomized else None,
    eot_iter,
  )
  if images_start is None:
    points = random_start(start_rng, indices, images, epsilon, norm)
  else:
    points = jnp.clip(images_start, 0.0, 1.0)
  state = apgd_init(evaluate, points, epsilon)
  flat = per_example.norms(state.gradients, 'linf') == 0
  step = make_apgd_step(
    evaluate, images, epsilon=epsilon, norm=norm, n_iter=n_iter, rho=rho
  )
  state = jax.lax.fori_loop(0, n_iter, step, state)
  robust = state.robust | ~active
  images_adv = per_example.select(robust, images, state.images_adv)
  if with_zero_gradients:
    return robust, images_adv, flat & active
  return robust, images_adv


def apgd_targeted(
  logits_fn: Callable,
  images: chex.Array,
  labels: chex.Array,
  rng: chex.PRNGKey,
  *,
  target_rank: chex.Numeric,
  **options,
) -> tuple[chex.Array, ...]:
  """APGD on the targeted DLR loss towards one rank of the clean prediction.

  Args:
    logits_fn: images -> logits [B, K], K >= 4.
    images: float [B, ...] in [0, 1].
    labels: int [B].
    rng: typed key.
    target_rank: int >= 2; the target is the class with the target_rank-th
      largest clean logit. May be traced: one compilation serves all ranks.
    **options: of `apgd`.

  Returns:
    What `apgd` returns.
  """
  targets = per_example.ranked_classes(logits_fn(images), target_rank)
  return apgd(
    logits_fn,
    images,
    labels,
    rng,
    loss='targeted_dlr',
    targets=targets,
    **options,
  )
