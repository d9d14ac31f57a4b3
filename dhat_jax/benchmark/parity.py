"""AutoAttack here and in PyTorch, image by image: same weights, same images.

Seeded attacks differ from run to run, on either side. So each side runs with
several seeds, and the images whose flags differ between the sides are compared
with those that differ within a side. Every adversarial image is judged by both
networks, so that a flag is a fact and no rounding error.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from dhat_jax import arguments
from dhat_jax.attacks import balls
from dhat_jax.attacks.autoattack.budget import Budget
from dhat_jax.benchmark import autoattack_sides, parity_flags
from dhat_jax.benchmark.autoattack_sides import STANDARD, Problem
from dhat_jax.benchmark.parity_flags import SIDES, Attacked, Runs
from dhat_jax.pytorch import jax_module
from dhat_jax.runtime import documents, provenance

# With one restart they draw nothing.
DETERMINISTIC = ('fab-t',)
# The row of all attacks: worst case per image, which defines the ensemble.
COMBINED = 'all four'


def _attack(
  name: str,
  problem: Problem,
  torch_net: Any,
  budget: Budget,
  size: int,
  seeds: Sequence[int],
) -> Runs:
  """Runs one attack on all images, on both sides, once for each seed."""
  ours = autoattack_sides.Ours(problem, (name,), budget, size)
  theirs = autoattack_sides.Theirs(problem, torch_net, (name,), budget)
  clean = autoattack_sides.torch_logits(
    torch_net, autoattack_sides.to_torch(problem.images)
  )
  right = balls.is_right(clean, problem.labels)
  runs = {side: [] for side in SIDES}
  for seed in seeds:
    result = ours.attack(seed)
    broken = result.flags['clean'] & ~result.robust
    runs['ours'].append(Attacked(broken, result.images_adv))
    robust, images = theirs.attack(seed)
    runs['theirs'].append(Attacked(right & ~robust, images))
  return runs


def _worst_case(runs: Sequence[Attacked]) -> Attacked:
  """Combines attacks as AutoAttack does: an image falls to the first one."""
  broken, images = runs[0].broken.copy(), runs[0].images.copy()
  for run in runs[1:]:
    new = run.broken & ~broken
    images[new] = run.images[new]
    broken |= new
  return Attacked(broken, images)


def _combine(runs: Sequence[Runs], seeds: int) -> Runs:
  """Combines all attacks; one that ran once serves every seed."""
  return {
    side: [
      _worst_case([attack[side][seed % len(attack[side])] for attack in runs])
      for seed in range(seeds)
    ]
    for side in SIDES
  }


def compare_sides(
  problem: Problem,
  torch_net: Any,
  judge: parity_flags.Judge,
  budget: Budget,
  batch_size: int,
  seeds: int,
  *,
  report: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
  """Attacks a problem on both sides: a row for each attack, and for all.

  Args:
    problem: what both sides attack.
    torch_net: its network in PyTorch.
    judge: of `parity_flags.make_judge`.
    budget: of both sides.
    batch_size: on our side.
    seeds: runs of each side.
    report: called with a line after each attack.

  Returns:
    Rows of `parity_flags.compare`.
  """
  rows, runs = [], []
  for name in (*STANDARD, COMBINED):
    if name == COMBINED:
      runs.append(_combine(runs, seeds))
    else:
      numbers = range(1 if name in DETERMINISTIC else seeds)
      runs.append(
        _attack(name, problem, torch_net, budget, batch_size, numbers)
      )
    rows.append(parity_flags.compare(name, runs[-1], problem, judge))
    report(_line(rows[-1]))
  return rows


def run(
  config: ml_collections.ConfigDict,
  directory: str | None = None,
  count: int = 128,
  batch_size: int = 64,
  *,
  n_iter: int = 100,
  n_queries: int = 5000,
  seeds: int = 3,
  report: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Compares AutoAttack's flags with pyautoattack's.

  Args:
    config: of the network; its evaluation gives norm and epsilon.
    directory: a trained workdir of it, or None: see `make_problem`.
    count: images.
    batch_size: on our side, where the flags do not depend on it.
    n_iter: iterations of APGD and FAB.
    n_queries: of Square.
    seeds: runs of each side; the seeds are 0, 1, ... `DETERMINISTIC` attacks
      run once.
    report: called with a line after each attack.

  Returns:
    What `table` formats, as JSON can hold it.

  Raises:
    ImportError: PyTorch or pyautoattack is not installed.
    ValueError: bad arguments.
  """
  arguments.integer('seeds', seeds, least=2)
  jax_module.import_torch().set_num_threads(provenance.cores())  # as XLA does
  autoattack_sides.import_original()
  problem = autoattack_sides.make_problem(config, directory, count)
  budget = autoattack_sides.make_budget(problem, n_iter, n_queries)
  torch_net = autoattack_sides.make_torch_twin(problem)
  judge = parity_flags.make_judge(problem, torch_net)
  size = min(batch_size, len(problem.images))
  rows = compare_sides(
    problem, torch_net, judge, budget, size, seeds, report=report
  )
  clean = judge(problem.images)
  return {
    'source': problem.source,
    'output': problem.net.outputs[-1],
    'images': len(problem.images),
    'image_shape': problem.images.shape[1:],
    'clean_right': {side: int((clean[side] > 0).sum()) for side in SIDES},
    'largest_gap_of_clean_margins': float(
      np.abs(clean['ours'] - clean['theirs']).max()
    ),
    'epsilon': problem.epsilon,
    'norm': problem.norm,
    'budget': dataclasses.asdict(budget),
    'rows': rows,
  }


