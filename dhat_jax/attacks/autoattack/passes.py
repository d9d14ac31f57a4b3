"""The attacks of AutoAttack as compiled programs for batches of one shape.

A batch takes items: an image and one of the passes over it. A program serves
all passes of its attacks. All variants of APGD share one.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import chex
import jax
import jax.numpy as jnp

from dhat_jax.attacks import randomized as noise
from dhat_jax.attacks.apgd import apgd
from dhat_jax.attacks.autoattack.budget import Budget
from dhat_jax.attacks.autoattack.packing import Attack
from dhat_jax.attacks.fab import fab
from dhat_jax.attacks.square import square_points
from dhat_jax.runtime import hoisting, streams

# Of the functions that are given to `map_fn`: what is per item, what not.
ATTACK_AXES = (0, 0, 0, 0, 0, 0, 0, 0, None, None)
# What APGD maximises, by the name of the attack.
_APGD_LOSSES = {'apgd-ce': 'ce', 'apgd-dlr': 'dlr', 'apgd-t': 'targeted_dlr'}


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


def _item_keys(
  rngs: chex.PRNGKey, which: chex.Array, passes: chex.Array
) -> chex.PRNGKey:
  """Keys of the items, of their attacks and passes: [A], [B], [B] -> [B]."""
  return jax.vmap(jax.random.fold_in)(rngs[which], passes)


def _make_apgd(
  names: Sequence[str], budget: Budget, **options: bool
) -> Callable:
  """APGD with the losses of some attacks, see `_MAKERS`."""
  losses = tuple(_APGD_LOSSES[name] for name in names)

  def run(rngs, which, passes, points, **batch):
    del points
    return apgd(
      rng=_item_keys(rngs, which, passes),
      loss=losses if len(losses) > 1 else losses[0],
      which=which,
      n_iter=budget.n_iter,
      eot_iter=budget.eot_iter,
      with_zero_gradients=True,
      with_broken_gradients=True,
      **options,
      **batch,
    )[1:]

  return run


def _make_fab(
  names: Sequence[str], budget: Budget, **options: bool
) -> Callable:
  """FAB with restarts, the first one from the image, see `_MAKERS`."""
  del names, options

  def run(rngs, which, passes, points, targets, **batch):
    del points, targets
    _, points, broken = fab(
      rng=_item_keys(rngs, which, passes),
      random=passes > 0,
      n_iter=budget.n_iter,
      stop_at_epsilon=budget.stop_at_epsilon,
      with_broken_gradients=True,
      **batch,
    )
    return points, jnp.zeros_like(broken), broken

  return run


def _make_fab_targeted(
  names: Sequence[str], budget: Budget, **options: bool
) -> Callable:
  """FAB towards target classes, see `_MAKERS`."""
  del names, options

  def run(rngs, which, passes, points, **batch):
    del rngs, which, passes, points
    _, points, broken = fab(
      n_iter=budget.n_iter,
      stop_at_epsilon=budget.stop_at_epsilon,
      with_broken_gradients=True,
      **batch,
    )
    return points, jnp.zeros_like(broken), broken

  return run


def _make_square(
  names: Sequence[str], budget: Budget, **options: bool
) -> Callable:
  """One piece of Square's queries, see `_MAKERS`."""
  del names, options
  pieces = jnp.asarray(budget.square_pieces())

  def run(rngs, which, passes, points, targets, **batch):
    del targets
    # All items of a batch are in the same piece: they share the windows.
    points = square_points(
      rng=rngs[which[0]],
      first=pieces[passes[0]],
      last=pieces[passes[0] + 1],
      points=points,
      n_queries=budget.n_queries,
      **batch,
    )
    none = jnp.zeros_like(batch['active'])
    return points, none, none

  return run


# (names, budget, **options of APGD) -> (rngs [A], which [B], passes [B], points
# [B, ...], targets [B], **batch) -> (points [B, ...], zero_gradients bool [B],
# broken_gradients bool [B]); `batch` is what all attacks take.
_MAKERS = {
  'apgd': _make_apgd,
  'fab': _make_fab,
  'fab-t': _make_fab_targeted,
  'square': _make_square,
}


