"""The training step: adversarial images, loss and statistics, update.

`make_train_step` composes the three; each can be used alone. The first two are
in `training.forward`.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from dhat_jax import arguments
from dhat_jax.attacks.balls import is_right
from dhat_jax.datasets.batches import prepare
from dhat_jax.losses.base import Loss
from dhat_jax.runtime import devices, streams
from dhat_jax.training.augment.base import (
  Augmentation,
  Mixing,
  augment_batch,
)
from dhat_jax.training.forward import (
  OWN,
  Sums,
  adversarial_images,
  evaluator,
  loss_and_statistics,
  sum_examples,
  with_labels,
)
from dhat_jax.training.remat import rematerialised
from dhat_jax.training.state import TrainState, check_parts, split_parts

__all__ = [
  'adversarial_images',
  'loss_and_statistics',
  'make_train_step',
  'update',
]

Metrics = dict[str, tuple[chex.Array, chex.Array]]


def update(
  state: TrainState,
  grads: Any,
  batch_stats: dict[str, Any],
  *,
  tx: optax.GradientTransformation,
  trains: Collection[str],
  ema_decay: chex.Numeric = 0.0,
  evaluated_at: Any = None,
) -> TrainState:
  """Applies the optimiser, then moves the average of the weights.

  Args:
    state: the state before.
    grads: {part: gradients} of the trained parts, over the global batch.
    batch_stats: of all parts, after the step.
    tx: the optimiser.
    trains: the trained parts.
    ema_decay: of the moving average at this step, if the state has one.
    evaluated_at: the trained parts' weights at which the gradient was taken, if
      they are others than the state's. They decay, as in the published code of
      adversarial weight perturbation; the update goes to the state's.

  Returns:
    The state of the next step.
  """
  trained, _ = split_parts(state.params, trains)
  decaying = trained if evaluated_at is None else evaluated_at
  updates, opt_state = tx.update(grads, state.opt_state, decaying)
  trained = optax.apply_updates(trained, updates)
  return state.replace(
    step=state.step + 1,
    params={**state.params, **trained},
    batch_stats=batch_stats,
    opt_state=opt_state,
    ema_params=_average(state.ema_params, trained, ema_decay),
    ema_batch_stats=_average(
      state.ema_batch_stats, split_parts(batch_stats, trains)[0], ema_decay
    ),
  )


def make_train_step(
  *,
  net: nn.Module,
  tx: optax.GradientTransformation,
  loss: Loss,
  attack: Callable | None,
  trains: Collection[str],
  output: str,
  augment: Augmentation | Mixing | None = None,
  attack_scale: Callable | None = None,
  ema_decay: float | Callable = 0.0,
  freeze_statistics: bool = True,
  attack_batch_statistics: bool = False,
  remat: bool = False,
  axis_name: str | None = None,
  value_and_grad: Callable = jax.value_and_grad,
) -> Callable[[TrainState, Mapping[str, chex.Array]], tuple]:
  """Creates one step of adversarial training.

  A step augments the images and attacks the output, in evaluation mode unless
  `attack_batch_statistics` says otherwise. It
  computes the loss with the trained parts in training mode, clean images first,
  as the published code orders its batch statistics. Then it updates. Frozen
  parts run with running statistics and are not differentiated.

  Args:
    net: the network, a `DualHeadNet`. If it has an `axis_name`, the replicas
      share batch norm's statistics.
    tx: optimiser of the trained parts, as given to `create_train_state`.
    loss: from `dhat_jax.losses`.
    attack: (objective, rngs, images, scale) -> images_adv, as `make_attack`
      creates it; None if the loss uses no adversarial images.
    trains: the parts that train.
    output: the output that is attacked and trained, a key of
      `models.outputs.OUTPUTS`.
    augment: (rngs [B], images float [B, H, W, C]) -> images, or a `Mixing`, or
      None.
    attack_scale: step -> factor of the attack's epsilon and step size; None
      for 1.
    ema_decay: of the moving average of the trained parameters; 0 for none. Or
      a function of the step, as `make_ema_decay` creates it.
    freeze_statistics: whether the batch statistics of frozen parts are frozen
      too. The published code does the opposite (False): in the loss, frozen
      parts normalise with the batch's statistics, and their running ones drift.
    attack_batch_statistics: whether the attack sees the network with the
      batch's statistics, as the loss does; no running statistics change.
    remat: whether the gradient stores the outputs of the network's units alone,
      and computes the rest of the forward pass again (`rematerialised`): less
      memory, more time.
    axis_name: the mapped axis when the step runs under `pmap`; None under
      plain `jit`.
    value_and_grad: `jax.value_and_grad`, or a replacement that perturbs the
      weights (`training.perturbation`). It is called as value_and_grad(loss_fn,
      has_aux=True)(trained parameters, step), and may call loss_fn several
      times. Weights decay where loss_fn was called last.

  Returns:
    (state, batch) -> (state, metrics), pure, for `jit` or `pmap`. The batch is
    {'images': uint8 [B, H, W, C] or float in [0, 1], 'labels': int32 [B],
    'mask': bool [B], optional}. A label out of [0, K) makes loss and gradients
    NaN. Metrics are {name: (sum, count)} over the global batch. Examples whose
    mask is False have no weight in loss and metrics. Batch norm sees them, so
    train on full batches. With 'own' bool [B] in the batch, the metrics
    `own_<name>` are of those images alone.

  Raises:
    ValueError: a loss without the attack that it needs, or that cannot train
      the output; parts or outputs that the network does not have; another
      invalid argument.
  """
  _check_trained(net, loss, trains, output)
  if loss.uses_adversarial and attack is None:
    raise ValueError(f'loss {loss.name!r} needs an attack, got None')
  if not callable(ema_decay):
    arguments.number('ema_decay', ema_decay, 0, below=1)
  arguments.flag('freeze_statistics', freeze_statistics)
  arguments.flag('attack_batch_statistics', attack_batch_statistics)
  arguments.flag('remat', remat)
  arguments.function('tx.update', getattr(tx, 'update', None))
  arguments.function('value_and_grad', value_and_grad)
  for name, got in (
    ('attack', attack),
    ('augment', getattr(augment, 'mix', augment)),
    ('attack_scale', attack_scale),
  ):
    if got is not None:
      arguments.function(name, got)
  normalises = trains if freeze_statistics else net.parts

  def step(state, batch):
    batch = prepare(batch)
    rng = jax.random.fold_in(state.rng, state.step)
    rngs = devices.example_rngs(rng, batch['images'].shape[0], axis_name)
    if augment is not None:
      keys = streams.fold_in_each(rngs, 'step/augment')
      batch = augment_batch(augment, keys, batch, axis_name)
    images_adv, clean_evaluated = adversarial_images(
      evaluator(
        net,
        state.params,
        state.batch_stats,
        normalises if attack_batch_statistics else (),
      ),
      batch,
      streams.fold_in_each(rngs, 'step/attack'),
      loss=loss,
      attack=attack,
      output=output,
      scale=1.0 if attack_scale is None else attack_scale(state.step),
      loss_state=state.loss_state,
    )
    trained, frozen = split_parts(state.params, trains)
    counts = {'': devices.psum(batch['mask'].sum(), axis_name)}
    if 'own' in batch:
      own = batch['own'] * batch['mask']
      counts[OWN] = devices.psum(own.sum(), axis_name)

    def loss_fn(trained, step):
      del step  # a weight perturbation may look at it
      sums, stats = loss_and_statistics(
        net,
        {**trained, **frozen},
        state.batch_stats,
        batch,
        images_adv,
        loss=loss,
        output=output,
        normalises=normalises,
        loss_state=state.loss_state,
      )
      return sums['loss'] / counts[''], (sums, stats, trained)

    if remat:
      loss_fn = rematerialised(loss_fn)
    (_, (sums, stats, evaluated_at)), grads = value_and_grad(
      loss_fn, has_aux=True
    )(trained, state.step)
    if not loss.uses_clean:
      logits = clean_evaluated.select(output)
      right = with_labels(lambda labels: is_right(logits, labels) * 1.0, batch)
      sums |= sum_examples({'clean_accuracy': right}, batch, loss)
    grads, sums, stats = _over_replicas(grads, sums, stats, net, axis_name)
    state = _remember(state, loss, sums)
    metrics = {
      name: (total, counts[OWN if name[: len(OWN)] in counts else ''])
      for name, total in sums.items()
    }
    metrics['grad_norm'] = (optax.tree.norm(grads), jnp.ones(()))
    state = update(
      state,
      grads,
      stats,
      tx=tx,
      trains=trains,
      ema_decay=ema_decay(state.step) if callable(ema_decay) else ema_decay,
      evaluated_at=evaluated_at,
    )
    return state, metrics

  return step


def _check_trained(
  net: nn.Module, loss: Loss, trains: Collection[str], output: str
) -> None:
  """Raises ValueError for parts or outputs that the network cannot train."""
  if not isinstance(loss, Loss):
    raise arguments.mistake('loss', loss, 'a Loss, as trades(beta=6.0)')
  if not hasattr(net, 'parts') or not hasattr(net, 'outputs'):
    raise arguments.mistake('net', net, 'a DualHeadNet')
  arguments.one_of('output', output, net.outputs)
  check_parts(net, trains)
  if loss.only_output not in (None, output):
    raise ValueError(
      f'output: got {output!r}, but loss {loss.name!r} can only train '
      f'{loss.only_output!r}'
    )
  for teacher in loss.teachers:
    if teacher not in net.outputs:
      raise ValueError(
        f'net: got outputs {tuple(net.outputs)}, but loss {loss.name!r} reads '
        f'{teacher!r} too'
      )


def _over_replicas(
  grads: Any, sums: Sums, stats: Any, net: nn.Module, axis_name: str | None
) -> tuple[Any, Sums, Any]:
  """Sums gradients and metrics over the replicas, in one all-reduce.

  The same all-reduce averages statistics that batch norm does not share.
  """
  if axis_name is None or net.axis_name is not None:
    grads, sums = devices.psum((grads, sums), axis_name)
    return grads, sums, stats
  replicas = jax.lax.axis_size(axis_name)
  stats = jax.tree.map(lambda leaf: leaf / replicas, stats)
  return devices.psum((grads, sums, stats), axis_name)


def _remember(state: TrainState, loss: Loss, sums: Sums) -> TrainState:
  """Moves the loss's memory on; takes its sums out of the metrics'."""
  if loss.memory is None:
    return state
  taken = {name: sums.pop(name) for name in loss.memory.sums}
  advanced = loss.memory.advance(state.loss_state, taken, state.step)
  return state.replace(loss_state=advanced)


def _average(average: Any, trained: Any, decay: chex.Numeric) -> Any:
  if average is None:
    return None
  return optax.incremental_update(trained, average, 1 - decay)
