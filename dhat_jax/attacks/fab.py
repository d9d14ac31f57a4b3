"""FAB: the nearest decision boundary, step by step (Croce & Hein, ICML 2020).

Follows the reference implementation of AutoAttack. The iteration does not use
epsilon: it searches for the smallest perturbation. The example is broken if
that is not larger than epsilon. Without random starts nothing is drawn.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from dhat_jax.arguments import integer
from dhat_jax.attacks import (
  arguments,
  balls,
  boundaries,
  finite,
  hyperplanes,
  logits,
)

_PROJECT = {
  'linf': hyperplanes.project_linf,
  'l2': hyperplanes.project_l2,
}
_NEVER = 1e10  # A perturbation larger than any


class FabState(NamedTuple):
  """Everything that one iteration passes to the next."""

  points: chex.Array  # [B, ...], the current iterate
  images_adv: chex.Array  # [B, ...], smallest perturbation so far
  sizes: chex.Array  # [B], its norm; 1e10 before the first
  broken_gradients: chex.Array  # bool [B], an entry was not finite so far


def _flat(values: chex.Array) -> chex.Array:
  """Joins all axes but the batch's: [B, ...] -> [B, D]."""
  return values.reshape(values.shape[0], -1)


def _approach(
  points: chex.Array,
  images: chex.Array,
  values: chex.Array,
  gradients: chex.Array,
  *,
  norm: str,
  alpha_max: float,
  eta: float,
) -> chex.Array:
  """Steps over the linear boundary, drawn towards the original image."""
  x, x0, w = _flat(points), _flat(images), _flat(gradients)
  b = jnp.sum(w * x, axis=1) - values  # the plane {u : w . u = b}
  both = _PROJECT[norm](
    jnp.concatenate([x, x0]),
    jnp.concatenate([w, w]),
    jnp.concatenate([b, b]),
  )
  sizes = jnp.maximum(balls.norms(both, norm), 1e-8)
  size, size0 = jnp.split(sizes, 2)
  d, d0 = jnp.split(both, 2)
  alpha = jnp.clip(size / (size + size0), 0.0, alpha_max)[:, None]
  moved = (x + eta * d) * (1 - alpha) + (x0 + eta * d0) * alpha
  return jnp.clip(moved, 0.0, 1.0).reshape(points.shape)


def make_fab_step(
  logits_fn: Callable,
  images: chex.Array,
  labels: chex.Array,
  *,
  norm: str,
  targets: chex.Array | None,
  alpha_max: float,
  eta: float,
  beta: float,
) -> Callable:
  """One iteration of FAB, state -> state; arguments as in `fab`."""

  def boundary(points):
    if targets is None:
      return boundaries.nearest_boundary(logits_fn, points, labels, norm)
    return boundaries.targeted_boundary(logits_fn, points, labels, targets)

  def step(state):
    values, gradients, broken = boundary(state.points)
    points = _approach(
      state.points,
      images,
      values,
      gradients,
      norm=norm,
      alpha_max=alpha_max,
      eta=eta,
    )
    # Products of huge gradients overflow: no step then either.
    broken |= finite.any_broken(points)
    points = jnp.where(jnp.isfinite(points), points, state.points)
    # Any other class counts, not the target's alone.
    wrong = ~balls.is_right(logits_fn(points), labels)
    sizes = balls.norms(points - images, norm)
    better = wrong & (sizes < state.sizes)
    return FabState(
      points=balls.select(wrong, images + (points - images) * beta, points),
      images_adv=balls.select(better, points, state.images_adv),
      sizes=jnp.where(better, sizes, state.sizes),
      broken_gradients=state.broken_gradients | broken,
    )

  return step


def fab_init(points: chex.Array, images: chex.Array) -> FabState:
  """Starts at some points [B, ...]; nothing is broken yet."""
  count = images.shape[0]
  return FabState(
    points=points,
    images_adv=images,
    sizes=jnp.full(count, _NEVER, images.dtype),
    broken_gradients=jnp.zeros(count, bool),
  )


def _run_to_epsilon(
  step: Callable,
  state: FabState,
  n_iter: int,
  epsilon: chex.Numeric,
  active: chex.Array,
) -> FabState:
  """Iterates while an active example has no perturbation that counts.

  An example that has one stays as it is. So it does not depend on its batch.
  """

  def unfinished(carry):
    i, state = carry
    return (i < n_iter) & jnp.any(active & (state.sizes > epsilon))

  def iterate(carry):
    i, state = carry
    searches = state.sizes > epsilon  # as the flag is decided
    stepped = step(state)
    return i + 1, jax.tree.map(
      lambda new, old: balls.select(searches, new, old), stepped, state
    )

  return jax.lax.while_loop(unfinished, iterate, (0, state))[1]


