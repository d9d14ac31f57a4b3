"""Arithmetic against what is counted by hand and against the published."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from dhat_jax import from_config, losses
from dhat_jax.configs import cifar10
from dhat_jax.training import cost
from dhat_jax.training.stages import all_roles


def zeros(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_matrix_product():
  assert cost.count(lambda a, b: a @ b, zeros(3, 5), zeros(5, 7)) == 3 * 5 * 7


def test_function_in_a_loop_counts_each_time():
  def loop(a):
    return jax.lax.fori_loop(0, 6, lambda _, x: jax.jit(jnp.dot)(x, a), a)

  assert cost.count(loop, zeros(4, 4)) == 6 * 4**3


@pytest.mark.parametrize('stride', [1, 2])
def test_gradients_of_a_convolution_cost_as_much_as_itself(stride):
  images, kernel = zeros(2, 8, 8, 3), zeros(3, 3, 3, 5)
  out = zeros(2, 8 // stride, 8 // stride, 5)

  def conv(images, kernel):
    return jax.lax.conv_general_dilated(
      *(images, kernel, (stride, stride), ((1, 1), (1, 1))),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )

  def input_gradient(cotangent, kernel):
    transposed = jax.linear_transpose(lambda i: conv(i, kernel), images)
    return transposed(cotangent)

  def kernel_gradient(cotangent, images):
    transposed = jax.linear_transpose(lambda k: conv(images, k), kernel)
    return transposed(cotangent)

  expected = 2 * (8 // stride) ** 2 * 5 * 3 * 3 * 3
  assert cost.count(conv, images, kernel) == expected
  assert cost.count(input_gradient, out, kernel) == expected
  assert cost.count(kernel_gradient, out, images) == expected


@pytest.mark.parametrize(
  ('variant', 'trunk', 'head'),
  [
    # Multiply-adds in millions, of the published architectures.
    ('trades_wrn34_10', 2150, 4509),
    ('trades_wrn16_4', 124, 268),
    ('trades_resnet18', 153, 403),
  ],
)
def test_parts(variant, trunk, head):
  net = from_config.make_network(cifar10.get_config(variant))
  costs = cost.parts(net, (32, 32, 3))
  assert round(costs['trunk'] / 1e6) == trunk
  assert round(costs['main_head'] / 1e6) == head
  assert costs['second_head'] == costs['main_head']
  # The linear layer of 2,880 inputs; no products over the two heads.
  assert costs['aggregator'] == 2880 * 10


COSTS = {'trunk': 3, 'main_head': 7, 'second_head': 7, 'aggregator': 1}


@pytest.mark.parametrize(
  ('stage', 'loss', 'expected'),
  [
    # 27 forward passes: 1, 10 x 2, 2 x 3.
    ('main_head', losses.trades(beta=6.0), 270),
    # The trunk's are 1 + 20 + 1; the head's 27.
    ('second_head', losses.trades(beta=6.0), 22 * 3 + 27 * 7),
    # Trunk and heads 22, the aggregator 27.
    ('aggregator', losses.trades(beta=6.0), 22 * 17 + 27),
    # No clean images: 20 + 3.
    ('main_head', losses.sat(), 230),
    # No clean prediction for the attack: 20 + 6.
    ('main_head', losses.mart(beta=5.0), 260),
    ('main_head', losses.natural(), 30),
    # As TRADES, and its teacher twice: 2 x 7.
    ('second_head', losses.reverse_smoothing(), 22 * 3 + 27 * 7 + 14),
  ],
)
def test_needed(stage, loss, expected):
  assert cost.needed(COSTS, all_roles()[stage], loss, 10) == expected


def test_a_name_decides_nothing():
  """A user's loss costs what its properties say, whatever it is called."""
  trades = losses.trades(beta=1.0)
  renamed = dataclasses.replace(trades, name='mine')
  role = all_roles()['second_head']
  expected = cost.needed(COSTS, role, trades, 10)
  assert cost.needed(COSTS, role, renamed, 10) == expected
