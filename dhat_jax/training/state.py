"""The state of training, which a checkpoint stores."""

from collections.abc import Collection, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from dhat_jax import arguments
from dhat_jax.attacks import balls
from dhat_jax.losses.base import Loss

_COMPILE_FAST = {'xla_backend_optimization_level': 0}


class TrainState(struct.PyTreeNode):
  """An immutable tree; all randomness is derived from `rng` and `step`.

  Attributes:
    step: int32 scalar, the steps done in this stage.
    params: {part: parameters} of all parts, frozen ones included.
    batch_stats: {part: running statistics} of all parts.
    opt_state: the optimiser's state, of the trained parts only.
    rng: typed key of the stage; never advanced, only folded with `step`.
    ema_params: moving average of the trained parts' parameters, or None.
    ema_batch_stats: that of their running statistics, or None.
    loss_state: what the loss remembers (`losses.Memory`), or None.
  """

  step: chex.Array
  params: dict[str, Any]
  batch_stats: dict[str, Any]
  opt_state: optax.OptState
  rng: chex.PRNGKey
  ema_params: dict[str, Any] | None = None
  loss_state: Any = None
  ema_batch_stats: dict[str, Any] | None = None

  def variables(self, *, averaged: bool = True) -> dict[str, Any]:
    """Returns what `net.apply` takes.

    Args:
      averaged: whether to return the averages where there are any, or the
        values that train.
    """
    if not averaged:
      return {'params': self.params, 'batch_stats': self.batch_stats}
    return {
      'params': {**self.params, **(self.ema_params or {})},
      'batch_stats': {**self.batch_stats, **(self.ema_batch_stats or {})},
    }

  def with_parts(self, params: Mapping[str, Any]) -> 'TrainState':
    """Returns a copy with other parameters of some parts: {part: subtree}.

    Averages of these parts are replaced too.
    """
    average = self.ema_params
    if average is not None:
      average = {**average, **{k: params[k] for k in average if k in params}}
    return self.replace(params={**self.params, **params}, ema_params=average)


def split_parts(
  tree: Mapping[str, Any], trains: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Splits {part: subtree} into (trained, frozen); every part is in one.

  Parts without parameters (the `mean` aggregator) are in neither.
  """
  trained = {part: tree[part] for part in tree if part in trains}
  frozen = {part: tree[part] for part in tree if part not in trains}
  return trained, frozen


def check_parts(net: nn.Module, trains: Collection[str]) -> None:
  """Raises ValueError unless a network has the parts to train.

  Args:
    net: a `DualHeadNet`.
    trains: names of its parts, at least one.
  """
  if (
    isinstance(trains, str) or not isinstance(trains, Collection) or not trains
  ):
    raise arguments.mistake(
      'trains', trains, f'a tuple of some of {tuple(net.parts)}'
    )
  for part in trains:
    arguments.one_of('trains', part, tuple(net.parts))


def _check_image_shape(image_shape: tuple[int, int, int]) -> None:
  arguments.sequence('image_shape', image_shape)
  if len(image_shape) != 3:
    raise arguments.mistake('image_shape', image_shape, '(H, W, C)')
  for name, side in zip('HWC', image_shape, strict=True):
    arguments.integer(f'image_shape, {name}', side, 1)


def create_train_state(
  *,
  net: nn.Module,
  tx: optax.GradientTransformation,
  trains: Collection[str],
  rng: chex.PRNGKey,
  image_shape: tuple[int, int, int],
  variables: Mapping[str, Any] | None = None,
  ema: bool = False,
  ema_statistics: bool = False,
  loss: Loss | None = None,
) -> TrainState:
  """Creates the state in which a stage starts.

  Args:
    net: the network, a `DualHeadNet`.
    tx: the optimiser of the trained parts.
    trains: the parts to train; the others are frozen.
    rng: typed threefry key. Parts that `variables` lacks are initialised
      from it.
    image_shape: (H, W, C).
    variables: {'params': {part: ...}, 'batch_stats': {part: ...}} of the parts
      that earlier stages trained.
    ema: whether to keep a moving average of the trained parameters.
    ema_statistics: whether to keep one of their running statistics too.
    loss: the training loss; needed if it has a `memory`.

  Returns:
    The state at step 0.

  Raises:
    ValueError: `variables` with parts or shapes that `net` does not have, or
      another invalid argument.
  """
  check_parts(net, trains)
  arguments.flag('ema', ema)
  arguments.flag('ema_statistics', ema_statistics)
  arguments.function('tx.init', getattr(tx, 'init', None))
  _check_image_shape(image_shape)
  balls.check_keys('rng', rng, one=True)
  init_rng, state_rng = jax.random.split(rng)
  # The mapped axis does not exist here; the parameters do not depend on it.
  init = net.clone(axis_name=None).init
  images = jnp.zeros((1, *image_shape))
  empty = {'params': {}, 'batch_stats': {}}
  given = empty if variables is None else variables
  if not isinstance(given, Mapping) or set(given) != set(empty):
    raise arguments.mistake(
      'variables', given, "a dict of 'params' and 'batch_stats'"
    )
  if any(given.values()):  # otherwise there is nothing to trace this for
    shapes = jax.eval_shape(init, init_rng, images)
    for group in given:
      for part, subtree in given[group].items():
        arguments.one_of('part', part, tuple(shapes[group]))
        _check_same_shapes(part, subtree, shapes[group][part])

  def init_missing(rng):
    fresh = init(rng, images)
    return {
      group: {k: v for k, v in fresh[group].items() if k not in given[group]}
      for group in given
    }

  # It runs once: compiling it well would take longer than running it.
  traced = isinstance(images, jax.core.Tracer)  # then nothing compiles here
  options = None if traced else _COMPILE_FAST
  fresh = jax.jit(init_missing, compiler_options=options)(init_rng)
  # Copies: a step that donates its state must not delete the caller's.
  given = jax.tree.map(jnp.array, dict(given))
  params = {**given['params'], **fresh['params']}
  batch_stats = {**given['batch_stats'], **fresh['batch_stats']}
  trained, _ = split_parts(params, trains)
  statistics, _ = split_parts(batch_stats, trains)
  averages = ema and ema_statistics
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=batch_stats,
    opt_state=tx.init(trained),
    rng=state_rng,
    ema_params=jax.tree.map(jnp.array, trained) if ema else None,
    ema_batch_stats=jax.tree.map(jnp.array, statistics) if averages else None,
    loss_state=_loss_state(loss),
  )


def _loss_state(loss: Loss | None) -> Any:
  """Returns what a loss remembers at step 0, or None."""
  if loss is None or loss.memory is None:
    return None
  # With the types of a step's result: other ones would compile it twice.
  return jax.tree.map(
    lambda leaf: jnp.asarray(leaf, jnp.asarray(leaf).dtype),
    loss.memory.initial(),
  )


def _check_same_shapes(part: str, got: Any, expected: Any) -> None:
  got, expected = (
    {
      jax.tree_util.keystr(path): tuple(jnp.shape(leaf))
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    for tree in (got, expected)
  )
  differing = {
    key: (got.get(key), expected.get(key))
    for key in got.keys() | expected.keys()
    if got.get(key) != expected.get(key)
  }
  if differing:
    lines = [f'  {k}: got {g}, expected {e}' for k, (g, e) in differing.items()]
    raise ValueError(
      f'parameters of {part} do not fit the network:\n' + '\n'.join(lines[:20])
    )
