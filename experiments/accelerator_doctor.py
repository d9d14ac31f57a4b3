"""Whether an accelerator computes what the CPU does: steps and attacks.

A second process computes the CPU's values meanwhile, on the same inputs.
"""

import concurrent.futures
import dataclasses
import functools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dhat_jax import from_config
from dhat_jax.benchmark import training
from dhat_jax.datasets.base import Split
from dhat_jax.evaluation import attacks
from dhat_jax.evaluation.evaluator import Evaluator, Target
from dhat_jax.models.outputs import final
from dhat_jax.runtime import (
  devices,
  documents,
  files,
  provenance,
  settings,
  streams,
)
from dhat_jax.training.stages import initial_state
from experiments import accelerator_budget

BATCH_SIZE = 32
ATTACKS = (
  'pgd_10',
  'cw_10',
  'apgd-ce',
  'apgd-dlr',
  'apgd-t',
  'fab',
  'fab-t',
  'square',
)
BUDGET = {
  'autoattack_n_iter': 10,
  'autoattack_queries': 50,
  'autoattack_targets': 2,
}
# Relative distances. Where a gradient is nearly 0 its sign is a matter of
# rounding, and the attack's steps carry that on into loss and update.
FLOAT32 = {'metrics': 0.02, 'update': 0.1}
BFLOAT16 = {'metrics': 0.05, 'update': 0.4}
FLAGS = {'robust': 0.1, 'loss': 0.05}
LOGITS = {'highest': 1e-4, 'default': 0.02}
DTYPES = {'float32': FLOAT32, 'bfloat16': BFLOAT16}

Observed = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
  """One thing that is computed on both sides.

  Attributes:
    name: of the row.
    observe: what is compared: {name: array}.
    reference: the case whose values on the CPU count.
    tolerances: {name: largest relative distance}.
    estimate_seconds: on the accelerator, with compiling.
  """

  name: str
  observe: Callable[[], Observed]
  reference: str
  tolerances: Mapping[str, float]
  estimate_seconds: float = 20.0


def distance(got: np.ndarray, expected: np.ndarray) -> float:
  """Returns the share of flags that differ, or |got - expected| / |expected|.

  What is not finite is infinitely far away.
  """
  if expected.dtype == bool:
    return float(np.mean(got != expected))
  got, expected = got.astype(np.float64), expected.astype(np.float64)
  gap = np.linalg.norm(got - expected) / max(np.linalg.norm(expected), 1e-30)
  return float(gap) if np.isfinite(gap) else float('inf')


class Problem:
  """A network with random weights, and a batch of random images."""

  def __init__(self, config: ml_collections.ConfigDict):
    self.config = config
    # As many images on any number of devices, for the CPU has one.
    self.split = training.random_split(config, BATCH_SIZE)

  def step(self, stage: str, dtype: str) -> Observed:
    """Trains one step of a stage.

    Returns:
      metrics: [M], loss, gradient norm and the loss's parts.
      update: [P], what is added to the parameters.
    """
    config = self.config.copy_and_resolve_references()
    config.model.dtype = dtype
    resolved = training.make_stage(config, stage, BATCH_SIZE)
    state = initial_state(resolved, from_config.image_shape(config))
    before = _flat(state.params)
    batch = devices.shard(
      {
        'images': self.split.images,
        'labels': self.split.labels,
        'mask': np.ones(BATCH_SIZE, bool),
      }
    )
    step = devices.pmap_train_step(resolved.step)
    after, sums = step(devices.replicate(state), batch)
    sums = devices.to_host(sums)
    metrics = [total / count for _, (total, count) in sorted(sums.items())]
    return {
      'metrics': np.array(metrics),
      'update': _flat(devices.to_host(after.params)) - before,
    }

  @functools.cached_property
  def _network(self) -> tuple[Any, Any]:
    net = from_config.make_network(self.config)
    images = jnp.zeros((1, *self.split.images.shape[1:]))
    return net, jax.jit(net.init)(streams.key(0), images)

  def logits(self) -> Observed:
    """Predicts the images."""
    net, variables = self._network
    images = self.split.images.astype(np.float32) / 255
    outputs = jax.jit(net.apply)(variables, images)
    return {'logits': np.asarray(outputs.select(final(net.outputs)))}

  def inputs(self) -> Observed:
    """Returns labels and a radius at which about half of the images resist.

    The labels are what is predicted; the radius is the median of the margins,
    each divided by the length of its gradient.
    """
    net, variables = self._network
    images = jnp.asarray(self.split.images, jnp.float32) / 255

    def margins(images):
      logits = net.apply(variables, images).select(final(net.outputs))
      first, second = jax.lax.top_k(logits, 2)[0].T
      return (first - second).sum(), (logits.argmax(1), first - second)

    gradients, (labels, values) = jax.jit(jax.grad(margins, has_aux=True))(
      images
    )
    slopes = jnp.abs(gradients).sum(axis=(1, 2, 3))
    radius = jnp.minimum(jnp.median(values / slopes), 0.5)
    return {
      'labels': np.asarray(labels, np.int32),
      'epsilon': np.asarray(radius),
    }

  def attack(self, name: str, inputs: Callable[[], Observed]) -> Observed:
    """Attacks the images.

    Args:
      name: of `attacks.make`.
      inputs: returns what `inputs` made on the CPU.

    Returns:
      robust: bool [B].
      loss: [B], the cross entropy on the attacked images.
    """
    given = inputs()
    epsilon = float(given['epsilon'])
    shared = {
      'epsilon': epsilon,
      'step_size': epsilon / 4,
      'norm': 'linf',
      'restarts': 1,
      **BUDGET,
    }
    split = Split(self.split.images, given['labels'])
    record = attacks.make(name, **shared).run(
      self._target(), split, streams.key(0)
    )
    return {'robust': record.robust, 'loss': record.losses}

  def _target(self) -> Target:
    net, variables = self._network
    evaluator = Evaluator(net, batch_size=len(self.split.labels))
    return evaluator.target(devices.replicate(variables), final(net.outputs))