def random_start(
  rng: chex.PRNGKey,
  indices: chex.Array,
  images: chex.Array,
  epsilon: chex.Numeric,
  norm: str,
) -> chex.Array:
  """Draws a start at half of epsilon (Linf: of its largest coordinate)."""
  noise = balls.draw_perturbations(rng, indices, images, norm)  # [B, ...]
  sizes = balls.norms(noise, norm)
  noise = noise / balls.spread(jnp.where(sizes > 0, sizes, 1), noise)
  return jnp.clip(images + epsilon * noise * 0.5, 0.0, 1.0)


def fab(
  logits_fn: Callable,
  images: chex.Array,
  labels: chex.Array,
  rng: chex.PRNGKey | None = None,
  *,
  epsilon: chex.Numeric,
  norm: str = 'linf',
  targets: chex.Array | None = None,
  random: chex.Numeric = False,
  n_iter: int = 100,
  alpha_max: float = 0.1,
  eta: float = 1.05,
  beta: float = 0.9,
  active: chex.Array | None = None,
  indices: chex.Array | None = None,
  stop_at_epsilon: bool = False,
  with_broken_gradients: bool = False,
) -> tuple[chex.Array, ...]:
  """One run of FAB, untargeted or towards given classes.

  Per iteration, targeted: two evaluations and one gradient; untargeted: two
  evaluations and K gradients. All iterations run, as in the reference, unless
  `stop_at_epsilon`.

  Args:
    logits_fn: images -> logits [B, K].
    images: float [B, ...] in [0, 1].
    labels: int [B].
    rng: typed key, or one per example [B]; used only for random starts.
    epsilon: radius within which a perturbation counts, in [0, 1] units.
    norm: 'linf' or 'l2'.
    targets: int [B], whose boundary is approached; None: the nearest.
    random: start at a random point at half of epsilon, not at the image; may
      be traced, and bool [B].
    n_iter: iterations.
    alpha_max: largest share of the step back to the image's projection.
    eta: overshoot over the boundary.
    beta: backward step, after success, towards the image.
    active: bool [B], the examples that are attacked; default all.
    indices: int [B], places in the data set by which starts are drawn.
    stop_at_epsilon: leave an example alone once its perturbation counts. The
      flags are the same; the perturbation is not the smallest.
    with_broken_gradients: also return bool [B], whether a gradient had entries
      that were not finite. They are taken for 0.

  Returns:
    robust bool [B]: no perturbation of norm <= epsilon was found (compared
    without tolerance), or not active. images_adv [B, ...]: smallest
    perturbation, or the image where robust.

  Raises:
    ValueError: see `arguments` and `logits.problem`.
  """
  balls.check_choice('norm', norm, balls.NORMS)
  arguments.length('epsilon', epsilon, norm)
  integer('n_iter', n_iter, least=1)
  arguments.share('alpha_max', alpha_max)
  arguments.positive('eta', eta)
  arguments.share('beta', beta)
  arguments.flag('random', random)
  arguments.flag('stop_at_epsilon', stop_at_epsilon)
  logits_fn, images, labels = logits.problem(logits_fn, images, labels)
  epsilon = arguments.like(epsilon, images)
  if targets is not None:
    targets = arguments.classes('targets', targets, len(images))
  active, indices = balls.whole_batch(images, active, indices)
  points = images
  if rng is None and not arguments.is_traced(random) and random:
    raise ValueError('rng: got None, expected a typed key for a random start')
  if rng is not None:
    balls.check_keys('rng', rng, one=jnp.ndim(rng) != 1)
    start = random_start(rng, indices, images, epsilon, norm)
    random = jnp.broadcast_to(random, (len(images),))
    points = balls.select(random, start, images)
  state = fab_init(points, images)
  step = make_fab_step(
    logits_fn,
    images,
    labels,
    norm=norm,
    targets=targets,
    alpha_max=alpha_max,
    eta=eta,
    beta=beta,
  )
  if stop_at_epsilon:
    state = _run_to_epsilon(step, state, n_iter, epsilon, active)
  else:
    state = jax.lax.fori_loop(0, n_iter, lambda _, s: step(s), state)
  robust = (state.sizes > epsilon) | ~active
  images_adv = balls.select(robust, images, state.images_adv)
  if with_broken_gradients:
    return robust, images_adv, state.broken_gradients & active
  return robust, images_adv


def fab_targeted(
  logits_fn: Callable,
  images: chex.Array,
  labels: chex.Array,
  rng: chex.PRNGKey | None = None,
  *,
  target_rank: chex.Numeric,
  **options,
) -> tuple[chex.Array, ...]:
  """FAB towards the class with the target_rank-th largest clean logit.

  Args:
    logits_fn: images -> logits [B, K].
    images: float [B, ...] in [0, 1].
    labels: int [B].
    rng: typed key; used only for random starts.
    target_rank: int in [2, K]; may be traced.
    **options: of `fab`.

  Returns:
    What `fab` returns.
  """
  targets = logits.target_classes(logits_fn, images, target_rank)
  return fab(logits_fn, images, labels, rng, targets=targets, **options)
