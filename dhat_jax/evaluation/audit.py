"""Does the aggregated output hide its gradients, or is it robust?

A network may look robust because gradient attacks cannot find the adversarial
images that exist. Then other attacks, which do not need its gradients, find
them: images made against the heads, a backward pass around the aggregator's
ReLU, random search. Each finding beyond what chance explains is a red flag.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dhat_jax import divergences
from dhat_jax.datasets import batches as input_pipeline
from dhat_jax.evaluation.ensemble import Ensemble
from dhat_jax.evaluation.evaluator import Attack
from dhat_jax.evaluation.parts import Parts
from dhat_jax.evaluation.store import Part
from dhat_jax.models import aggregator as aggregators
from dhat_jax.models.outputs import Outputs
from dhat_jax.runtime import devices

# Numbers of images: the larger of a share of all and a least number.
# An attack is suspicious if it leaves so many fewer robust than the white-box
# attack, which knows more, ...
BEATEN = (0.01, 3)
# ... or if it breaks so many that the white-box attack left robust: two honest
# attacks of one strength differ by less (3 of 360 digits were measured).
MISSED = (0.02, 5)
# A gradient counts as vanishing if it is below this share of the largest one.
TINY = 1e-8
# So many vanishing gradients (share of images) are suspicious.
VANISHING_SHARE = 0.05
# More robust at a larger radius, by this share of images: impossible.
RISE = 0.01


@dataclasses.dataclass(frozen=True)
class AuditPlan:
  """What the audit runs.

  Attributes:
    attack: the white-box attack: PGD on the cross entropy.
    margin: the same on the margin.
    largest: the same as `attack`, at a radius that leaves nothing robust.
    square: random search, or None.
  """

  attack: Attack
  margin: Attack
  largest: Attack
  square: Ensemble | None


@dataclasses.dataclass(frozen=True)
class ReluBypassed:
  """The network, its aggregator's ReLU the identity in the backward pass.

  The values are the network's own (BPDA, Athalye et al. 2018). Everything
  behind the one ReLU is affine, and relu(x) - relu(-x) = x: the difference of
  the aggregator and of its twin with negated pre-activations has the gradient
  of the aggregator without ReLU.

  Attributes:
    net: a `DualHeadNet` with a learned aggregator.
  """

  net: nn.Module

  @property
  def parts(self) -> tuple[str, ...]:
    """The parts of the network."""
    return self.net.parts

  def apply(self, variables: Any, images: jax.Array) -> Outputs:
    """Computes the outputs in evaluation mode."""
    outputs = self.net.apply(variables, images)
    module = aggregators.AGGREGATORS[self.net.aggregator]()
    own = {group: tree['aggregator'] for group, tree in variables.items()}
    stacked = jnp.stack([outputs.main, outputs.second], axis=1)
    linear = module.apply(own, stacked, train=False) - module.apply(
      _negated(own), stacked, train=False
    )
    straight = jax.lax.stop_gradient(outputs.aggregated)
    straight = straight + (linear - jax.lax.stop_gradient(linear))
    return outputs._replace(aggregated=straight)


def has_relu(variables: Any) -> bool:
  """Returns whether the aggregator is a learned one, with a ReLU."""
  return 'features' in variables['params'].get('aggregator', {})


def _negated(variables: Any) -> dict:
  """Returns an aggregator's variables with negated pre-activations."""
  features = variables['params']['features']
  norm = jax.tree.map(jnp.negative, features['norm'])
  params = {**variables['params'], 'features': {**features, 'norm': norm}}
  return {**variables, 'params': params}


def gradient_sizes(parts: Parts, output: str) -> np.ndarray:
  """Returns the largest entry of each image's gradient: float [N].

  Of the attacked loss, the cross entropy, at the image itself.
  """
  net = parts.evaluator.net

  def sizes(variables, batch):
    def loss(images):
      logits = net.apply(variables, images).select(output)
      return divergences.cross_entropy(logits, batch['labels']).sum()

    gradient = jax.grad(loss)(input_pipeline.to_float(batch['images']))
    largest = jnp.abs(gradient).reshape(len(gradient), -1).max(axis=1)
    return devices.all_gather(largest, devices.AXIS)

  step = devices.pmap_eval_step(sizes, in_axes=(0, 0))
  found = [
    devices.first_copy(step(parts.variables, devices.shard(batch)))
    for batch in parts.evaluator.batches(parts.split)
  ]
  return np.concatenate(found)[: len(parts.split.labels)]


