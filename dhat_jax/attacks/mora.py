"""MORA: an attack on an ensemble that weighs its members anew at each step.

An output made of several heads can hide its gradient: the heads' gradients
cancel, or the function on top of them is flat. MORA climbs a mix of the output
and the heads. It gives most weight to the heads that decide, and none to those
that are already fooled.

Source: Yu et al. 2022, "MORA: Improving Ensemble Robustness Evaluation with
Model-Reweighing Attack" (NeurIPS), and its published code.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from dhat_jax import divergences
from dhat_jax.arguments import integer
from dhat_jax.attacks import apgd_steps, arguments, balls, finite

# Share of the heads in the mix, one run each, in the published order. 0 is the
# output alone, 1 the weighted members alone.
SHARES = (0.5, 0.0, 0.25, 0.75, 1.0)
# Factor of the logits in the weights' probabilities (published: .2 for an
# ensemble of probabilities).
SHARPNESS = 0.2
# Logits whose leads are larger are scaled down to it.
LARGEST_LEAD = 10.0
_SMALLEST = 1e-12


class Settings(NamedTuple):
  """Numbers of the attack; changing them compiles nothing.

  Attributes:
    epsilon: radius in units of [0, 1].
    steps: gradient steps of each run.
    shares: of the heads in the mix, in each run.
  """

  epsilon: float
  steps: int
  shares: tuple[float, ...] = SHARES


class Run(NamedTuple):
  """What one step passes to the next, and the outcome; B examples."""

  step: chex.Array  # int scalar
  points: chex.Array  # [B, ...]
  points_before: chex.Array  # [B, ...], the ones before: momentum
  gradients: chex.Array  # [B, ...], at `points`
  step_sizes: chex.Array  # [B]
  robust: chex.Array  # bool [B], right at all points so far
  images_adv: chex.Array  # [B, ...], the first point that was wrong


def _leads(logits: chex.Array) -> chex.Array:
  """Returns the largest logit less the second: [..., K] -> [..., 1]."""
  largest, _ = jax.lax.top_k(logits, 2)
  return largest[..., :1] - largest[..., 1:]


def _chosen(values: chex.Array, classes: chex.Array) -> chex.Array:
  """Returns one class's values of each member: [B, M, K], [B] -> [B, M]."""
  return jnp.take_along_axis(values, classes[:, None, None], axis=2)[..., 0]


def member_weights(
  members: chex.Array, scaled: chex.Array, labels: chex.Array
) -> chex.Array:
  """Returns the members' weights, which are constants for the gradient.

  With the rival c, the likeliest wrong class of the heads' mean probabilities
  P, and a member's probabilities p: w = p_c (p_y / P_y + (1 - p_c) / P_c), and
  0 where the member is already fooled.

  Differs from the published code, which computes P_c and p_c with the wrong
  sign where P is right, and divides the heads' sum by one more head.

  Args:
    members: logits [B, M, K], the output first.
    scaled: the same, scaled for the mean probabilities.
    labels: int [B].

  Returns:
    float [B, M].
  """
  mean = jax.nn.softmax(scaled[:, 1:]).mean(axis=1)  # [B, K]
  is_label = jax.nn.one_hot(labels, mean.shape[1], dtype=bool)
  rivals = jnp.where(is_label, -jnp.inf, mean).argmax(axis=1)  # [B]
  mean = jnp.maximum(mean, _SMALLEST)[:, None]  # [B, 1, K]
  sharp = jax.nn.softmax(SHARPNESS * members)
  rival = _chosen(sharp, rivals)  # [B, M]
  weights = rival * (
    _chosen(sharp, labels) / _chosen(mean, labels)
    + (1 - rival) / _chosen(mean, rivals)
  )
  right = balls.is_right(members, labels[:, None])  # [B, M]
  return jax.lax.stop_gradient(jnp.where(right, weights, 0))


def mixed_logits(
  members: chex.Array, labels: chex.Array, share: chex.Numeric
) -> chex.Array:
  """Mixes the output and the weighted members; their scales are constants.

  (1 - s) z / lead(z) + s sum_m w_m z_m / (L sum_m w_m), where L brings the
  largest lead of a member down to 10, and is at least 1.

  Differs from the published code for the mean of logits, which masks no head.

  Args:
    members: logits [B, M, K]: the output z, then the heads. The output is a
      member too.
    labels: int [B].
    share: s in [0, 1].

  Returns:
    float [B, K].
  """
  leads = jax.lax.stop_gradient(_leads(members))  # [B, M, 1]
  scale = jnp.maximum(leads.max(axis=1, keepdims=True) / LARGEST_LEAD, 1)
  scaled = members / scale
  weights = member_weights(members, scaled, labels)[..., None]  # [B, M, 1]
  weighted = (weights * scaled).sum(axis=1) / (weights.sum(axis=1) + 1e-8)
  output = members[:, 0] / jnp.maximum(leads[:, 0], _SMALLEST)
  return (1 - share) * output + share * weighted


def check_settings(settings: Settings, norm: str) -> Settings:
  """Returns settings; raises ValueError for numbers out of their range."""
  arguments.length('epsilon', settings.epsilon, norm)
  integer('steps', settings.steps, least=1)
  for share in settings.shares:
    arguments.share('shares', share)
  return settings