def _line(row: Mapping[str, Any]) -> str:
  """Says what a row says in one line."""
  return (
    f'{row["attack"]}: robust there {row["robust"]["theirs"]}, here '
    f'{row["robust"]["ours"]}; broken only there {row["only_theirs"]}, only '
    f'here {row["only_ours"]}'
  )


def table(measured: Mapping[str, Any]) -> str:
  """Returns the Markdown tables of what `run` returns."""
  headers = (
    'attack',
    'robust there',
    'robust here',
    'only there / only here',
    'differ: there and here',
    'there and there',
    'here and here',
    'share of splits',
    'wrong for both networks',
  )
  flags = documents.markdown_table(headers, map(_cells, measured['rows']))
  headers = (
    'attack',
    'image',
    'label',
    'broken',
    'clean margin there / here',
    'adversarial margin there / here',
    'times broken there',
    'times broken here',
  )
  cells = [
    (row['attack'], *_difference_cells(row, difference))
    for row in measured['rows']
    for difference in row['differences']
  ]
  differences = documents.markdown_table(headers, cells)
  return f'{flags}\n\n{differences}' if cells else flags


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
  """Formats a row of `run`."""
  facts = [fact for side in SIDES for fact in row['facts'][side]]
  broken, wrong = (
    sum(fact[key] for fact in facts) for key in ('broken', 'wrong_for_both')
  )
  gaps, share = row['flags_that_differ'], row['share_of_splits']
  return (
    row['attack'],
    *(', '.join(map(str, row['robust'][side])) for side in reversed(SIDES)),
    f'{row["only_theirs"]} / {row["only_ours"]}',
    *(
      f'{np.mean(gaps[key]):.1f}' if gaps[key] else ''
      for key in ('between', 'theirs', 'ours')
    ),
    '' if share is None else f'{share:.2f}',
    f'{wrong} of {broken}',
  )


def _difference_cells(
  row: Mapping[str, Any], difference: Mapping[str, Any]
) -> tuple[str, ...]:
  """Formats an image whose flags differ."""
  return (
    str(difference['image']),
    str(difference['label']),
    {'ours': 'here', 'theirs': 'there'}[difference['broken_by']],
    *(
      f'{difference[key]["theirs"]:.4f} / {difference[key]["ours"]:.4f}'
      for key in ('clean_margins', 'margins')
    ),
    *(
      f'{difference["times_broken"][side]} of {len(row["robust"][side])}'
      for side in reversed(SIDES)
    ),
  )
