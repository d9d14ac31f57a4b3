"""The training step: a factory of pure functions."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from dhat_jax.datasets.batches import prepare
from dhat_jax.losses import Loss
from dhat_jax.runtime import devices
from dhat_jax.training.state import TrainState, split_parts

Metrics = dict[str, tuple[chex.Array, chex.Array]]


def _fold(rngs: chex.PRNGKey, data: int) -> chex.PRNGKey:
  return jax.vmap(lambda rng: jax.random.fold_in(rng, data))(rngs)


def make_train_step(
  *,
  net: nn.Module,
  tx: optax.GradientTransformation,
  loss: Loss,
  attack: Callable | None,
  trains: Collection[str],
  output: str,
  augment: Callable | None = None,
  attack_scale: Callable | None = None,
  ema_decay: float = 0.0,
  freeze_statistics: bool = True,
  axis_name: str | None = None,
) -> Callable[[TrainState, Mapping[str, chex.Array]], tuple]:
  """Creates one step of adversarial training.

  Augment, attack the output in evaluation mode, compute the loss with the
  trained parts in training mode (clean images first, then adversarial ones,
  as the published code orders its batch statistics), update. Frozen parts
  run with running statistics and are not differentiated.

  Args:
    net: the network, a `DualHeadNet`; its `axis_name` shares batch norm's
      statistics over the replicas, or not.
    tx: optimiser of the trained parts, as given to `create_train_state`.
    loss: from `dhat_jax.losses`.
    attack: (objective, rngs, images, scale) -> images_adv, as `make_attack`
      creates it; None if the loss uses no adversarial images.
    trains: the parts that train.
    output: 'main', 'second', 'mean' or 'aggregated'.
    augment: (rngs [B], images float [B, H, W, C]) -> images, or None.
    attack_scale: step -> factor of the attack's epsilon and step size; None
      for 1.
    ema_decay: of the moving average of the trained parameters; 0 for none.
    freeze_statistics: whether the batch statistics of frozen parts are frozen
      too. False is what the published code does: in the loss, frozen parts
      normalise with the batch's statistics, and their running ones drift.
    axis_name: the mapped axis when the step runs under `pmap`; None under
      plain `jit`.

  Returns:
    (state, batch) -> (state, metrics), pure, to be jitted or pmapped by the
    caller. The batch is {'images': uint8 [B, H, W, C] or float in [0, 1],
    'labels': int32 [B], 'mask': bool [B], optional}. Metrics are {name: (sum,
    count)} over the global batch. Examples whose mask is False have no weight
    in loss and metrics, but are seen by batch norm: train on full batches.

  Raises:
    ValueError: a loss that needs an attack without one.
  """
  if loss.uses_adversarial and attack is None:
    raise ValueError(f'loss {loss.name!r} needs an attack, got None')

  normalises = trains if freeze_statistics else net.parts

  def step(state, batch):
    batch = prepare(batch)
    images, labels, mask = batch['images'], batch['labels'], batch['mask']
    rng = jax.random.fold_in(state.rng, state.step)
    rngs = devices.example_rngs(rng, images.shape[0], axis_name)
    if augment is not None:
      images = augment(_fold(rngs, 0), images)
    scale = 1.0 if attack_scale is None else attack_scale(state.step)

    def evaluate(inputs):
      return net.apply(
        {'params': state.params, 'batch_stats': state.batch_stats}, inputs
      )

    clean_evaluated = evaluate(images)
    images_adv = None
    if loss.uses_adversarial:
      objective = loss.make_objective(clean_evaluated.select(output), labels)
      images_adv = attack(
        lambda inputs: objective(evaluate(inputs).select(output)),
        _fold(rngs, 1),
        images,
        scale,
      )

    trained, frozen = split_parts(state.params, trains)
    count = devices.psum(mask.sum(), axis_name)

    def loss_fn(trained):
      params = {**trained, **frozen}
      stats, clean, adversarial = state.batch_stats, None, None
      if loss.uses_clean:
        clean, stats = _train_forward(net, params, stats, images, normalises)
      if images_adv is not None:
        adversarial, stats = _train_forward(
          net, params, stats, images_adv, normalises
        )
      values, diagnostics = loss.per_example(clean, adversarial, labels, output)
      if clean is None:
        diagnostics['clean_accuracy'] = _correct(
          clean_evaluated.select(output), labels
        )
      diagnostics['loss'] = values
      sums = {k: jnp.sum(v * mask) for k, v in diagnostics.items()}
      return sums['loss'] / count, (sums, stats)

    (_, (sums, stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      trained
    )
    if axis_name is None or net.axis_name is not None:
      grads, sums = devices.psum((grads, sums), axis_name)
    else:  # each replica has its own statistics
      replicas = jax.lax.axis_size(axis_name)
      stats = jax.tree.map(lambda leaf: leaf / replicas, stats)
      grads, sums, stats = devices.psum((grads, sums, stats), axis_name)
    updates, opt_state = tx.update(grads, state.opt_state, trained)
    trained = optax.apply_updates(trained, updates)
    metrics = {name: (total, count) for name, total in sums.items()}
    metrics['grad_norm'] = (optax.tree.norm(grads), jnp.ones(()))
    return (
      state.replace(
        step=state.step + 1,
        params={**state.params, **trained},
        batch_stats=stats,
        opt_state=opt_state,
        ema_params=_average(state.ema_params, trained, ema_decay),
      ),
      metrics,
    )

  return step


def _correct(logits: chex.Array, labels: chex.Array) -> chex.Array:
  return (logits.argmax(axis=1) == labels).astype(jnp.float32)


def _train_forward(net, params, batch_stats, images, normalises):
  """One forward with some parts in training mode.

  Returns:
    (Outputs, batch_stats) with the other parts' statistics untouched.
  """
  outputs, updated = net.apply(
    {'params': params, 'batch_stats': batch_stats},
    images,
    training_parts=tuple(part for part in normalises if part in net.parts),
    mutable=['batch_stats'],
  )
  trained_stats, _ = split_parts(updated['batch_stats'], normalises)
  return outputs, {**batch_stats, **trained_stats}


def _average(average: Any, trained: Any, decay: float) -> Any:
  if average is None:
    return None
  return optax.incremental_update(trained, average, 1 - decay)
