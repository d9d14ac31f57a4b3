"""AutoAttack here and in PyTorch: same weights, same images, taking turns.

Both sides run through their public entry point, so that the network, the
attack's own arithmetic and the driver are all in the time. Compilation is
measured apart: it is what the first call takes longer than the others.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from dhat_jax.attacks.autoattack import packing, passes
from dhat_jax.benchmark import autoattack_sides, timing
from dhat_jax.benchmark.autoattack_sides import STANDARD, Problem
from dhat_jax.pytorch import jax_module
from dhat_jax.runtime import documents, provenance

# Gradients and further forward passes per iteration or query.
_COSTS = {
  'apgd-ce': (1, 0),
  'apgd-t': (1, 0),
  'fab-t': (1, 1),
  'square': (0, 1),
}


def _time_network(
  problem: Problem, torch_net: Any, size: int, repeats: int
) -> dict[str, Any]:
  """Times forward and gradient of one batch on both sides, in seconds."""
  images = jnp.asarray(problem.images[:size])
  forward = jax.jit(lambda variables, x: problem.net.apply(variables, x))
  output = problem.net.outputs[-1]

  def loss(x, variables):
    return problem.net.apply(variables, x).select(output).sum()

  gradient = jax.jit(jax.grad(loss))
  torch_images = autoattack_sides.to_torch(problem.images[:size])

  def torch_gradient():
    leaf = torch_images.clone().requires_grad_()
    torch_net(leaf).sum().backward()
    return leaf.grad

  times = timing.alternate(
    {
      'forward/ours': lambda: forward(problem.variables, images),
      'forward/theirs': lambda: autoattack_sides.torch_logits(
        torch_net, torch_images
      ),
      'gradient/ours': lambda: gradient(images, problem.variables),
      'gradient/theirs': torch_gradient,
    },
    repeats=repeats,
    calls=20,
  )
  summaries = {'forward': {}, 'gradient': {}}
  for name, values in times.items():
    what, _, side = name.partition('/')
    summaries[what][side] = timing.summary(values)
  return summaries


def _network_seconds(
  name: str,
  budget: passes.Budget,
  slots: int,
  size: int,
  network: Mapping[str, Any],
) -> float:
  """Estimates what of an attack's time its network takes on our side.

  Args:
    name: of the attack.
    budget: of the attack.
    slots: of all its batches.
    size: of the batches of which the network was timed.
    network: of `_time_network`.
  """
  num_passes = len(budget.passes(name))
  length = budget.n_queries if name == 'square' else budget.n_iter
  gradients, forwards = (count * length for count in _COSTS[name])
  # Square's passes are pieces of one run, in each of which all batches run.
  per_batch = gradients * network['gradient']['ours']['median']
  per_batch += forwards * network['forward']['ours']['median']
  return per_batch * slots / size / (num_passes if name == 'square' else 1)


def compare(
  name: str,
  attacks: Sequence[str],
  problem: Problem,
  torch_net: Any,
  budget: passes.Budget,
  size: int,
  repeats: int,
  *,
  device: str = 'cpu',
  precision: str | None = 'highest',
) -> dict[str, Any]:
  """Times one attack, or all in sequence, on both sides.

  Args:
    name: of the row.
    attacks: those that run.
    problem: what both sides attack.
    torch_net: of `autoattack_sides.make_torch_twin`.
    budget: of both sides.
    size: images in a batch, on our side.
    repeats: timed runs of each side.
    device: PyTorch's name of where its side runs.
    precision: of our side's matrix products, as `dhat_jax.autoattack` takes it.

  Returns:
    A row, as JSON can hold it.
  """
  ours = autoattack_sides.Ours(problem, attacks, budget, size, precision)
  theirs = autoattack_sides.Theirs(problem, torch_net, attacks, budget, device)
  robust = {}

  def keep(side, attack):
    robust[side] = attack()

  first = timing.seconds(lambda: keep('ours', ours))
  times = timing.alternate(
    {
      'theirs': lambda: keep('theirs', theirs),
      'ours': lambda: keep('ours', ours),
    },
    repeats=repeats,
    warmup=0,  # ours just ran, and PyTorch has nothing to compile
  )
  summaries = {side: timing.summary(values) for side, values in times.items()}
  seconds = summaries['ours']['median']
  return {
    'attack': name,
    **summaries,
    'compile_seconds': first - seconds,
    'ratio': summaries['theirs']['median'] / seconds,
    'ratio_with_compilation': summaries['theirs']['median'] / first,
    'robust': {side: int(flags.sum()) for side, flags in robust.items()},
    'flags_that_differ': int((robust['ours'] != robust['theirs']).sum()),
    'slots': ours.slots,
    'slots_filled': ours.items / max(ours.slots, 1),
  }


def run(
  config: ml_collections.ConfigDict,
  directory: str | None = None,
  count: int = 128,
  batch_size: int = 64,
  *,
  n_iter: int = 100,
  n_queries: int = 5000,
  repeats: int = 3,
  report: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Compares AutoAttack's attacks with pyautoattack's, side by side.

  Args:
    config: of the network; its evaluation gives norm and epsilon.
    directory: a trained workdir of it, or None: see `make_problem`.
    count: images.
    batch_size: the largest on our side, see `packing.size_of_batches`. The
      original's batches are of its default size or of all images, and shrink.
    n_iter: iterations of APGD and FAB.
    n_queries: of Square.
    repeats: timed runs of each side.
    report: called with a line after each attack.

  Returns:
    What `table` formats, as JSON can hold it.

  Raises:
    ImportError: PyTorch or pyautoattack is not installed.
    ValueError: bad arguments.
  """
  jax_module.import_torch().set_num_threads(provenance.cores())  # as XLA does
  autoattack_sides.import_original()
  problem = autoattack_sides.make_problem(config, directory, count)
  budget = autoattack_sides.make_budget(problem, n_iter, n_queries)
  torch_net = autoattack_sides.make_torch_twin(problem)
  size = packing.size_of_batches(len(problem.images), batch_size)
  network = _time_network(problem, torch_net, size, repeats=3)
  rows = []
  for name in (*STANDARD, 'standard'):
    attacks = STANDARD if name == 'standard' else (name,)
    row = compare(
      name, attacks, problem, torch_net, budget, batch_size, repeats
    )
    if name != 'standard':
      network_seconds = _network_seconds(
        name, budget, row['slots'], size, network
      )
      row['network_share'] = network_seconds / row['ours']['median']
    rows.append(row)
    report(
      f'{name}: pyautoattack {row["theirs"]["median"]:.2f} s, here '
      f'{row["ours"]["median"]:.2f} s ({row["ratio"]:.2f} x), and '
      f'{row["compile_seconds"]:.1f} s to compile'
    )
  return {
    'source': problem.source,
    'images': len(problem.images),
    'image_shape': problem.images.shape[1:],
    'batch_size': size,
    'epsilon': problem.epsilon,
    'norm': problem.norm,
    'budget': dataclasses.asdict(budget),
    'network': network,
    'rows': rows,
  }


def table(measured: Mapping[str, Any]) -> str:
  """Returns the Markdown table of what `run` returns."""
  headers = (
    'attack',
    'pyautoattack, s',
    'here, s',
    'ratio',
    'compiling, s',
    'ratio with compiling',
    'network alone',
    'slots filled',
    'robust',
    'flags that differ',
  )
  return documents.markdown_table(headers, map(_cells, measured['rows']))


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
  """Formats a row of `run`."""
  share, robust = row.get('network_share'), row['robust']
  filled = row.get('slots_filled')  # not in documents of earlier versions
  return (
    row['attack'],
    f'{row["theirs"]["median"]:.2f}',
    f'{row["ours"]["median"]:.2f}',
    f'{row["ratio"]:.2f}',
    f'{row["compile_seconds"]:.1f}',
    f'{row["ratio_with_compilation"]:.2f}',
    '' if share is None else f'{100 * share:.0f} %',
    '' if filled is None else f'{100 * filled:.0f} %',
    f'{robust["theirs"]} / {robust["ours"]}',
    str(row['flags_that_differ']),
  )
