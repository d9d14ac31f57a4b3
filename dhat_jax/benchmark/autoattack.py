"""AutoAttack here and in PyTorch: same weights, same images, taking turns.

Both sides run through their public entry point, so that the network, the
attack's own arithmetic and the driver are all in the time. Compilation is told
apart: it is what the first call takes longer than the others.
"""

import dataclasses
import functools
import importlib
import importlib.metadata
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dhat_jax import build, convert, torch_bridge
from dhat_jax.attacks import autoattack_checks, autoattack_passes, balls
from dhat_jax.attacks.autoattack import autoattack
from dhat_jax.benchmark import timing, training
from dhat_jax.options import choose

STANDARD = autoattack_checks.VERSIONS['standard']
# Of a network that is not trained: so small that nothing breaks, and all the
# work has to be done for all images.
TINY_EPSILON = 1e-6
# Gradients and further forward passes per iteration or query.
_COSTS = {
  'apgd-ce': (1, 0),
  'apgd-t': (1, 0),
  'fab-t': (1, 1),
  'square': (0, 1),
}


@dataclasses.dataclass(frozen=True)
class Problem:
  """What both sides attack.

  Attributes:
    net: the network.
    variables: its weights.
    images: float32 [N, H, W, C] in [0, 1].
    labels: int32 [N].
    epsilon: radius in [0, 1] units.
    norm: 'linf' or 'l2'.
    source: where weights and images come from.
  """

  net: Any
  variables: Mapping[str, Any]
  images: np.ndarray
  labels: np.ndarray
  epsilon: float
  norm: str
  source: str

  def logits_fn(self, images: jax.Array) -> jax.Array:
    """Returns the logits of the network's last output: [N, K]."""
    outputs = self.net.apply(self.variables, images)
    return outputs.select(self.net.outputs[-1])


def make_problem(
  config: ml_collections.ConfigDict, directory: str | None, count: int
) -> Problem:
  """Takes a trained run and its test images; without one, random ones.

  Args:
    config: the run's config.
    directory: its workdir, or None for random weights and images, the labels
      being the network's predictions and epsilon `TINY_EPSILON`.
    count: number of images.

  Raises:
    ValueError: a workdir that is not trained, or of another config.
  """
  net = build.model(config)
  norm = choose('config.evaluation.norm', config.evaluation.norm, balls.NORMS)
  if directory is not None:
    test = build.dataset(config).test
    return Problem(
      net,
      convert.from_torch(convert.export_workdir(config, directory), net),
      test.images[:count].astype(np.float32) / 255,
      test.labels[:count],
      build.epsilon(config.evaluation),
      norm,
      'a trained run and its test images',
    )
  shape = (count, *training.image_shape(config))
  images = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
  variables = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, *shape[1:])))
  problem = Problem(
    *(net, variables, images, None, TINY_EPSILON, norm),
    'random weights and images, labelled as predicted',
  )
  logits = jax.jit(problem.logits_fn)(images)
  labels = np.asarray(logits.argmax(axis=1), np.int32)
  return dataclasses.replace(problem, labels=labels)


class _KeepCompiled:
  """The `map_fn` of several calls of `autoattack` that are all the same."""

  def __init__(self):
    self._functions = []
    self._used = 0

  def restart(self) -> None:
    """Hands out the functions from the first one again."""
    self._used = 0

  def __call__(self, fn: Callable, in_axes: Any) -> Callable:
    if self._used == len(self._functions):
      self._functions.append(autoattack_passes.jit_hoisted(fn, in_axes))
    self._used += 1
    return self._functions[self._used - 1]


class Ours:
  """This project's side."""

  def __init__(self, problem, attacks, budget, batch_size):
    self._problem = problem
    self._map_fn = _KeepCompiled()
    self._call = functools.partial(
      autoattack,
      problem.logits_fn,
      problem.images,
      problem.labels,
      epsilon=problem.epsilon,
      norm=problem.norm,
      version='custom',
      attacks=attacks,
      n_restarts=1,
      n_iter=budget.n_iter,
      n_queries=budget.n_queries,
      n_targets=budget.n_targets,
      batch_size=batch_size,
      map_fn=self._map_fn,
      progress=self._count,
    )
    self.batches = 0

  def _count(self, progress) -> None:
    del progress
    self.batches += 1

  def __call__(self) -> np.ndarray:
    """Attacks: robust bool [N]."""
    self._map_fn.restart()
    self.batches = 0
    return self._call().robust


