"""Projected gradient ascent: in training, and as an evaluation attack."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from dhat_jax import divergences
from dhat_jax.arguments import integer
from dhat_jax.attacks import arguments, balls, finite, logits

Objective = Callable[[chex.Array], chex.Array]

OBJECTIVES = {
  'cross_entropy': divergences.cross_entropy,
  'margin': divergences.margin,
}


def _gradient_of(objective: Objective) -> Objective:
  """Gradient of each example's value: images [B, ...] -> same shape.

  It is the gradient of the sum. Each value depends on its own example alone, so
  the batch size does not matter. An entry that is not finite is 0.
  """

  def total(images):
    values = objective(images)
    if values.shape != images.shape[:1]:
      raise ValueError(
        f'objective: got values of shape {values.shape}, expected one per '
        f'example, {images.shape[:1]}'
      )
    return values.sum()

  gradient = jax.grad(total)
  return lambda images: finite.without_broken(gradient(images))


def ascend(
  objective: Objective,
  images_start: chex.Array,
  images: chex.Array,
  *,
  epsilon: chex.Numeric,
  step_size: chex.Numeric,
  steps: chex.Numeric,
  norm: str,
  unroll: bool = False,
) -> chex.Array:
  """Takes gradient steps up an objective, projecting after each.

  Args:
    objective: [B, ...] -> [B], to be maximised; each example's value must
      depend on that example alone.
    images_start: float [B, ...], the start; projected only after the first
      step.
    images: float [B, ...] in [0, 1], the centres of the balls.
    epsilon: radius; may be traced.
    step_size: length of a step in the norm; may be traced.
    steps: number of steps; may be traced, without `unroll`.
    norm: 'linf' or 'l2'.
    unroll: whether to write the loop out; compiles longer.

  Returns:
    float [B, ...], in the ball and in [0, 1] after one step or more, with no
    gradient through it.
  """
  gradient = _gradient_of(objective)

  def body(_, images_adv):
    direction = balls.ascent(gradient(images_adv), norm)
    step = (step_size * direction).astype(images.dtype)
    return balls.project(images_adv + step, images, epsilon, norm)

  # A while loop, where `steps` is traced, has no reverse mode; and nobody
  # wants the gradient through an attack.
  start, images = jax.lax.stop_gradient((images_start, images))
  images_adv = jax.lax.fori_loop(0, steps, body, start, unroll=unroll or None)
  return jax.lax.stop_gradient(images_adv)


def make_attack(
  *,
  epsilon: float,
  step_size: float,
  steps: int,
  norm: str = 'linf',
  start: str = 'uniform',
  unroll: bool = False,
) -> Callable:
  """Creates a PGD attack for training (Madry et al. 2018).

  It sees an objective, and no model or label.

  Args:
    epsilon: radius in units of [0, 1], e.g. 8 / 255.
    step_size: length of a step in the norm, same units.
    steps: number of gradient steps; 0 returns the start, projected.
    norm: 'linf' or 'l2'.
    start: 'none', 'uniform' (SAT) or 'gaussian' (TRADES, MART); see
      `balls.random_start`.
    unroll: write the steps out instead of looping, which compiles longer. On
      the CPU it is several times faster for networks with plain `nn.Conv`,
      whose gradients are slow inside loops. `dhat_jax.models` does not need it.

  Returns:
    attack(objective, rng, images, scale=1.0) -> images_adv. `objective` maps
    images [B, ...] to [B] and is maximised. `rng` is a typed key, or one per
    example [B]. Images are float [B, ...] in [0, 1]. `scale` multiplies epsilon
    and step size and may be traced. `images_adv` has the images' shape and
    dtype. It is in the ball (float32: to 1e-6) and in [0, 1], and passes no
    gradient. An entry of a gradient that is not finite makes no step. Images
    with fewer bits than float32 are attacked in float32.

  Raises:
    ValueError: a number out of its range, or an unknown norm or start.
  """
  balls.check_choice('norm', norm, balls.NORMS)
  balls.check_choice('start', start, balls.STARTS)
  arguments.length('epsilon', epsilon, norm)
  arguments.length('step_size', step_size, norm)
  integer('steps', steps, least=0)
  arguments.flag('unroll', unroll)

  def attack(objective, rng, images, scale=1.0):
    arguments.function('objective', objective)
    dtype = getattr(images, 'dtype', jnp.float32)
    images = arguments.float_images(images)
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    rngs = balls.per_example_keys(rng, images.shape[0])
    radius = epsilon * scale
    images_start = balls.random_start(rngs, images, radius, norm, start)
    if steps == 0:
      projected = balls.project(images_start, images, radius, norm)
      return jax.lax.stop_gradient(projected).astype(dtype)
    images_adv = ascend(
      objective,
      images_start,
      images,
      epsilon=radius,
      step_size=step_size * scale,
      steps=steps,
      norm=norm,
      unroll=unroll,
    )
    return images_adv.astype(dtype)

  return attack


def fgsm(epsilon: float, norm: str = 'linf') -> Callable:
  """Creates the fast gradient sign method: one step of epsilon from x.

  Args:
    epsilon: radius in units of [0, 1].
    norm: 'linf', the gradient's sign, or 'l2', its direction.

  Returns:
    An attack, see `make_attack` (Goodfellow et al. 2015, with the [0, 1] box).
  """
  return make_attack(
    epsilon=epsilon, step_size=epsilon, steps=1, norm=norm, start='none'
  )


class Settings(NamedTuple):
  """Numbers of an evaluation attack; changing them compiles nothing.

  Attributes:
    epsilon: radius in units of [0, 1].
    step_size: length of a step.
    steps: gradient steps per restart; 0 with `start_scale` 0: clean images.
    restarts: independent starts, at least 1; robust images resist all of them.
    start_scale: radius of the uniform start over epsilon: 1, or 0 for none.
    objective: place in `OBJECTIVES` of the objective; only for attacks that
      were created without one.
  """

  epsilon: float
  step_size: float
  steps: int
  restarts: int = 1
  start_scale: float = 1.0
  objective: int = 0


def check_settings(settings: Settings, norm: str) -> Settings:
  """Returns settings; raises ValueError for numbers out of their range.

  Traced numbers pass; with less than one restart nothing counts as robust.
  """
  arguments.length('epsilon', settings.epsilon, norm)
  arguments.length('step_size', settings.step_size, norm)
  integer('steps', settings.steps, least=0)
  integer('restarts', settings.restarts, least=1)
  arguments.share('start_scale', settings.start_scale)
  most = len(OBJECTIVES) - 1
  integer('objective', settings.objective, least=0, most=most)
  return settings


def _objective_at(
  index: chex.Numeric, predicted: chex.Array, labels: chex.Array
) -> chex.Array:
  """Objective at a traced place in `OBJECTIVES`: [B, K], [B] -> [B]."""
  values = [function(predicted, labels) for function in OBJECTIVES.values()]
  return jnp.stack(values)[index]


def _iterate(
  objective: Objective,
  images: chex.Array,
  rngs: chex.PRNGKey,
  settings: Settings,
  norm: str,
  fooled: Callable | None = None,
) -> chex.Array:
  """Last iterate of one restart: images [B, ...], keys [B] -> [B, ...].

  With `fooled`, images [B, ...] -> bool [B], it is the first one that fools.
  """
  images_start = balls.random_start(
    rngs,
    images,
    settings.epsilon * settings.start_scale,
    norm,
    'uniform',
  )

  def climb(start, steps, unroll=False):
    return ascend(
      objective,
      start,
      images,
      epsilon=settings.epsilon,
      step_size=settings.step_size,
      steps=steps,
      norm=norm,
      unroll=unroll,
    )

  if fooled is None:
    return climb(images_start, settings.steps)

  def body(_, points):
    moved = climb(points, 1, unroll=True)
    return balls.select(fooled(points), points, moved)

  return jax.lax.fori_loop(0, settings.steps, body, images_start)


def make_evaluation_attack(
  *,
  objective: str | None = 'cross_entropy',
  norm: str = 'linf',
  every_point: bool = False,
) -> Callable:
  """Creates FGSM, PGD and CW attacks for evaluation, all in one function.

  FGSM is one step of epsilon from the image; PGD ascends the cross entropy and
  CW the margin from a uniform start. As in the published code of Madry et al.
  and TRADES, only the last iterate of a restart counts, and the prediction on
  the clean image does not.

  Args:
    objective: 'cross_entropy' or 'margin'; None: that of each call's
      `settings.objective`, so one compiled function serves all.
    norm: 'linf' or 'l2'.
    every_point: whether a restart stops at its first misclassified point, at
      the cost of a prediction per step. For networks whose gradients belong to
      other logits than their predictions.

  Returns:
    (logits_fn, images float [B, ...], labels int [B], rng, settings:
    `Settings`) -> (robust bool [B], images_adv [B, ...]). `robust` is True
    where the images of all restarts are classified correctly. `images_adv` is
    the image of the first restart that succeeds. If none does, it is the one
    with the highest objective. The restarts run in a loop, so more of them
    compile nothing. Restart r draws from the example's key folded with r. So
    more restarts extend fewer ones, and the batches make no difference. A
    gradient entry that is not finite makes no step, so images are never NaN.
    An image whose logits are not finite counts as misclassified.

  Raises:
    ValueError: unknown objective or norm; in a call, see `check_settings` and
      `logits.problem`.
  """
  if objective is not None:
    balls.check_choice('objective', objective, tuple(OBJECTIVES))
  balls.check_choice('norm', norm, balls.NORMS)
  arguments.flag('every_point', every_point)

  def attack(logits_fn, images, labels, rng, settings):
    check_settings(settings, norm)
    logits_fn, images, labels = logits.problem(logits_fn, images, labels)
    objective_fn = (
      functools.partial(_objective_at, settings.objective)
      if objective is None
      else OBJECTIVES[objective]
    )
    rngs = balls.per_example_keys(rng, images.shape[0])

    def fooled(points):
      return ~balls.is_right(logits_fn(points), labels)

    def restart(index, carry):
      robust, highest, images_worst = carry
      images_adv = _iterate(
        lambda inputs: objective_fn(logits_fn(inputs), labels),
        images,
        jax.vmap(jax.random.fold_in, (0, None))(rngs, index),
        settings,
        norm,
        fooled if every_point else None,
      )
      predicted = logits_fn(images_adv)  # [B, K]
      right = balls.is_right(predicted, labels)  # [B]
      values = objective_fn(predicted, labels).astype(highest.dtype)
      # Nothing is higher than the first misclassified image.
      values = jnp.where(right, finite.usable_losses(values), jnp.inf)
      images_worst = balls.select(values > highest, images_adv, images_worst)
      return robust & right, jnp.maximum(values, highest), images_worst

    init = (
      # An image that no restart attacked has withstood nothing.
      jnp.full(images.shape[0], settings.restarts > 0),
      jnp.full(images.shape[0], -jnp.inf),
      jax.lax.stop_gradient(images),
    )
    restarts = settings.restarts
    robust, _, images_adv = jax.lax.fori_loop(0, restarts, restart, init)
    return robust, images_adv

  return attack
