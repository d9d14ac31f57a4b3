"""What two sets of runs of one attack have in common, image by image."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dhat_jax import divergences
from dhat_jax.attacks.autoattack import passes
from dhat_jax.benchmark import autoattack_sides
from dhat_jax.benchmark.autoattack_sides import Problem

SIDES = ('ours', 'theirs')
# Of a distance, in [0, 1] units: what float32 may add to the radius.
_TOLERANCE = 1e-6
# Ways to deal runs to two sides that are tried; seven seeds a side have 3432.
_MOST_SPLITS = 5_000

Margins = dict[str, np.ndarray]  # {side: [N]}
Judge = Callable[[np.ndarray], Margins]


@dataclasses.dataclass(frozen=True)
class Attacked:
  """One run of one side.

  Attributes:
    broken: bool [N], predicted correctly before but not after; by the side's
      own network.
    images: float32 [N, H, W, C], adversarial where broken, else the image.
  """

  broken: np.ndarray
  images: np.ndarray


Runs = Mapping[str, Sequence[Attacked]]  # by side


def make_judge(problem: Problem, torch_net: Any) -> Judge:
  """Returns images [N, H, W, C] -> margins of both networks, [N] each.

  A margin is the label's logit less the largest other one; negative if the
  network is wrong.
  """
  predict = passes.jit_hoisted(problem.logits_fn, (0,))

  def judge(images):
    with jax.default_matmul_precision('highest'):
      ours = np.asarray(predict(images))
    theirs = autoattack_sides.torch_logits(
      torch_net, autoattack_sides.to_torch(images)
    )
    logits = {'ours': ours, 'theirs': theirs}  # [N, K] each
    return {
      side: -np.asarray(divergences.margin(logits[side], problem.labels))
      for side in SIDES
    }

  return judge


def _distances(problem: Problem, images: np.ndarray) -> np.ndarray:
  """Distances from the problem's images in its norm: [N]."""
  gaps = (images - problem.images).reshape(len(images), -1)
  order = {'linf': np.inf, 'l2': 2}[problem.norm]
  return np.linalg.norm(gaps.astype(np.float64), ord=order, axis=1)


def flags_that_differ(runs: Runs) -> dict[str, list[int]]:
  """Counts the images whose flags differ, for each pair of runs.

  Returns:
    Counts of the pairs 'between' the sides, and of those within 'ours' and
    within 'theirs'.
  """
  flags = {side: [run.broken for run in runs[side]] for side in SIDES}
  pairs = {
    'between': itertools.product(flags['ours'], flags['theirs']),
    **{side: itertools.combinations(flags[side], 2) for side in SIDES},
  }
  return {
    name: [int(np.sum(one != other)) for one, other in pairs[name]]
    for name in pairs
  }


def share_of_splits(runs: Runs) -> float | None:
  """Share of all ways to deal the runs to two sides that part them as much.

  If both sides draw from one distribution, the true sides are one of these ways
  by chance; a share below .05 says that they are not (a permutation test of the
  energy distance, Szekely & Rizzo 2004, between sets of flags). It is exact up
  to `_MOST_SPLITS` ways; of more, as many are drawn.

  Returns:
    The share, or None with less than two runs of a side.
  """
  flags = np.array([run.broken for side in SIDES for run in runs[side]])
  count = len(runs['ours'])
  if min(count, len(flags) - count) < 2:
    return None
  gaps = (flags[:, None] != flags[None]).sum(axis=2)  # [runs, runs]

  def distance(first):
    other = np.setdiff1d(np.arange(len(flags)), first)
    within = [
      gaps[np.ix_(group, group)].sum() / (len(group) * (len(group) - 1))
      for group in (first, other)
    ]
    return gaps[np.ix_(first, other)].mean() - np.mean(within)

  # A tolerance, since sums of the same counts may round differently.
  least = distance(np.arange(count)) - 1e-9
  splits = _splits(len(flags), count)
  return float(np.mean([distance(split) >= least for split in splits]))


def _splits(total: int, count: int) -> Iterator[np.ndarray]:
  """Yields the first side's runs: all ways, or the true one and many others."""
  if math.comb(total, count) <= _MOST_SPLITS:
    yield from map(np.array, itertools.combinations(range(total), count))
    return
  generator = np.random.default_rng(0)
  yield np.arange(count)
  for _ in range(_MOST_SPLITS - 1):
    yield generator.permutation(total)[:count]


def _facts(problem: Problem, judge: Judge, run: Attacked) -> dict[str, int]:
  """Counts a run's broken images, and what is true of them."""
  margins, distances = judge(run.images), _distances(problem, run.images)
  wrong = (margins['ours'] < 0) & (margins['theirs'] < 0)
  inside = distances <= problem.epsilon + _TOLERANCE
  inside &= np.all((run.images >= 0) & (run.images <= 1), axis=(1, 2, 3))
  return {
    'broken': int(run.broken.sum()),
    'wrong_for_both': int((run.broken & wrong).sum()),
    'in_ball': int((run.broken & inside).sum()),
  }


def _differences(
  problem: Problem,
  judge: Judge,
  clean: Margins,
  runs: Runs,
) -> Iterator[dict[str, Any]]:
  """Yields the images whose flags differ between both sides' first runs."""
  first = {side: runs[side][0] for side in SIDES}
  margins = {side: judge(first[side].images) for side in SIDES}
  distances = {side: _distances(problem, first[side].images) for side in SIDES}
  differ = first['ours'].broken != first['theirs'].broken
  for image in np.flatnonzero(differ):
    finder = 'ours' if first['ours'].broken[image] else 'theirs'
    yield {
      'image': int(image),
      'label': int(problem.labels[image]),
      'broken_by': finder,
      'clean_margins': {side: float(clean[side][image]) for side in SIDES},
      'margins': {side: float(margins[finder][side][image]) for side in SIDES},
      'distance': float(distances[finder][image]),
      'times_broken': {
        side: sum(int(run.broken[image]) for run in runs[side])
        for side in SIDES
      },
    }


def _as_text(run: Attacked, right: np.ndarray) -> str:
  """Returns a run's flags, one character per image."""
  marks = np.where(run.broken, 'x', '.')
  return ''.join(np.where(right, marks, '-'))


def compare(
  name: str, runs: Runs, problem: Problem, judge: Judge
) -> dict[str, Any]:
  """Compares the runs of one attack, or of all in sequence.

  Args:
    name: of the row.
    runs: of both sides.
    problem: what both sides attacked.
    judge: of `make_judge`.

  Returns:
    A row, as JSON can hold it. `flags` has a text for each run: for each image
    '.' for robust, 'x' for broken, '-' for wrong before the attack.
  """
  clean = judge(problem.images)
  right = (clean['ours'] > 0) & (clean['theirs'] > 0)
  ours, theirs = (runs[side][0].broken for side in SIDES)
  return {
    'attack': name,
    'robust': {
      side: [int((right & ~run.broken).sum()) for run in runs[side]]
      for side in SIDES
    },
    'equal_flags': int((ours == theirs).sum()),
    'only_ours': int((ours & ~theirs).sum()),
    'only_theirs': int((theirs & ~ours).sum()),
    'flags_that_differ': flags_that_differ(runs),
    'share_of_splits': share_of_splits(runs),
    'facts': {
      side: [_facts(problem, judge, run) for run in runs[side]]
      for side in SIDES
    },
    'differences': list(_differences(problem, judge, clean, runs)),
    'flags': {
      side: [_as_text(run, right) for run in runs[side]] for side in SIDES
    },
  }