def family(name: str, names: Sequence[str]) -> tuple[str, ...]:
  """Returns the attacks among `names` that share a program with `name`."""
  if name not in _APGD_LOSSES:
    return (name,)
  return tuple(other for other in names if other in _APGD_LOSSES)


def mixes_passes(name: str) -> bool:
  """Whether items of different passes may share a batch.

  Pieces of Square follow each other, with windows that a batch shares.
  """
  return name != 'square'


def make_attack(
  names: str | Sequence[str],
  logits_fn: Callable,
  *,
  norm: str,
  budget: Budget,
  randomized: bool = False,
  by_mean_loss: bool = False,
) -> Callable:
  """Creates the program of some attacks on one batch, for jit or pmap.

  Args:
    names: an attack, or those of a `family`.
    logits_fn: images -> logits; with `randomized`, (images, key).
    norm: 'linf' or 'l2'.
    budget: iterations and queries.
    randomized: whether logits_fn takes a key. Then APGD averages gradients over
      its noise. FAB and Square attack the mean logits of `budget.eot_iter`
      evaluations, which differ from pass to pass.
    by_mean_loss: of a randomised network, see `apgd`.

  Returns:
    (images [B, ...], labels [B], targets [B], active bool [B], points [B,
    ...], indices [B], passes [B], which [B], rngs [A], epsilon) -> (points [B,
    ...], zero_gradients bool [B], broken_gradients bool [B]). `ATTACK_AXES`
    says which are per item. `targets` are the classes that a targeted attack
    aims at. `points` are those of the pass before (Square only). `passes` are
    from `budget.passes`. `which` is an item's place in `names`, and `rngs` are
    the keys of these attacks.
  """
  names = (names,) if isinstance(names, str) else tuple(names)
  maker = 'apgd' if names[0] in _APGD_LOSSES else names[0]
  options = {'randomized': randomized, 'by_mean_loss': by_mean_loss}
  run_items = _MAKERS[maker](names, budget, **options)

  def run(
    images,
    labels,
    targets,
    active,
    points,
    indices,
    passes,
    which,
    rngs,
    epsilon,
  ):
    network = logits_fn
    if randomized:
      keys = noise.folded_each(_item_keys(rngs, which, passes), indices)
      network = _noisy(maker, logits_fn, keys, indices, budget.eot_iter)
    return run_items(
      rngs,
      which,
      passes,
      points,
      targets=targets,
      logits_fn=network,
      images=images,
      labels=labels,
      epsilon=epsilon,
      norm=norm,
      active=active,
      indices=indices,
    )

  return run


def make_attacks(
  names: tuple[str, ...],
  make: Callable,
  map_fn: Callable,
  rng: chex.PRNGKey,
) -> Iterator[Attack]:
  """Yields the attacks in order, with programs that compile when first used.

  Args:
    names: of the attacks.
    make: names -> function, as `passes.make_attack`.
    map_fn: (fn, in_axes) -> compiled fn.
    rng: typed key.
  """
  programs = {}
  for name in names:
    together = family(name, names)
    if together not in programs:
      programs[together] = map_fn(make(together), ATTACK_AXES)
    yield Attack(
      name,
      programs[together],
      which=together.index(name),
      rngs=jnp.stack(
        [streams.fold_in(rng, f'autoattack/{other}') for other in together]
      ),
      mixed=mixes_passes(name),
    )


def _noisy(
  maker: str,
  logits_fn: Callable,
  keys: chex.PRNGKey,
  indices: chex.Array,
  samples: int,
) -> Callable:
  """Returns what an attack sees of a randomised network.

  An item's noise hangs on its attack, its pass and its image.

  Args:
    maker: of `_MAKERS`.
    logits_fn: (images, key) -> logits.
    keys: typed keys [B] of the items.
    indices: int [B], places of their images.
    samples: evaluations of a mean.

  Returns:
    (images, keys of attack and pass [B]) -> logits for APGD, which folds them
    at each evaluation; images -> mean logits for the others.
  """
  noisy = noise.per_example(logits_fn)
  if maker == 'apgd':
    return lambda images, keys: noisy(images, noise.folded_each(keys, indices))
  return noise.mean_logits(noisy, streams.fold_in_each(keys, 'noise'), samples)
