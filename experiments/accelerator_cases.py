"""What an accelerator and the CPU both compute: training steps and attacks.

Random weights alone would hide mistakes: they give one class to all images,
with a loss of ln K whatever the attack does. So each output is centred and
scaled on the images, and attacks change losses, updates and classes.
"""

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
from dhat_jax.evaluation.evaluator import Evaluator
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
# Standard deviation of each class's logit over the images.
SPREAD = 2.0
# Relative distances. Where a gradient is nearly 0 its sign is a matter of
# rounding, and the attack's steps carry that on into loss and update, in
# bfloat16 far. Without an attack robust_loss is about 1 away.
FLOAT32 = {'update': 0.1, 'robust_loss': 0.2}
BFLOAT16 = {'update': 0.9, 'robust_loss': 0.7}
METRICS = {'float32': 0.05, 'bfloat16': 0.2}
# Of the batch: 2 images, and 6.
ACCURACIES = {'float32': 2.1 / BATCH_SIZE, 'bfloat16': 6.1 / BATCH_SIZE}
FLAGS = {'robust': 2.1 / BATCH_SIZE, 'effect': 0.2}
LOGITS = {'highest': 1e-3, 'default': 0.1}
DTYPES = {'float32': FLOAT32, 'bfloat16': BFLOAT16}

Observed = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
  """One thing that is computed on both sides.

  Attributes:
    name: of the row.
    observe: what is compared: {name: array}.
    reference: the case whose values on the CPU count.
    tolerances: {name: largest distance}.
    others: the tolerance of numbers that have none of their own.
    accuracies: the tolerance of accuracies, as a share of the images.
    estimate_seconds: on the accelerator, with compiling.
  """

  name: str
  observe: Callable[[], Observed]
  reference: str
  tolerances: Mapping[str, float]
  others: float = 0.0
  accuracies: float = 0.0
  estimate_seconds: float = 20.0

  def tolerance(self, name: str) -> float:
    """Returns the largest distance of a value."""
    if name.endswith('accuracy'):
      return self.accuracies
    return self.tolerances.get(name, self.others)


