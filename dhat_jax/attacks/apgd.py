"""Auto-PGD: step sizes that halve themselves (Croce & Hein, ICML 2020).

Follows the reference implementation of AutoAttack, including its quirks, which
are noted where they occur. `docs/autoattack.md` lists them. One iteration is in
`apgd_steps`.
"""

from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp

from dhat_jax import divergences
from dhat_jax.arguments import integer
from dhat_jax.attacks import arguments, balls, finite, logits
from dhat_jax.attacks.apgd_steps import apgd_init, make_apgd_step

LOSSES = ('ce', 'dlr', 'targeted_dlr')


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

  Differs from the reference: each example has its own stream, folded by its
  place in the data set. There every batch restarts one shared stream.
  """
  noise = balls.draw_perturbations(rng, indices, images, norm)  # [B, ...]
  start = images + epsilon * balls.normalise(noise, norm)
  return jnp.clip(start, 0.0, 1.0)


def make_loss(
  loss: str | Sequence[str],
  labels: chex.Array,
  targets: chex.Array | None,
  which: chex.Array | None = None,
) -> Callable:
  """Loss of the logits, [B, K] -> [B], to be maximised.

  Args:
    loss: 'ce', 'dlr' or 'targeted_dlr'; or several, of which each example has
      one.
    labels: int [B].
    targets: int [B], for 'targeted_dlr'.
    which: int [B], each example's place in several losses.

  Raises:
    ValueError: unknown loss, missing targets or missing places.
  """
  if not isinstance(loss, str):
    if which is None:
      raise ValueError(f'which: got None for {tuple(loss)}, expected int [B]')
    return _make_mixed_loss(
      [make_loss(name, labels, targets) for name in loss], which
    )
  if loss == 'ce':
    return lambda logits: divergences.cross_entropy(logits, labels)
  if loss == 'dlr':
    return lambda logits: divergences.dlr(logits, labels)
  balls.check_choice('loss', loss, LOSSES)
  if targets is None:
    raise ValueError('targeted_dlr: got no targets, expected int [B]')
  return lambda logits: divergences.targeted_dlr(logits, labels, targets)


def _make_mixed_loss(losses: Sequence[Callable], which: chex.Array) -> Callable:
  """Loss [B, K] -> [B] that is another one for each example: which [B]."""

  def mixed(logits):
    total = jnp.zeros(logits.shape[0], logits.dtype)
    for place, loss_fn in enumerate(losses):
      chosen = which == place  # [B]
      # The others' logits are constants here: no 0 * inf in their gradients.
      fixed = jax.lax.stop_gradient(logits)
      values = loss_fn(balls.select(chosen, logits, fixed))
      total = jnp.where(chosen, values, total)
    return total

  return mixed


def make_evaluate(
  logits_fn: Callable,
  loss_fn: Callable,
  labels: chex.Array,
  noise_rng: chex.PRNGKey | None,
  eot_iter: int,
  by_mean_loss: bool = False,
) -> Callable:
  """Evaluates points: (points, i) -> (losses [B], correct [B], gradients).

  With `eot_iter` > 1 the gradient is an average over the network's noise, but
  loss and prediction are the last sample's, as in the reference. One network
  evaluation and one gradient per sample. With `by_mean_loss` the loss is an
  average too, and the prediction that of most samples. A NaN loss is lower than
  all others. The steps handle gradients that are not finite.

  With a key `noise_rng` per example [B], logits_fn gets a key per example.
  """

  def sample(points, key):
    def total(points):
      predicted = logits_fn(points) if key is None else logits_fn(points, key)
      losses = loss_fn(predicted)
      return jnp.sum(losses), (losses, predicted)

    (_, (losses, predicted)), gradients = jax.value_and_grad(
      total, has_aux=True
    )(points)
    return (finite.usable_losses(losses), predicted), gradients

  def evaluate(points, i):
    if noise_rng is None:
      # Without noise all samples are the same one.
      (losses, predicted), gradients = sample(points, None)
      return losses, balls.is_right(predicted, labels), gradients
    rng = _fold_in(noise_rng, i)

    def draw(j):
      (losses, predicted), gradients = sample(points, _fold_in(rng, j))
      right = balls.is_right(predicted, labels)
      return losses, right.astype(losses.dtype), gradients

    def add(j, carry):
      losses, right, gradients = draw(j)
      if by_mean_loss:
        losses, right = carry[0] + losses, carry[1] + right
      return losses, right, carry[2] + gradients

    losses, right, total = jax.lax.fori_loop(1, eot_iter, add, draw(0))
    count = eot_iter if by_mean_loss else 1
    return losses / count, 2 * right > count, total / eot_iter

  return evaluate


def _fold_in(rng: chex.PRNGKey, number: chex.Numeric) -> chex.PRNGKey:
  """Folds one key, or each of several."""
  if rng.ndim == 0:
    return jax.random.fold_in(rng, number)
  return jax.vmap(jax.random.fold_in, (0, None))(rng, number)


def apgd(
  logits_fn: Callable,
  images: chex.Array,
  labels: chex.Array,
  rng: chex.PRNGKey,
  *,
  epsilon: chex.Numeric,
  norm: str = 'linf',
  loss: str | Sequence[str] = 'ce',
  which: chex.Array | None = None,
  targets: chex.Array | None = None,
  n_iter: int = 100,
  rho: float = 0.75,
  eot_iter: int = 1,
  randomized: bool = False,
  by_mean_loss: bool = False,
  active: chex.Array | None = None,
  indices: chex.Array | None = None,
  images_start: chex.Array | None = None,
  with_zero_gradients: bool = False,
  with_broken_gradients: bool = False,
) -> tuple[chex.Array, ...]:
  """One run of APGD from one random start.

  n_iter + 1 evaluations of the network and as many gradients; every example
  runs all iterations, broken or not, as in the reference.

  Args:
    logits_fn: images -> logits [B, K]; with `randomized`, (images, key).
    images: float [B, ...] in [0, 1].
    labels: int [B].
    rng: typed key; or one per example [B]. Then logits_fn gets as many.
    epsilon: radius of the ball, in [0, 1] units; may be traced.
    norm: 'linf' or 'l2'.
    loss: 'ce', 'dlr' or 'targeted_dlr'; or several of them. `divergences` says
      what two and three classes have in place of the last two.
    which: int [B], with several losses: the place of each example's.
    targets: int [B], for 'targeted_dlr'. Success is any misclassification.
    n_iter: iterations.
    rho: share of rises below which a window counts as oscillating.
    eot_iter: gradients averaged per iteration over the network's noise.
    randomized: whether logits_fn takes a key.
    by_mean_loss: with `randomized`, compare points by the mean loss of the
      `eot_iter` samples, not by the last one's. `images_adv` is then the point
      of the highest mean loss, whether or not it is misclassified.
    active: bool [B], the examples that are attacked; default all.
    indices: int [B], places in the data set by which the starts are drawn;
      default 0 ... B - 1.
    images_start: [B, ...], used instead of random starts.
    with_zero_gradients: also return bool [B], whether the gradient at the
      start vanished.
    with_broken_gradients: also return bool [B], whether a gradient had entries
      that were not finite. They are taken for 0.

  Returns:
    robust bool [B]: correct at all n_iter + 1 iterates, or not active.
    images_adv [B, ...]: the latest misclassified iterate, or the image itself
    where robust. It is not the iterate with the highest loss.

  Raises:
    ValueError: see `arguments` and `logits.problem`.
  """
  balls.check_choice('norm', norm, balls.NORMS)
  arguments.length('epsilon', epsilon, norm)
  integer('n_iter', n_iter, least=1)
  integer('eot_iter', eot_iter, least=1)
  arguments.share('rho', rho)
  arguments.flag('randomized', randomized)
  arguments.flag('by_mean_loss', by_mean_loss)
  balls.check_keys('rng', rng, one=jnp.ndim(rng) != 1)
  for name in [loss] if isinstance(loss, str) else loss:
    balls.check_choice('loss', name, LOSSES)
  logits_fn, images, labels = logits.problem(
    logits_fn, images, labels, rng=rng if randomized else None
  )
  epsilon = arguments.like(epsilon, images)
  if targets is not None:
    targets = arguments.classes('targets', targets, len(images))
  active, indices = balls.whole_batch(images, active, indices)
  start_rng, noise_rng = (
    jax.random.split(rng)
    if rng.ndim == 0
    else jax.vmap(jax.random.split, out_axes=1)(rng)
  )
  evaluate = make_evaluate(
    logits_fn,
    make_loss(loss, labels, targets, which),
    labels,
    noise_rng if randomized else None,
    eot_iter,
    by_mean_loss,
  )
  if images_start is None:
    points = random_start(start_rng, indices, images, epsilon, norm)
  else:
    points = jnp.clip(jnp.asarray(images_start, images.dtype), 0.0, 1.0)
  step = make_apgd_step(
    evaluate, images, epsilon=epsilon, norm=norm, n_iter=n_iter, rho=rho
  )
  state = apgd_init(points, epsilon)
  state = jax.lax.fori_loop(0, n_iter + 1, step, state)
  robust = state.robust | ~active
  images_adv = balls.select(robust, images, state.images_adv)
  if randomized and by_mean_loss:
    images_adv = balls.select(active, state.best_points, images)
  extras = []
  if with_zero_gradients:
    extras.append(state.flat & active)
  if with_broken_gradients:
    extras.append(state.broken_gradients & active)
  return robust, images_adv, *extras


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
    logits_fn: images -> logits [B, K].
    images: float [B, ...] in [0, 1].
    labels: int [B].
    rng: typed key.
    target_rank: int >= 2; the target is the class with the target_rank-th
      largest clean logit. May be traced: one compilation serves all ranks.
    **options: of `apgd`.

  Returns:
    What `apgd` returns.
  """
  targets = logits.target_classes(logits_fn, images, target_rank)
  return apgd(
    logits_fn,
    images,
    labels,
    rng,
    loss='targeted_dlr',
    targets=targets,
    **options,
  )
