"""The first two thirds of a training step: adversarial images, and the loss.

`training.step` composes them with the update; each can be used alone.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from dhat_jax.losses.base import Loss
from dhat_jax.models.outputs import Outputs
from dhat_jax.training.state import split_parts

Sums = dict[str, chex.Array]
# What the metrics of a data set's own images begin with, where others are
# mixed in.
OWN = 'own_'


def with_labels(
  function: Callable[[chex.Array], Any], batch: Mapping[str, chex.Array]
) -> Any:
  """Computes a function of the labels, also of mixed ones.

  An augmentation may mix two images, and gives both labels: `label_share` [B]
  of `labels` and the rest of `other_labels`. The values are mixed likewise. For
  cross entropy this is the cross entropy with the mixed target.

  Args:
    function: labels int [B] -> tree of arrays [B, ...].
    batch: with `labels`; and `other_labels`, `label_share` where mixed.
  """
  values = function(batch['labels'])
  if 'other_labels' not in batch:
    return values
  share = batch['label_share']

  def mix(first, second):
    weight = share.reshape(-1, *[1] * (first.ndim - 1))
    return weight * first + (1 - weight) * second

  return jax.tree.map(mix, values, function(batch['other_labels']))


def evaluator(
  net: nn.Module,
  params: Mapping[str, Any],
  batch_stats: Mapping[str, Any],
  training_parts: Collection[str] = (),
) -> Callable[[chex.Array], Outputs]:
  """Returns images [B, H, W, C] -> Outputs, for an attack.

  Args:
    net: the network.
    params: of all its parts.
    batch_stats: of all its parts.
    training_parts: the parts that normalise with the batch's statistics. No
      running statistics change.
  """
  variables = {'params': params, 'batch_stats': batch_stats}
  parts = tuple(part for part in training_parts if part in net.parts)
  if not parts:
    return lambda images: net.apply(variables, images)
  return lambda images: net.apply(
    variables, images, training_parts=parts, mutable=['batch_stats']
  )[0]


def adversarial_images(
  evaluate: Callable[[chex.Array], Outputs],
  batch: Mapping[str, chex.Array],
  rngs: chex.PRNGKey,
  *,
  loss: Loss,
  attack: Callable | None,
  output: str,
  scale: chex.Numeric = 1.0,
  loss_state: Any = None,
) -> tuple[chex.Array | None, Outputs]:
  """Attacks a batch.

  Args:
    evaluate: images [B, H, W, C] -> Outputs, see `evaluator`.
    batch: as `batches.prepare` returns it; its labels may be mixed
      (`with_labels`).
    rngs: typed keys [B], of the attack's noise.
    loss: whose objective is maximised.
    attack: as `make_attack` creates it, or None.
    output: the output that is attacked.
    scale: factor of the attack's epsilon and step size.
    loss_state: of the loss's `memory`, if its objective uses it.

  Returns:
    (adversarial images [B, H, W, C], or None if the loss uses none; the clean
    images' Outputs of `evaluate`).
  """
  images = batch['images']
  clean = evaluate(images)
  if not loss.uses_adversarial:
    return None, clean
  selected = clean.select(output)
  memory = (loss_state,) if loss.objective_uses_memory else ()

  def objective(inputs):
    logits = evaluate(inputs).select(output)
    return with_labels(
      lambda labels: loss.make_objective(selected, labels, *memory)(logits),
      batch,
    )

  return attack(objective, rngs, images, scale), clean


def loss_and_statistics(
  net: nn.Module,
  params: Mapping[str, Any],
  batch_stats: Mapping[str, Any],
  batch: Mapping[str, chex.Array],
  images_adv: chex.Array | None,
  *,
  loss: Loss,
  output: str,
  normalises: Collection[str],
  loss_state: Any = None,
) -> tuple[Sums, dict[str, Any]]:
  """Computes a batch's losses and the new batch statistics.

  The clean images run first, then the adversarial ones, in the order of the
  published code.

  Args:
    net: the network.
    params: of all its parts.
    batch_stats: of all its parts.
    batch: as `batches.prepare` returns it; its labels may be mixed.
    images_adv: adversarial images, or None.
    loss: the training loss.
    output: the output that is trained.
    normalises: the parts that normalise with the batch's statistics.
    loss_state: of the loss's `memory`, if it has one.

  Returns:
    ({name: sum over the examples that count}, with 'loss'; the new
    batch_stats). With an `own` in the batch, 'own_<name>' is the sum over the
    data set's own images. What the loss's memory takes is there once.
  """
  clean = adversarial = None
  if loss.uses_clean:
    clean, batch_stats = _train_forward(
      net, params, batch_stats, batch['images'], normalises
    )
  if images_adv is not None:
    adversarial, batch_stats = _train_forward(
      net, params, batch_stats, images_adv, normalises
    )
  memory = () if loss.memory is None else (loss_state,)

  def per_example(labels):
    # What does not count may have any label: 0 times NaN would be NaN.
    labels = jnp.where(batch['mask'] > 0, labels, 0)
    values, diagnostics = loss.per_example(
      clean, adversarial, labels, output, *memory
    )
    return {**diagnostics, 'loss': values}  # each [B, ...]

  values = with_labels(per_example, batch)
  return sum_examples(values, batch, loss), batch_stats


def sum_examples(
  values: Mapping[str, chex.Array], batch: Mapping[str, chex.Array], loss: Loss
) -> Sums:
  """Sums values of a batch over the examples that count.

  Args:
    values: {name: [B, ...]}.
    batch: as `batches.prepare` returns it.
    loss: the training loss, whose memory takes some of them.

  Returns:
    As `loss_and_statistics` does.
  """
  mask = batch['mask']
  withheld = loss.memory.sums if loss.memory else ()
  sums = {
    name: _sum_of_arrays(value, mask)
    if name in withheld
    else jnp.sum(value * mask)
    for name, value in values.items()
  }
  if 'own' in batch:
    sums |= {
      f'{OWN}{name}': jnp.sum(value * mask * batch['own'])
      for name, value in values.items()
      if name not in withheld
    }
  return sums


def _sum_of_arrays(values: chex.Array, mask: chex.Array) -> chex.Array:
  """Sums arrays over the examples that count: [B, ...], [B] -> [...].

  Not as a matrix product, which accelerators would round.
  """
  return jnp.sum(values * mask.reshape(-1, *[1] * (values.ndim - 1)), axis=0)


def _train_forward(
  net: nn.Module,
  params: Mapping[str, Any],
  batch_stats: Mapping[str, Any],
  images: chex.Array,
  normalises: Collection[str],
) -> tuple[Outputs, dict[str, Any]]:
  """Runs the network with some parts in training mode.

  Returns:
    (Outputs, batch_stats); the other parts' statistics are unchanged.
  """
  outputs, updated = net.apply(
    {'params': params, 'batch_stats': batch_stats},
    images,
    training_parts=tuple(part for part in normalises if part in net.parts),
    mutable=['batch_stats'],
  )
  trained_stats, _ = split_parts(updated['batch_stats'], normalises)
  return outputs, {**batch_stats, **trained_stats}
