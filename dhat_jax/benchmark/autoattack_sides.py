"""One network and its images, attacked by AutoAttack here and in PyTorch."""

import dataclasses
import functools
import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dhat_jax import arguments, convert, divergences, from_config, run
from dhat_jax.attacks import balls
from dhat_jax.attacks.autoattack import (
  AutoAttackResult,
  autoattack,
  checks,
  passes,
)
from dhat_jax.attacks.autoattack.budget import Budget
from dhat_jax.pytorch import jax_module
from dhat_jax.runtime import files, streams, workdir

STANDARD = checks.VERSIONS['standard']
# Of a network that is not trained: so small that nothing breaks, and all the
# work has to be done for all images.
TINY_EPSILON = 1e-6


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
  norm = arguments.one_of(
    'config.evaluation.norm', config.evaluation.norm, balls.NORMS
  )
  if directory is not None:
    directory = files.user_path(directory)
    run.check_workdir(config, directory, may_differ=('evaluation.',))
    trained = run.load_run(directory)
    dataset = from_config.load_dataset(config)
    test = dataset.test
    workdir.check_data(directory, dataset.digests(), ('test',))
    return Problem(
      net=trained.net,
      variables=trained.variables,
      images=test.images[:count].astype(np.float32) / 255,
      labels=test.labels[:count],
      epsilon=from_config.in_unit(config.evaluation, 'epsilon'),
      norm=norm,
      source='a trained run and its test images',
    )
  net = from_config.make_network(config)
  shape = (count, *from_config.image_shape(config))
  images = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
  variables = jax.jit(net.init)(streams.key(0), jnp.zeros((1, *shape[1:])))
  logits = jax.jit(net.apply)(variables, images).select(net.outputs[-1])
  return Problem(
    net=net,
    variables=variables,
    images=images,
    labels=np.asarray(logits.argmax(axis=1), np.int32),
    epsilon=TINY_EPSILON,
    norm=norm,
    source='random weights and images, labelled as predicted',
  )


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
      self._functions.append(passes.jit_hoisted(fn, in_axes))
    self._used += 1
    return self._functions[self._used - 1]


class Ours:
  """This project's side."""

  def __init__(
    self,
    problem: Problem,
    attacks: Sequence[str],
    budget: passes.Budget,
    batch_size: int,
    precision: str | None = 'highest',
  ):
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
      precision=precision,
      map_fn=self._map_fn,
      progress=self._count,
    )
    self.items = 0
    self.slots = 0

  def _count(self, progress) -> None:
    self.items += progress.items
    self.slots += progress.slots

  def attack(self, seed: int = 0) -> AutoAttackResult:
    """Attacks all images; every seed runs the same compiled programs."""
    self._map_fn.restart()
    self.items = self.slots = 0
    return self._call(rng=streams.key(seed))

  def __call__(self) -> np.ndarray:
    """Attacks: robust bool [N]."""
    return self.attack().robust


class Theirs:
  """pyautoattack on the same network in PyTorch."""

  def __init__(
    self,
    problem: Problem,
    torch_net: Any,
    attacks: Sequence[str],
    budget: passes.Budget,
    device: str = 'cpu',
  ):
    self._images = to_torch(problem.images, device)
    labels = jax_module.import_torch().tensor(problem.labels)
    self._labels = labels.long().to(device)
    self._net = torch_net
    original = import_original().AutoAttack(
      torch_net,
      norm={'linf': 'Linf', 'l2': 'L2'}[problem.norm],
      eps=problem.epsilon,
      version='standard',
      seed=0,
      device=device,
    )
    original.logger.setLevel(logging.ERROR)
    original.attacks_to_run = list(attacks)
    targeted, fab = original.apgd_targeted, original.fab
    targeted.n_target_classes = fab.n_target_classes = budget.n_targets
    original.square.n_queries = budget.n_queries
    for attack in (original.apgd, targeted, fab):
      attack.n_iter = budget.n_iter
    self._original = original

  def attack(self, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Attacks all images.

    Returns:
      Robust bool [N]; and images [N, H, W, C], adversarial where they are not
      robust.
    """
    self._original.seed = seed
    points, _ = self._original.run_standard_evaluation(
      self._images, self._labels
    )
    predicted = torch_logits(self._net, points).argmax(axis=1)
    images = points.cpu().numpy().transpose(0, 2, 3, 1)
    return predicted == self._labels.cpu().numpy(), images

  def __call__(self) -> np.ndarray:
    """Attacks: robust bool [N]."""
    return self.attack()[0]


def make_budget(problem: Problem, n_iter: int, n_queries: int) -> Budget:
  """Returns the budget of both sides, with the standard's targets.

  Raises:
    ValueError: so few classes that the original fails.
  """
  classes = problem.net.num_classes
  if classes < divergences.TARGETED_DLR_CLASSES:
    raise ValueError(
      f'config.dataset: got {classes} classes, expected at least '
      f"{divergences.TARGETED_DLR_CLASSES}: pyautoattack's targeted DLR needs "
      'a fourth logit'
    )
  return Budget(
    n_iter=n_iter, n_queries=n_queries, n_targets=min(9, classes - 1)
  )


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


def to_torch(images: np.ndarray, device: str = 'cpu') -> Any:
  """[N, H, W, C] -> [N, C, H, W], on a device."""
  torch = jax_module.import_torch()
  images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
  return torch.from_numpy(images).to(device)


def torch_logits(torch_net: Any, images: Any) -> np.ndarray:
  """Returns a PyTorch network's logits as a NumPy array."""
  with jax_module.import_torch().no_grad():
    return torch_net(images).cpu().numpy()


def make_torch_twin(problem: Problem, device: str = 'cpu') -> Any:
  """Returns the problem's network in PyTorch, in evaluation mode.

  Args:
    problem: whose network.
    device: PyTorch's name of where it runs.

  Raises:
    ValueError: its logits are not the same.
  """
  from dhat_jax.pytorch import networks

  torch = jax_module.import_torch()
  net = networks.make_torch_network(
    problem.net, image_channels=problem.images.shape[-1]
  )
  state_dict = convert.to_torch(problem.variables, problem.net)
  net.load_state_dict({k: torch.from_numpy(v) for k, v in state_dict.items()})
  net.to(device).eval()
  with jax.default_matmul_precision('highest'):
    ours = np.asarray(jax.jit(problem.logits_fn)(problem.images))
  theirs = torch_logits(net, to_torch(problem.images, device))
  gap = np.abs(ours - theirs).max()
  if gap > 1e-3 * max(1, np.abs(ours).max()):
    raise ValueError(
      f'the two networks are not the same: logits differ by {gap:.2g}'
    )
  return net