def _check_rows(rows: chex.Array, images: chex.Array) -> chex.Array:
  """Returns the logits [B, M + 1, K], or raises ValueError."""
  if rows.ndim != 3 or rows.shape[0] != len(images) or rows.shape[1] < 3:
    raise ValueError(
      f'mora: got logits of shape {rows.shape} for {len(images)} images, '
      'expected [B, 2 + H, K]: what is judged, what is climbed, H heads'
    )
  return rows.astype(images.dtype)


def climb(
  rows_fn: Callable,
  images: chex.Array,
  labels: chex.Array,
  images_start: chex.Array,
  active: chex.Array,
  share: chex.Numeric,
  settings: Settings,
  norm: str,
) -> Run:
  """One run: ascent on the cross entropy of the mix, with momentum.

  The step begins at 2 epsilon and falls linearly; the momentum is .25, as in
  APGD. An image is done at its first point that is wrong.

  Args:
    rows_fn: as in `make_evaluation_attack`.
    images: float [B, ...] in [0, 1].
    labels: int [B].
    images_start: [B, ...].
    active: bool [B], the images that are attacked.
    share: of the heads, see `mixed_logits`.
    settings: epsilon and steps.
    norm: 'linf' or 'l2'.

  Returns:
    The run's end. `robust` is False where not active. `images_adv` means
    something where this run broke the image, `points` where it did not.
  """
  epsilon = jnp.asarray(settings.epsilon, images.dtype)

  def loss(points):
    rows = _check_rows(rows_fn(points), points)
    mixed = mixed_logits(rows[:, 1:], labels, share)
    return divergences.cross_entropy(mixed, labels).sum(), rows[:, 0]

  def visit(run, points, right):
    fooled = run.robust & ~right
    return run._replace(
      robust=run.robust & right,
      images_adv=balls.select(fooled, points, run.images_adv),
    )

  def step(run):
    gradients, judged = jax.grad(loss, has_aux=True)(run.points)
    run = visit(run, run.points, balls.is_right(judged, labels))
    fraction = 1 - run.step / settings.steps
    run = run._replace(
      gradients=finite.without_broken(gradients),
      step_sizes=jnp.full_like(run.step_sizes, 2 * epsilon * fraction),
    )
    points = apgd_steps.move(run, images, run.step, epsilon, norm)
    return run._replace(
      step=run.step + 1, points=points, points_before=run.points
    )

  run = jax.lax.while_loop(
    lambda run: (run.step < settings.steps) & run.robust.any(),
    step,
    Run(
      step=jnp.int32(0),
      points=images_start,
      points_before=images_start,
      gradients=jnp.zeros_like(images),
      step_sizes=jnp.zeros(len(images), images.dtype),
      robust=active,
      images_adv=images_start,
    ),
  )
  _, judged = loss(run.points)
  return visit(run, run.points, balls.is_right(judged, labels))


def random_start(
  rngs: chex.PRNGKey, images: chex.Array, epsilon: chex.Numeric, norm: str
) -> chex.Array:
  """Draws points on the surface of the ball, clipped to [0, 1].

  Args:
    rngs: typed keys [B].
    images: float [B, ...] in [0, 1].
    epsilon: radius.
    norm: 'linf' or 'l2'.

  Returns:
    float [B, ...].
  """
  # Draws around a grey image, which nothing clips.
  noise = balls.random_start(
    rngs, jnp.full_like(images, 0.5), 0.5, norm, 'uniform'
  )
  start = images + epsilon * balls.normalise(noise - 0.5, norm)
  return jnp.clip(start, 0.0, 1.0).astype(images.dtype)


def make_evaluation_attack(norm: str = 'linf') -> Callable:
  """Creates MORA: one run for each share; the first that fools counts.

  Args:
    norm: 'linf' or 'l2'.

  Returns:
    (rows_fn, images float [B, ...], labels int [B], rngs [B], settings:
    `Settings`) -> (robust bool [B], images_adv [B, ...]). `rows_fn` maps images
    to logits [B, 2 + H, K]: those that decide, those that are climbed (the
    same, or a surrogate's), and the H heads'. An image is robust if it is right
    at every point of all runs.

  Raises:
    ValueError: unknown norm; in a call, see `check_settings`.
  """
  balls.check_choice('norm', norm, balls.NORMS)

  def attack(rows_fn, images, labels, rngs, settings):
    check_settings(settings, norm)
    images = arguments.float_images(images)
    rngs = balls.per_example_keys(rngs, len(images))
    shares = jnp.asarray(settings.shares, images.dtype)

    def run(index, carry):
      robust, images_adv = carry
      start = random_start(
        jax.vmap(jax.random.fold_in, (0, None))(rngs, index),
        images,
        settings.epsilon,
        norm,
      )
      end = climb(
        rows_fn, images, labels, start, robust, shares[index], settings, norm
      )
      fooled = robust & ~end.robust
      return end.robust, balls.select(fooled, end.images_adv, images_adv)

    init = (jnp.ones(len(images), bool), images)
    return jax.lax.fori_loop(0, len(settings.shares), run, init)

  return attack