def _flat(tree: Any) -> np.ndarray:
  """Returns all numbers of a tree in one vector."""
  leaves = [np.ravel(np.asarray(leaf)) for leaf in jax.tree.leaves(tree)]
  return np.concatenate(leaves)


def _in_precision(precision: str | None, observe: Callable) -> Callable:
  """Returns `observe` under a precision of matrix products, in any thread."""

  def call():
    with settings.standard(), jax.default_matmul_precision(precision):
      return observe()

  return call


def cases(problem: Problem, inputs: Callable[[], Observed]) -> list[Case]:
  """Returns all cases, in the order of their value.

  Args:
    problem: what is computed.
    inputs: returns what `Problem.inputs` made on the CPU.
  """
  rows = [
    Case(
      f'logits/{precision}',
      _in_precision(value, problem.logits),
      'logits/highest',
      {'logits': LOGITS[precision]},
    )
    for precision, value in (('highest', 'highest'), ('default', None))
  ]
  for dtype, tolerances in DTYPES.items():
    for stage in problem.config.stages:
      observe = functools.partial(problem.step, stage, dtype)
      precision = 'highest' if dtype == 'float32' else None
      rows.append(
        Case(
          f'step/{stage}/{dtype}',
          _in_precision(precision, observe),
          f'step/{stage}/float32',
          tolerances,
        )
      )
  for name in ATTACKS:
    observe = functools.partial(problem.attack, name, inputs)
    rows.append(
      Case(
        f'attack/{name}',
        _in_precision('highest', observe),
        f'attack/{name}',
        FLAGS,
      )
    )
  return rows


class Reference:
  """What the CPU computes, in a process of its own, kept in a folder."""

  def __init__(self, folder: str, config_path: str, workers: int):
    """Starts the process, if something of its values is missing.

    Args:
      folder: of the values; those of other code or versions are removed.
      config_path: as `--config` gives it.
      workers: threads that compute at the same time.
    """
    self._folder, self._workers = folder, workers
    made_of = {
      'config': config_path,
      'versions': provenance.versions(),
      **provenance.git_state(),
    }
    path = os.path.join(folder, 'made_of.json')
    if not os.path.exists(path) or files.read_json(path) != made_of:
      shutil.rmtree(folder, ignore_errors=True)
      files.write_json(path, made_of)
    self._log = os.path.join(folder, 'log.txt')
    self._process = None
    if not os.path.exists(os.path.join(folder, 'complete.npz')):
      self._start(config_path)

  def _start(self, config_path: str) -> None:
    command = [
      *(sys.executable, '-m', 'experiments.accelerator', 'reference'),
      *(f'--config={config_path}', f'--workdir={self._folder}'),
      f'--workers={self._workers}',
    ]
    environment = {
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'CUDA_VISIBLE_DEVICES': '',
    }
    with open(self._log, 'w') as log:
      self._process = subprocess.Popen(
        command, env=environment, stdout=log, stderr=log
      )

  def read(self, name: str) -> Observed:
    """Returns the CPU's values of a case; waits for them.

    Raises:
      RuntimeError: the process ended without.
    """
    path = value_path(self._folder, name)
    while not os.path.exists(path):
      ended = self._process is None or self._process.poll() is not None
      if ended and not os.path.exists(path):
        with open(self._log) as file:
          raise RuntimeError(f'no value of {name}: {file.read()[-500:]}')
      time.sleep(0.05)
    with np.load(path) as arrays:
      return dict(arrays)

  def close(self) -> None:
    """Ends the process if it runs."""
    if self._process is not None and self._process.poll() is None:
      self._process.kill()
      self._process.wait()


