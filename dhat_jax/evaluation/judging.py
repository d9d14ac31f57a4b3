"""Randomised networks in an evaluation: what is attacked, and how it is judged.

Such a network draws its noise from Flax's stream 'noise'. Attacks see the mean
of its logits over some keys. Images are judged by evaluations with other keys.
With one sample a network has no noise, and none of this runs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import numpy as np

from dhat_jax.attacks import randomized
from dhat_jax.runtime import streams

STREAM = 'noise'  # of Flax's `make_rng`


def make_noisy(net: Any, variables: Any, output: str) -> Callable:
  """Returns (images [B, H, W, C], key) -> logits [B, K].

  Args:
    net: an object with `apply(variables, images, rngs) -> Outputs`.
    variables: its variables.
    output: of the network.
  """
  return lambda images, key: net.apply(
    variables, images, rngs={STREAM: key}
  ).select(output)


def make_logits_fn(
  net: Any, variables: Any, output: str, rngs: chex.PRNGKey, samples: int
) -> Callable:
  """Returns what an attack sees of a network: images -> logits [B, K].

  Args:
    net: an object with `apply(variables, images, **options) -> Outputs`.
    variables: its variables.
    output: of the network.
    rngs: typed keys [B] of the attack on each image.
    samples: evaluations whose mean is attacked; 1: a network without noise.
  """
  if samples == 1:
    return lambda images: net.apply(variables, images).select(output)
  return randomized.mean_logits(
    randomized.per_example(make_noisy(net, variables, output)),
    streams.fold_in_each(rngs, STREAM),
    samples,
  )


def flips(correct: np.ndarray | None) -> int:
  """Returns how many images two equal attacks may differ in, by chance.

  These are images that are robust in m evaluations and not in m others of the
  same images: the expectation and two standard deviations. An image's accuracy
  has Jeffreys' prior.

  Args:
    correct: bool [N, m], of the first attack; None: a network without noise.
  """
  if correct is None:
    return 0
  from scipy import stats  # slow to import

  samples, right = correct.shape[1], correct.sum(axis=1)  # [N]
  fails = stats.betabinom.cdf(
    samples // 2, samples, right + 0.5, samples - right + 0.5
  )[2 * right > samples]
  deviation = np.sqrt(np.sum(fails * (1 - fails)))
  return math.ceil(np.sum(fails) + 2 * deviation)


def section(
  records: Mapping[tuple[str, str], Any],
  *,
  attacks: Mapping[str, Sequence[str]],
  audited: str | None,
) -> dict[str, Any]:
  """Returns the part `randomized` of results.json; {} without noise.

  Args:
    records: {(target, attack): `Record`}.
    attacks: {output: names of the attacks that are listed}.
    audited: the output whose audit ran, or None.

  Returns:
    samples, accuracy {output: {attack: {worst, mean, spread}}} and, if an
    output was audited, audit {target: {attack: ...}} of that output.
  """
  correct = {
    (output, attack): records[output, attack].correct.get(output)
    for output, names in attacks.items()
    for attack in names
  }
  known = [flags for flags in correct.values() if flags is not None]
  if not known:
    return {}
  numbers: dict[str, Any] = {'samples': known[0].shape[1]}
  numbers['accuracy'] = {output: {} for output in attacks}
  for (output, attack), flags in correct.items():
    if flags is not None:
      numbers['accuracy'][output][attack] = randomized.accuracies(flags)
  if audited:
    numbers['audit'] = _audit(records, audited)
  return numbers


def _audit(
  records: Mapping[tuple[str, str], Any], audited: str
) -> dict[str, Any]:
  """Returns how often the audited output was correct, on all records."""
  numbers: dict[str, Any] = {}
  for (target, attack), record in records.items():
    if audited in record.correct:
      row = numbers.setdefault(target, {})
      row[attack] = randomized.accuracies(record.correct[audited])
  return numbers
