"""The attacks of AutoAttack as compiled passes over batches of one shape."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from dhat_jax.attacks.apgd import apgd
from dhat_jax.attacks.autoattack.budget import Budget
from dhat_jax.attacks.fab import fab
from dhat_jax.attacks.square import square_points
from dhat_jax.runtime import hoisting

# Of the functions that are given to `map_fn`: what is per example, what not.
ATTACK_AXES = (0, 0, 0, 0, 0, 0, None, None, None)


def jit_hoisted(fn: Callable, in_axes: Sequence[int | None]) -> Callable:
  """Compiles for one set of shapes, with closed-over arrays as arguments.

  Arrays inside a function that is itself jitted stay constants of the program.
  So leave logits_fn unjitted.

  Args:
    fn: arrays -> arrays; traced once.
    in_axes: not used here; for the `map_fn` of several devices.
  """
  del in_axes
  compiled = []

  def call(*args):
    if not compiled:
      run, consts = hoisting.hoist(fn, *args)
      compiled.append(functools.partial(jax.jit(run), consts))
    return compiled[0](*args)

  return call


def _make_apgd(loss: str, budget: Budget, randomized: bool) -> Callable:
  """One restart of untargeted APGD, see `_MAKERS`."""

  def run(rng, index, points, targets, **batch):
    del points, targets
    return apgd(
      rng=jax.random.fold_in(rng, index),
      loss=loss,
      n_iter=budget.n_iter,
      eot_iter=budget.eot_iter,
      randomized=randomized,
      with_zero_gradients=True,
      with_broken_gradients=True,
      **batch,
    )[1:]

  return run


def _make_apgd_targeted(budget: Budget, randomized: bool) -> Callable:
  """One target rank of APGD, see `_MAKERS`."""
  del randomized

  def run(rng, index, points, **batch):
    del points
    return apgd(
      rng=jax.random.fold_in(rng, index),
      loss='targeted_dlr',
      n_iter=budget.n_iter,
      with_zero_gradients=True,
      with_broken_gradients=True,
      **batch,
    )[1:]

  return run


def _make_fab(budget: Budget, randomized: bool) -> Callable:
  """One restart of FAB, the first one from the image, see `_MAKERS`."""
  del randomized

  def run(rng, index, points, targets, **batch):
    del points, targets
    rng = jax.random.fold_in(rng, index)
    _, points, broken = fab(
      rng=rng,
      random=index > 0,
      n_iter=budget.n_iter,
      with_broken_gradients=True,
      **batch,
    )
    return points, jnp.zeros_like(broken), broken

  return run


def _make_fab_targeted(budget: Budget, randomized: bool) -> Callable:
  """One target rank of FAB, see `_MAKERS`."""
  del randomized

  def run(rng, index, points, **batch):
    del rng, index, points
    _, points, broken = fab(
      n_iter=budget.n_iter,
      with_broken_gradients=True,
      **batch,
    )
    return points, jnp.zeros_like(broken), broken

  return run


def _make_square(budget: Budget, randomized: bool) -> Callable:
  """One piece of Square's queries, see `_MAKERS`."""
  del randomized
  pieces = jnp.asarray(budget.square_pieces())

  def run(rng, index, points, targets, **batch):
    del targets
    points = square_points(
      rng=rng,
      first=pieces[index],
      last=pieces[index + 1],
      points=points,
      n_queries=budget.n_queries,
      **batch,
    )
    none = jnp.zeros_like(batch['active'])
    return points, none, none

  return run


# (budget, randomized) -> (rng, index, points, targets, **batch) -> (points
# [B, ...], zero_gradients bool [B], broken_gradients bool [B]); `batch` is what
# all attacks take.
_MAKERS = {
  'apgd-ce': functools.partial(_make_apgd, 'ce'),
  'apgd-dlr': functools.partial(_make_apgd, 'dlr'),
  'apgd-t': _make_apgd_targeted,
  'fab': _make_fab,
  'fab-t': _make_fab_targeted,
  'square': _make_square,
}


def make_attack(
  name: str,
  logits_fn: Callable,
  *,
  norm: str,
  budget: Budget,
  randomized: bool = False,
) -> Callable:
  """Creates one pass of an attack on one batch, for jit or pmap.

  Args:
    name: of the attack.
    logits_fn: images -> logits; with `randomized`, (images, key).
    norm: 'linf' or 'l2'.
    budget: iterations and queries.
    randomized: whether logits_fn takes a key.

  Returns:
    (images [B, ...], labels [B], targets [B], active bool [B], points [B,
    ...], indices [B], rng, index, epsilon) -> (points [B, ...], zero_gradients
    bool [B], broken_gradients bool [B]). `ATTACK_AXES` says which are per
    example. `targets` are the classes that a targeted attack aims at. `index`
    is one of `budget.passes`; one compilation serves all of them. `points` are
    those of the pass before (Square only).
  """
  one_pass = _MAKERS[name](budget, randomized)

  def run(
    images, labels, targets, active, points, indices, rng, index, epsilon
  ):
    return one_pass(
      rng,
      index,
      points,
      targets=targets,
      logits_fn=logits_fn,
      images=images,
      labels=labels,
      epsilon=epsilon,
      norm=norm,
      active=active,
      indices=indices,
    )

  return run