def value_path(folder: str, name: str) -> str:
  """Returns where a case's values are."""
  return os.path.join(folder, f'{name.replace("/", "-")}.npz')


def write_reference(
  config: ml_collections.ConfigDict, folder: str, *, workers: int
) -> None:
  """Computes what is missing of the CPU's values; see `Reference`."""
  problem = Problem(config)

  def inputs() -> Observed:
    with np.load(value_path(folder, 'inputs')) as arrays:
      return dict(arrays)

  def write(case: Case) -> None:
    path = value_path(folder, case.name)
    if not os.path.exists(path):
      started = time.monotonic()
      files.write_npz(path, case.observe())
      print(f'{case.name}: {time.monotonic() - started:.1f} s', flush=True)

  first = Case('inputs', _in_precision('highest', problem.inputs), '', {})
  write(first)
  wanted = [c for c in cases(problem, inputs) if c.name == c.reference]
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    list(pool.map(write, wanted))
  files.write_npz(os.path.join(folder, 'complete.npz'), {})


def _compare(case: Case, reference: Reference) -> dict[str, Any]:
  """Returns the row of a case."""
  got = case.observe()
  expected = reference.read(case.reference)
  gaps = {name: distance(got[name], expected[name]) for name in expected}
  agrees = all(gap <= case.tolerances[name] for name, gap in gaps.items())
  said = ', '.join(
    f'{name} {gap:.2g} (at most {case.tolerances[name]:g})'
    for name, gap in gaps.items()
  )
  return {
    'distances': gaps,
    'tolerances': dict(case.tolerances),
    'agrees': agrees,
    'line': f'{"OK" if agrees else "DIFFERS"}: {said}',
  }


def _driver() -> str | None:
  """Returns what nvidia-smi says of the GPUs, or None."""
  try:
    answer = subprocess.run(
      [
        'nvidia-smi',
        '--query-gpu=name,driver_version,memory.total',
        '--format=csv,noheader',
      ],
      capture_output=True,
      text=True,
      timeout=20,
      check=True,
    )
  except (OSError, subprocess.SubprocessError):
    return None
  return answer.stdout.strip()


def describe() -> dict[str, Any]:
  """Returns the row of the machine."""
  device = jax.local_devices()[0]
  driver, flags = _driver(), os.environ.get('XLA_FLAGS', '')
  return {
    'environment': provenance.environment(),
    'platform_version': device.client.platform_version,
    'driver': driver,
    'memory': (device.memory_stats() or {}).get('bytes_limit'),
    'xla_flags': flags,
    'line': f'{jax.device_count()} x {device.device_kind}, {driver}, jax '
    f'{jax.__version__}; XLA_FLAGS: {flags or "none"}',
  }


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """Returns the lines of a table of the rows that `run` measures."""
  cells = [
    (
      row['item'],
      ', '.join(
        f'{name} {gap:.2g} (≤ {row["tolerances"][name]:g})'
        for name, gap in row['distances'].items()
      ),
      'OK' if row['agrees'] else 'DIFFERS',
    )
    for row in rows
    if 'distances' in row
  ]
  headers = 'what', "distance from the CPU's values, relative", ''
  return [documents.markdown_table(headers, cells)]


def run(
  part: accelerator_budget.Slice,
  config: ml_collections.ConfigDict,
  *,
  config_path: str,
  workdir: str,
  workers: int,
) -> bool:
  """Compares an accelerator with the CPU; returns whether all agrees.

  Args:
    part: takes the rows.
    config: its network and stages are tried.
    config_path: where it comes from.
    workdir: takes the CPU's values.
    workers: threads that compile at the same time.
  """
  reference = Reference(
    os.path.join(workdir, 'reference'), config_path, workers
  )
  try:
    part.spend([accelerator_budget.Item('machine', 1, describe)])
    problem = Problem(config)
    items = [
      accelerator_budget.Item(
        case.name,
        case.estimate_seconds,
        functools.partial(_compare, case, reference),
      )
      for case in cases(problem, lambda: reference.read('inputs'))
    ]
    part.spend(items, workers=workers)
  finally:
    reference.close()
  return all(row.get('agrees', True) for row in part.rows.values())
