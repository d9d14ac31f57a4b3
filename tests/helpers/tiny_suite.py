"""An evaluation that takes seconds: a tiny random network on digits.

    python -m tests.helpers.tiny_suite FOLDER

evaluates as the tests do, and prints the results; a test kills it.
"""

import json
import sys

import jax.numpy as jnp
import numpy as np

from dhat_jax.datasets import digits
from dhat_jax.datasets.base import Split
from dhat_jax.evaluation.evaluator import Evaluator
from dhat_jax.evaluation.plan import Plan
from dhat_jax.evaluation.results import evaluate
from dhat_jax.from_config import evaluation as from_config
from dhat_jax.models.dual_head import DualHeadNet
from tests.helpers import tiny, tiny_run

IMAGES = 42
NAMES = tuple('0123456789')
# Overrides for an evaluation of everything but AutoAttack.
FULL = {
  'attacks': ('clean', 'pgd_3', 'cw_3'),
  'sweep_epsilons_255': (0.0, 2.0, 8.0),
  'sweep_steps': 3,
  'loss_steps': (0, 1, 3),
  'epsilon': 0.02,
  'step_size': 0.005,
  'audit': True,
}


def network(aggregator='classwise', seed=0):
  """Returns (net, variables); the heads' predictions are of many classes."""
  net = DualHeadNet(tiny.TinyBackbone(), 10, aggregator=aggregator)
  images = jnp.asarray(digits.load().test.images[:IMAGES], jnp.float32) / 255
  variables = tiny.random_variables(net, images, seed=seed)
  outputs = net.apply(variables, images)
  for head, logits in (
    ('main_head', outputs.main),
    ('second_head', outputs.second),
  ):
    dense = variables['params'][head]['classifier']['dense']
    dense['bias'] -= logits.mean(axis=0)
    for name in dense:
      dense[name] /= logits.std(axis=0).mean()
  return net, variables


def self_labelled(net, variables, output='aggregated', images=IMAGES):
  """Digits with the network's own predictions: all are right, when clean."""
  test = digits.load().test.images[:images]
  logits = net.apply(variables, jnp.asarray(test, jnp.float32) / 255)
  labels = np.array(logits.select(output).argmax(axis=1), np.int32)
  return Split(test, labels)


def case():
  """Returns (net, variables, split), where some images are wrong when clean."""
  net, variables = network()
  split = self_labelled(net, variables)
  split.labels[:5] = (split.labels[:5] + 1) % 10
  return net, variables, split


def get_config(**overrides):
  """Returns a config with a small evaluation; overrides of `evaluation`."""
  defaults = {
    'attacks': ('clean', 'pgd_3', 'cw_3'),
    'epsilon': 0.1,
    'step_size': 0.05,
    'batch_size': 16,  # 42 images: the last batch is padded
    'autoattack_n_iter': 3,
    'autoattack_queries': 20,
    'autoattack_targets': 2,
    'audit_steps': 3,
    'audit_queries': 0,
    'audit_mora': False,
  }
  values = {**defaults, **overrides}
  return tiny_run.get_config(
    **{f'evaluation.{key}': value for key, value in values.items()}
  )


def make_plan(net, **overrides) -> Plan:
  """Returns the plan of the small evaluation."""
  return from_config.make_plan(get_config(**overrides), net)


def make_evaluator(net, **overrides) -> Evaluator:
  """Returns the evaluator of the small evaluation."""
  return from_config.make_evaluator(get_config(**overrides), net)


def run(
  net,
  variables,
  split,
  directory=None,
  *,
  plan=None,
  progress=None,
  **overrides,
):
  """Evaluates as a run does."""
  return evaluate(
    make_evaluator(net, **overrides),
    variables,
    split,
    plan or make_plan(net, **overrides),
    class_names=NAMES,
    seed=0,
    directory=None if directory is None else str(directory),
    progress=progress,
  )


def autoattack(directory):
  """AutoAttack on the aggregated output, in a folder."""
  net, variables = network()
  split = self_labelled(net, variables)
  return run(
    net,
    variables,
    split,
    directory,
    attacks=('autoattack',),
    autoattack_outputs=('aggregated',),
    audit=False,
  )


if __name__ == '__main__':
  print(json.dumps(autoattack(sys.argv[1])))