class _Theirs:
  """pyautoattack on the same network in PyTorch."""

  def __init__(self, problem, torch_net, attacks, budget):
    torch = torch_bridge.import_torch()
    self._images = _to_torch(problem.images)
    self._labels = torch.tensor(problem.labels).long()
    self._net = torch_net
    original = import_original().AutoAttack(
      torch_net,
      norm={'linf': 'Linf', 'l2': 'L2'}[problem.norm],
      eps=problem.epsilon,
      version='standard',
      seed=0,
    )
    original.logger.setLevel(logging.ERROR)
    original.attacks_to_run = list(attacks)
    targeted, fab = original.apgd_targeted, original.fab
    targeted.n_target_classes = fab.n_target_classes = budget.n_targets
    original.square.n_queries = budget.n_queries
    for attack in (original.apgd, targeted, fab):
      attack.n_iter = budget.n_iter
    self._original = original

  def __call__(self) -> np.ndarray:
    """Attacks: robust bool [N]."""
    points, _ = self._original.run_standard_evaluation(
      self._images, self._labels
    )
    predicted = torch_logits(self._net, points).argmax(axis=1)
    return predicted == self._labels.numpy()


def import_original() -> Any:
  """Returns the module `pyautoattack`.

  Raises:
    ImportError: it is not installed.
  """
  try:
    return importlib.import_module('pyautoattack')
  except ImportError as error:
    raise ImportError(
      "pyautoattack is needed here: pip install 'dhat_jax[oracle]'"
    ) from error


def _to_torch(images: np.ndarray) -> Any:
  """[N, H, W, C] -> [N, C, H, W]."""
  torch = torch_bridge.import_torch()
  return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def torch_logits(torch_net: Any, images: Any) -> np.ndarray:
  """Returns a PyTorch network's logits as a NumPy array."""
  with torch_bridge.import_torch().no_grad():
    return torch_net(images).numpy()


def make_torch_twin(problem: Problem) -> Any:
  """Returns the problem's network in PyTorch, in evaluation mode.

  Raises:
    ValueError: its logits are not the same.
  """
  from dhat_jax import torch_reference

  torch = torch_bridge.import_torch()
  net = torch_reference.make_torch_network(
    problem.net, image_channels=problem.images.shape[-1]
  )
  state_dict = convert.to_torch(problem.variables, problem.net)
  net.load_state_dict({k: torch.from_numpy(v) for k, v in state_dict.items()})
  net.eval()
  ours = np.asarray(jax.jit(problem.logits_fn)(problem.images))
  gap = np.abs(ours - torch_logits(net, _to_torch(problem.images))).max()
  if gap > 1e-3 * max(1, np.abs(ours).max()):
    raise ValueError(
      f'the two networks are not the same: logits differ by {gap:.2g}'
    )
  return net


def _time_network(problem, torch_net, size, repeats) -> dict[str, Any]:
  """Times forward and gradient of one batch on both sides, in seconds."""
  images = jnp.asarray(problem.images[:size])
  forward = jax.jit(lambda variables, x: problem.net.apply(variables, x))
  output = problem.net.outputs[-1]

  def loss(x, variables):
    return problem.net.apply(variables, x).select(output).sum()

  gradient = jax.jit(jax.grad(loss))
  torch_images = _to_torch(problem.images[:size])

  def torch_gradient():
    leaf = torch_images.clone().requires_grad_()
    torch_net(leaf).sum().backward()
    return leaf.grad

  times = timing.alternate(
    {
      'forward/ours': lambda: forward(problem.variables, images),
      'forward/theirs': lambda: torch_logits(torch_net, torch_images),
      'gradient/ours': lambda: gradient(images, problem.variables),
      'gradient/theirs': torch_gradient,
    },
    repeats=repeats,
    calls=20,
  )
  found = {'forward': {}, 'gradient': {}}
  for name, values in times.items():
    what, _, side = name.partition('/')
    found[what][side] = timing.summary(values)
  return found


def _network_seconds(name, budget, batches, network) -> float:
  """Estimates what of an attack's time its network takes on our side."""
  passes = len(budget.passes(name))
  length = budget.n_queries if name == 'square' else budget.n_iter
  gradients, forwards = (count * length for count in _COSTS[name])
  # Square's passes are pieces of one run, in each of which all batches run.
  per_batch = gradients * network['gradient']['ours']['median']
  per_batch += forwards * network['forward']['ours']['median']
  return per_batch * batches / (passes if name == 'square' else 1)


