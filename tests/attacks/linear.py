"""A linear network on random images, for the tests of AutoAttack."""

import jax.numpy as jnp
import numpy as np

from dhat_jax.attacks.autoattack import AutoAttackResult, autoattack

BUDGET = {'n_iter': 5, 'n_queries': 30}
NAMES = ('apgd-ce', 'apgd-t', 'fab-t', 'square')
SLOPE = np.random.default_rng(5).normal(size=(72, 5)).astype(np.float32)


def logits_of(images):
  """[B, 6, 6, 2] -> [B, 5]."""
  return (images.reshape(len(images), -1) - 0.5) @ jnp.asarray(SLOPE)


def problem(count=20, wrong=3):
  """Images and labels, the first few labels wrong."""
  images = np.random.default_rng(6).uniform(size=(count, 6, 6, 2))
  images = images.astype(np.float32)
  labels = np.array(jnp.argmax(logits_of(images), axis=1))
  labels[:wrong] = (labels[:wrong] + 1) % 5
  return images, labels


def attack(*names, logits_fn=logits_of, **options) -> AutoAttackResult:
  """Runs some attacks, one restart each, on the problem."""
  images, labels = problem()
  options = {'epsilon': 0.03, 'n_restarts': 1, **BUDGET, **options}
  return autoattack(
    logits_fn, images, labels, version='custom', attacks=names, **options
  )


def standard(logits_fn=logits_of, **options) -> AutoAttackResult:
  """Runs the standard ensemble on the problem."""
  images, labels = problem()
  options = {'epsilon': 0.01, 'batch_size': 8, **BUDGET, **options}
  return autoattack(logits_fn, images, labels, **options)


def counting():
  """The network, and the list of the shapes for which it was traced."""
  traces = []

  def logits_fn(images):
    traces.append(images.shape)
    return logits_of(images)

  return logits_fn, traces


def outcome(function, *args, **options):
  """Returns (result, ''), or (None, text) of the error that a user is shown."""
  try:
    return function(*args, **options), ''
  except (ValueError, TypeError) as error:
    return None, str(error).splitlines()[0]