class Problem:
  """A network with random weights, and a batch of random images."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    inputs: Callable[[], Observed] | None = None,
  ):
    """Draws the images.

    Args:
      config: of a run.
      inputs: returns what `inputs` made on the CPU; None where it is made.
    """
    self.config = config
    # As many images on any number of devices, for the CPU has one.
    self.split = training.random_split(config, BATCH_SIZE)
    self._inputs = inputs

  @functools.cached_property
  def _net(self) -> Any:
    return from_config.make_network(self.config)

  @functools.cached_property
  def _images(self) -> jax.Array:
    return jnp.asarray(self.split.images, jnp.float32) / 255

  def inputs(self) -> Observed:
    """Returns what both sides start from; about half of the attacks succeed.

    Returns:
      network/...: the variables.
      labels: [B], what is predicted.
      clean: [B], the cross entropy without an attack.
      epsilon: the median of the margins, each over the length of its gradient.
    """
    net, variables = self._net, self._variables_in_scale()

    def margins(images):
      logits = net.apply(variables, images).select(final(net.outputs))
      first, second = jax.lax.top_k(logits, 2)[0].T
      clean = jax.nn.logsumexp(logits, axis=1) - first
      return (first - second).sum(), (logits.argmax(1), clean, first - second)

    gradients, (labels, clean, values) = jax.jit(
      jax.grad(margins, has_aux=True)
    )(self._images)
    slopes = jnp.abs(gradients).sum(axis=(1, 2, 3))
    flat = flax.traverse_util.flatten_dict({'network': variables}, sep='/')
    return {
      **{name: np.asarray(value) for name, value in flat.items()},
      'labels': np.asarray(labels, np.int32),
      'clean': np.asarray(clean),
      'epsilon': np.asarray(jnp.median(values / slopes)),
    }

  def _variables_in_scale(self) -> Any:
    """Returns random variables, normalised on the images, part after part."""
    net = self._net
    variables = dict(jax.jit(net.init)(streams.key(0), self._images[:1]))

    @jax.jit
    def normalised(params, zeros):
      outputs, updated = net.apply(
        {'params': params, 'batch_stats': zeros},
        self._images,
        training_parts=net.parts,
        mutable=['batch_stats'],
      )
      # From 0 a step of momentum .9 goes a tenth of the way.
      return outputs, jax.tree.map(lambda x: 10 * x, updated['batch_stats'])

    params = variables['params']
    zeros = jax.tree.map(jnp.zeros_like, variables.get('batch_stats', {}))
    for output in net.outputs:
      outputs, _ = normalised(params, zeros)
      params = _in_scale(params, output, outputs.select(output))
    _, statistics = normalised(params, zeros)
    return {'params': params, 'batch_stats': statistics}

  @functools.cached_property
  def _given(self) -> tuple[Any, Observed]:
    """Returns (variables, the other inputs)."""
    given = flax.traverse_util.unflatten_dict(dict(self._inputs()), sep='/')
    return given.pop('network'), given

  def logits(self) -> Observed:
    """Predicts the images."""
    variables, _ = self._given
    outputs = jax.jit(self._net.apply)(variables, self._images)
    return {'logits': np.asarray(outputs.select(final(self._net.outputs)))}

  def step(self, stage: str, dtype: str) -> Observed:
    """Trains one step of a stage.

    Returns:
      loss, its parts, grad_norm: each [1].
      clean_accuracy, ...: bool [B], as many as are right.
      update: [P], what is added to the parameters.
    """
    config = self.config.copy_and_resolve_references()
    config.model.dtype = dtype
    resolved = training.make_stage(config, stage, BATCH_SIZE)
    variables = {
      group: {k: v for k, v in tree.items() if k in resolved.net.parts}
      for group, tree in self._given[0].items()
    }
    shape = from_config.image_shape(config)
    state = initial_state(resolved, shape, variables)
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
    return {
      **{name: _metric(name, *sums[name]) for name in sorted(sums)},
      'update': _flat(devices.to_host(after.params)) - before,
    }

  def attack(self, name: str) -> Observed:
    """Attacks the images.

    Args:
      name: of `attacks.make`.

    Returns:
      robust: bool [B].
      effect: [B], what the attack adds to the cross entropy.
    """
    variables, given = self._given
    attack = attacks.make(name, **_numbers(float(given['epsilon'])))
    split = Split(self.split.images, given['labels'])
    evaluator = Evaluator(self._net, batch_size=len(given['labels']))
    target = evaluator.target(
      devices.replicate(variables), final(self._net.outputs)
    )
    record = attack.run(target, split, streams.key(0))
    return {'robust': record.robust, 'effect': record.losses - given['clean']}


def _in_scale(params: Any, output: str, logits: jax.Array) -> Any:
  """Returns parameters with an output's logits centred and scaled."""
  part = OUTPUTS[output].parts[-1]
  flat = flax.traverse_util.flatten_dict(params)
  kernel, bias = (part, 'dense', 'kernel'), (part, 'dense', 'bias')
  if kernel not in flat or bias not in flat:  # it has no last layer of its own
    return params
  factor = SPREAD / jnp.maximum(logits.std(axis=0).mean(), 1e-6)
  flat[kernel] *= factor
  flat[bias] = factor * (flat[bias] - logits.mean(axis=0))
  return flax.traverse_util.unflatten_dict(flat)


def _metric(name: str, total: np.ndarray, count: np.ndarray) -> np.ndarray:
  """Returns a mean, or an accuracy as so many flags of the batch."""
  if name.endswith('accuracy'):
    return np.arange(BATCH_SIZE) < round(float(total))
  return np.reshape(total / count, 1)


def _numbers(epsilon: float) -> dict[str, Any]:
  """Returns what attacks of a radius are made with."""
  return {
    'epsilon': epsilon,
    'step_size': epsilon / 4,
    'norm': 'linf',
    'restarts': 1,
    **BUDGET,
  }


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


def cases(problem: Problem) -> list[Case]:
  """Returns all cases, in the order of their value."""
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
          others=METRICS[dtype],
          accuracies=ACCURACIES[dtype],
        )
      )
  for name in ATTACKS:
    observe = functools.partial(problem.attack, name)
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
  """Returns the case whose values both sides start from."""
  return Case('inputs', _in_precision('highest', problem.inputs), 'inputs', {})
