"""What an accelerator and the CPU both compute: training steps and attacks."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dhat_jax import from_config
from dhat_jax.benchmark import training
from dhat_jax.datasets.base import Split
from dhat_jax.evaluation import attacks
from dhat_jax.evaluation.evaluator import Evaluator, Target
from dhat_jax.models.outputs import OUTPUTS, final
from dhat_jax.runtime import devices, settings, streams
from dhat_jax.training.stages import initial_state

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
    """Returns what the attacks start from, so that about half of them succeed.

    Random weights predict one class for all images. Without each class's mean
    logit they do not.

    Returns:
      shift: [K], added to the logits: minus their means.
      labels: [B], what is predicted then.
      epsilon: the median of the margins, each over the length of its gradient.
    """
    net, variables = self._network
    images = jnp.asarray(self.split.images, jnp.float32) / 255
    shift = -self.logits()['logits'].mean(axis=0)

    def margins(images):
      logits = net.apply(variables, images).select(final(net.outputs))
      logits += shift[None]
      first, second = jax.lax.top_k(logits, 2)[0].T
      return (first - second).sum(), (logits.argmax(1), first - second)

    gradients, (labels, values) = jax.jit(jax.grad(margins, has_aux=True))(
      images
    )
    slopes = jnp.abs(gradients).sum(axis=(1, 2, 3))
    return {
      'shift': shift,
      'labels': np.asarray(labels, np.int32),
      'epsilon': np.asarray(jnp.median(values / slopes)),
    }

  def attack(self, name: str, inputs: Callable[[], Observed]) -> Observed:
    """Attacks the images.

    Args:
      name: of `attacks.make`.
      inputs: returns what `inputs` made on the CPU.

    Returns:
      robust: bool [B].
      loss: [B], the cross entropy on the attacked images.

    Raises:
      RuntimeError: all images resist, which would agree with anything.
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
      self._target(given['shift']), split, streams.key(0)
    )
    if record.robust.all():
      raise RuntimeError(f'{name}: all {len(record.robust)} images resist')
    return {'robust': record.robust, 'loss': record.losses}

  def _target(self, shift: np.ndarray) -> Target:
    """Returns the network, its final logits moved by `shift`."""
    net, variables = self._network
    output = final(net.outputs)
    part = OUTPUTS[output].parts[-1]
    params = flax.traverse_util.flatten_dict(variables['params'])
    bias = part, 'dense', 'bias'
    if bias not in params:
      raise RuntimeError(f'{output}: its part {part!r} has no last bias')
    params[bias] += shift
    params = flax.traverse_util.unflatten_dict(params)
    variables = {**variables, 'params': params}
    evaluator = Evaluator(net, batch_size=len(self.split.labels))
    return evaluator.target(devices.replicate(variables), output)


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


def inputs_case(problem: Problem) -> Case:
  """Returns the case whose values the attacks start from, on both sides."""
  return Case('inputs', _in_precision('highest', problem.inputs), 'inputs', {})