def run(parts: Parts, plan: AuditPlan) -> dict[str, Any]:
  """Audits the aggregated output.

  Args:
    parts: the evaluation of a network that has one.
    plan: what to run.

  Returns:
    All numbers, and `flags`, empty if nothing is suspicious; see
    `docs/results_schema.md`.
  """
  labels = parts.split.labels
  white = parts.get('aggregated', plan.attack)['robust']
  margin = parts.get('aggregated', plan.margin)['robust']
  others = {
    f'transfer_{source}': _right(parts.get(source, plan.attack), labels)
    for source in ('main', 'second', 'mean')
  }
  if has_relu(parts.variables):
    parts.evaluator.add_network(
      'relu_bypassed', ReluBypassed(parts.evaluator.net), 'aggregated'
    )
    bypassed = parts.get('relu_bypassed', plan.attack)
    others['relu_bypassed'] = bypassed['robust']
  found = {name: _compare(white, robust) for name, robust in others.items()}
  worst = np.logical_and.reduce([white, margin, *others.values()])
  if plan.square is not None:
    robust = parts.get('aggregated', plan.square)['robust']
    both = (white & margin)[: len(robust)]
    found['square'] = _compare(both, robust)
    worst[: len(robust)] &= robust
  return _report(parts, plan, white, margin, found, worst)


def _right(part: Part, labels: np.ndarray) -> np.ndarray:
  """Whether the aggregated output resists another output's images."""
  return part['aggregated_predictions'] == labels


def _compare(reference: np.ndarray, robust: np.ndarray) -> dict[str, Any]:
  """Counts what an attack found and the reference attack did not."""
  return {
    'accuracy': float(robust.mean()),
    'missed': int((reference & ~robust).sum()),
    'beats_by': int(reference.sum()) - int(robust.sum()),
    'images': len(robust),
  }


def _report(parts, plan, white, margin, found, worst) -> dict[str, Any]:
  sizes = parts.store.get(
    'aggregated/gradient_sizes',
    None,
    lambda: {'sizes': gradient_sizes(parts, 'aggregated')},
  )['sizes']
  largest = parts.get('aggregated', plan.largest)
  report = {
    'attack': plan.attack.name,
    'white_box': {
      'accuracy': float(white.mean()),
      'margin_accuracy': float(margin.mean()),
      'accuracy_of_both': float((white & margin).mean()),
    },
    'attacks': found,
    'worst_case': float(worst.mean()),
    'gradients': {
      'zero': float((sizes == 0).mean()),
      'vanishing': float((sizes <= TINY * sizes.max()).mean()),
    },
    'largest_epsilon': {
      'epsilon': plan.largest.settings.epsilon,
      'accuracy': float(largest['robust'].mean()),
      'chance': 1 / parts.evaluator.net.num_classes,
    },
  }
  return {**report, 'flags': flags(report)}


def tolerance(rule: tuple[float, int], images: int) -> int:
  """Returns from which number on a rule finds images suspicious."""
  share, least = rule
  return max(math.ceil(share * images), least)


_SENTENCES = {
  'transfer_main': 'images made against the main head',
  'transfer_second': 'images made against the second head',
  'transfer_mean': "images made against the mean of the heads' logits",
  'relu_bypassed': "gradients around the aggregator's ReLU",
  'square': 'Square, which sees no gradients,',
}


def flags(report: dict[str, Any]) -> list[dict[str, Any]]:
  """Returns the red flags of an audit: name, numbers, a plain sentence."""
  found = []

  def flag(name, sentence, **numbers):
    found.append({'name': name, 'sentence': sentence, **numbers})

  for name, numbers in report['attacks'].items():
    images = numbers['images']
    beaten, missed = tolerance(BEATEN, images), tolerance(MISSED, images)
    if numbers['beats_by'] >= beaten or numbers['missed'] >= missed:
      white_box = report['attack']
      if name == 'square':
        white_box += ' and the same on the margin'
      flag(
        name,
        f'{_SENTENCES[name]} fool the aggregated output on '
        f'{numbers["missed"]} of {images} images that white-box {white_box} '
        f'left robust, and leave {numbers["beats_by"]} fewer robust '
        f'(suspicious from {missed} or {beaten} on)',
        **numbers,
        missed_threshold=missed,
        beats_by_threshold=beaten,
      )
  share = report['gradients']['vanishing']
  if share > VANISHING_SHARE:
    flag(
      'vanishing_gradients',
      f'the gradient vanishes on {100 * share:.1f} % of the images (suspicious '
      f'above {100 * VANISHING_SHARE:.0f} %): gradient attacks see nothing '
      'there',
      share=share,
      threshold=VANISHING_SHARE,
    )
  largest = report['largest_epsilon']
  if largest['accuracy'] > largest['chance']:
    flag(
      'largest_epsilon',
      f'{100 * largest["accuracy"]:.1f} % stay robust at epsilon '
      f'{largest["epsilon"]:.3f}, where any classifier can be brought below '
      f'chance ({100 * largest["chance"]:.1f} %): the attack fails',
      **largest,
    )
  rise = largest['accuracy'] - report['white_box']['accuracy']
  if rise > RISE:
    flag(
      'rises_with_epsilon',
      f'white-box accuracy is {100 * rise:.1f} points higher at epsilon '
      f'{largest["epsilon"]:.3f} than at the smaller one: the attack fails',
      rise=rise,
      threshold=RISE,
    )
  return found