def _compare(name, attacks, problem, torch_net, budget, size, repeats):
  """Times one attack, or all in sequence, on both sides."""
  ours = Ours(problem, attacks, budget, size)
  theirs = _Theirs(problem, torch_net, attacks, budget)
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
  found = {side: timing.summary(values) for side, values in times.items()}
  seconds = found['ours']['median']
  return {
    'attack': name,
    **found,
    'compile_seconds': first - seconds,
    'ratio': found['theirs']['median'] / seconds,
    'ratio_with_compilation': found['theirs']['median'] / first,
    'robust': {side: int(flags.sum()) for side, flags in robust.items()},
    'flags_that_differ': int((robust['ours'] != robust['theirs']).sum()),
    'batches': ours.batches,
  }


def run(
  config: ml_collections.ConfigDict,
  *,
  directory: str | None = None,
  count: int = 128,
  batch_size: int = 64,
  n_iter: int = 100,
  n_queries: int = 5000,
  repeats: int = 3,
  threads: int = 0,
  report: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Compares AutoAttack's attacks with pyautoattack's, side by side.

  Args:
    config: of the network; its evaluation gives norm and epsilon.
    directory: a trained workdir of it, or None: see `make_problem`.
    count: images.
    batch_size: on our side, where it is fixed: images that are left after an
      attack are packed anew, but a last batch is filled up. The original's
      batches are of its default size or of all images, and shrink.
    n_iter: iterations of APGD and FAB.
    n_queries: of Square.
    repeats: timed runs of each side.
    threads: of PyTorch; 0 for all cores. XLA takes all cores.
    report: called with a line after each attack.

  Returns:
    A JSON document; `table` formats it.

  Raises:
    ImportError: PyTorch or pyautoattack is not installed.
    ValueError: bad arguments.
  """
  torch = torch_bridge.import_torch()
  import_original()
  build.check(config)
  problem = make_problem(config, directory, count)
  machine = timing.machine()
  torch.set_num_threads(threads or machine['cores'])
  torch_net = make_torch_twin(problem)
  classes = problem.net.num_classes
  budget = autoattack_passes.Budget(
    n_iter=n_iter, n_queries=n_queries, n_targets=min(9, classes - 1)
  )
  size = min(batch_size, len(problem.images))
  network = _time_network(problem, torch_net, size, repeats=3)
  rows = []
  for name in (*STANDARD, 'standard'):
    attacks = STANDARD if name == 'standard' else (name,)
    row = _compare(name, attacks, problem, torch_net, budget, size, repeats)
    if name != 'standard':
      network_seconds = _network_seconds(name, budget, row['batches'], network)
      row['network_share'] = network_seconds / row['ours']['median']
    rows.append(row)
    report(
      f'{name}: pyautoattack {row["theirs"]["median"]:.2f} s, here '
      f'{row["ours"]["median"]:.2f} s ({row["ratio"]:.2f} x), and '
      f'{row["compile_seconds"]:.1f} s to compile'
    )
  packages = ('torch', 'pyautoattack')
  machine['versions'] |= {p: importlib.metadata.version(p) for p in packages}
  return {
    'what': 'autoattack',
    'config': config.name,
    'source': problem.source,
    'images': len(problem.images),
    'image_shape': problem.images.shape[1:],
    'batch_size': size,
    'epsilon': problem.epsilon,
    'norm': problem.norm,
    'budget': dataclasses.asdict(budget),
    'repeats': repeats,
    'torch_threads': torch.get_num_threads(),
    'machine': machine,
    'network': network,
    'attacks': rows,
  }


def table(found: Mapping[str, Any]) -> str:
  """Returns what `run` found as a Markdown table."""
  lines = [
    '| attack | pyautoattack, s | here, s | ratio | compiling, s '
    '| ratio with compiling | network alone | robust | flags that differ |',
    '|---|' + '---:|' * 8,
  ]
  for row in found['attacks']:
    share = row.get('network_share')
    robust = row['robust']
    lines.append(
      f'| {row["attack"]} | {row["theirs"]["median"]:.2f} '
      f'| {row["ours"]["median"]:.2f} | {row["ratio"]:.2f} '
      f'| {row["compile_seconds"]:.1f} | {row["ratio_with_compilation"]:.2f} '
      f'| {"" if share is None else f"{100 * share:.0f} %"} '
      f'| {robust["theirs"]} / {robust["ours"]} '
      f'| {row["flags_that_differ"]} |'
    )
  return '\n'.join(lines)
