"""Closed-over arrays become arguments of one program."""

import jax
import jax.numpy as jnp
import numpy as np

from dhat_jax.runtime import hoisting

WEIGHTS = jnp.arange(6.0).reshape(2, 3)


def network(tree):
  return {'logits': tree['images'] @ WEIGHTS, 'shift': tree['images'] + 1}


def test_arrays_are_arguments_and_trees_come_back():
  tree = {'images': jnp.ones((4, 2))}
  run, consts = hoisting.hoist(network, tree)
  (weights,) = consts
  np.testing.assert_array_equal(weights, WEIGHTS)
  result = jax.jit(run)(consts, tree)
  assert set(result) == {'logits', 'shift'}
  np.testing.assert_array_equal(result['logits'], network(tree)['logits'])
  # Other weights need no other program.
  doubled = jax.jit(run)([2 * weights], tree)
  np.testing.assert_array_equal(doubled['logits'], 2 * result['logits'])


def test_several_arguments_traced_once():
  traces = []

  def product(a, b):
    traces.append(1)
    return WEIGHTS[0, 1] * a * b

  run, consts = hoisting.hoist(product, jnp.ones(3), jnp.ones(3))
  compiled = jax.jit(run)
  for scale in (1.0, 2.0):
    a, b = jnp.full(3, scale), jnp.full(3, 5.0)
    np.testing.assert_array_equal(compiled(consts, a, b), product(a, b))
  assert len(traces) == 3  # one by hoist, two by hand
