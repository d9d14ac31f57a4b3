"""Steps of an evaluation: factories of pure functions."""

from collections.abc import Callable, Sequence
from typing import Any

from dhat_jax.attacks import randomized
from dhat_jax.datasets.batches import prepare
from dhat_jax.evaluation import judging
from dhat_jax.runtime import devices


def make_eval_step(
  *,
  net: Any,
  output: str,
  attack: Callable,
  axis_name: str | None = None,
  returns_images: bool = False,
  samples: int = 1,
) -> Callable:
  """Creates one step of evaluation under attack.

  Args:
    net: the network, or an object with `apply(variables, images) -> Outputs`.
    output: the output that is attacked and scored, a key of
      `models.outputs.OUTPUTS`.
    attack: (logits_fn, images, labels, rngs, settings) -> (robust [B] bool,
      images_adv). `settings` is a tree of numbers that may change from call
      to call without recompiling (epsilon, number of steps, ...).
    axis_name: the mapped axis under `pmap`, or None.
    returns_images: whether to return (robust, images_adv) instead, with the
      images of this replica [B, ...].
    samples: evaluations whose mean logits are attacked; 1: a network without
      noise.

  Returns:
    (variables, batch, rng, offset, settings) -> robust bool [global B], False
    where the mask is. `rng` is folded per example by `offset` plus its place in
    the batch. So results do not depend on the batch size.
  """

  def step(variables, batch, rng, offset, settings):
    batch = prepare(batch)
    images, labels = batch['images'], batch['labels']
    rngs = devices.example_rngs(rng, images.shape[0], axis_name, offset)
    robust, images_adv = attack(
      judging.make_logits_fn(net, variables, output, rngs, samples),
      images,
      labels,
      rngs,
      settings,
    )
    robust = devices.all_gather(robust & (batch['mask'] > 0), axis_name)
    return (robust, images_adv) if returns_images else robust

  return step


def make_judge_step(net: Any, outputs: Sequence[str], samples: int) -> Callable:
  """Creates the evaluations of a batch of a randomised network, for pmap.

  Args:
    net: an object with `apply(variables, images, rngs) -> Outputs`.
    outputs: of the network; all see the same noise.
    samples: m.

  Returns:
    (variables, images [B, H, W, C], rng, offset) -> {output: [global B, m, K]}.
    The noise of an image hangs on `rng`, its place and the sample's number.
  """

  def judge(variables, images, rng, offset):
    def logits(images, key):
      predicted = net.apply(variables, images, rngs={judging.STREAM: key})
      return {name: predicted.select(name) for name in outputs}

    rngs = devices.example_rngs(rng, images.shape[0], devices.AXIS, offset)
    rows = randomized.sampled(
      randomized.per_example(logits), images, rngs, samples
    )
    return {
      name: devices.all_gather(rows[name], devices.AXIS) for name in outputs
    }

  return judge
