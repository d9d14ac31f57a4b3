"""Weight perturbations: sizes, what they leave alone, and what they cost."""

import functools
import re

import jax
import numpy as np
import optax
import pytest

from dhat_jax import from_config, losses
from dhat_jax.configs import digits
from dhat_jax.runtime import devices
from dhat_jax.training import cost, perturbation
from dhat_jax.training.perturbation import awp, relative_ascent, sam
from dhat_jax.training.stages import all_roles
from tests.helpers.tiny import flat
from tests.training.test_step import make as make_step
from tests.training.test_step import make_batch, make_net

PARAMS = {
  'trunk': {
    'conv': {'kernel': np.arange(1.0, 13.0).reshape(1, 2, 2, 3)},
    'norm': {'scale': np.ones(3), 'bias': np.full(3, 2.0)},
  },
  'head': {'dense': {'kernel': np.array([[3.0, 4.0]]), 'bias': np.ones(2)}},
}


def gradients(seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), PARAMS)


def test_each_kernel_moves_by_gamma_of_its_norm():
  change = relative_ascent(PARAMS, gradients(), 0.005)
  for name, leaf in flat(change).items():
    weight, grad = flat(PARAMS)[name], flat(gradients())[name]
    if not name.endswith('kernel'):
      assert not leaf.any(), name
      continue
    ratio = np.linalg.norm(leaf) / np.linalg.norm(weight)
    assert ratio == pytest.approx(0.005, rel=1e-6)
    cosine = (leaf * grad).sum() / np.linalg.norm(leaf) / np.linalg.norm(grad)
    assert cosine == pytest.approx(1, abs=1e-6)


def test_by_hand():
  """||w|| = 5, g along the second axis: v = .1 * 5 * (0, 1)."""
  grads = jax.tree.map(np.zeros_like, PARAMS)
  grads['head']['dense']['kernel'] = np.array([[0.0, 7.0]])
  change = flat(relative_ascent(PARAMS, grads, 0.1))
  np.testing.assert_allclose(change['head/dense/kernel'], [[0, 0.5]], rtol=1e-6)
  # A zero gradient has no direction.
  assert not change['trunk/conv/kernel'].any()


@pytest.mark.parametrize('scale', [1e-30, 1e-3, 1e20])
def test_the_scale_of_the_loss_does_not_matter(scale):
  scaled = jax.tree.map(lambda g: np.float32(scale * g), gradients())
  expected = flat(relative_ascent(PARAMS, gradients(), 0.01))
  for name, leaf in flat(relative_ascent(PARAMS, scaled, 0.01)).items():
    np.testing.assert_allclose(leaf, expected[name], rtol=1e-5, err_msg=name)


def quadratic(params, step):
  """A loss whose gradient is the parameters themselves."""
  del step
  leaves = jax.tree.leaves(params)
  return sum((leaf**2).sum() / 2 for leaf in leaves), params


def test_awp_begins_at_its_epoch():
  gradient = awp(gamma=0.5, start_epoch=3, steps_per_epoch=10)(
    quadratic, has_aux=True
  )
  for step, size in ((0, 1.0), (19, 1.0), (20, 1.5), (100, 1.5)):
    (_, evaluated_at), grads = gradient(PARAMS, step)
    for name, leaf in flat(grads).items():
      factor = size if name.endswith('kernel') else 1.0
      np.testing.assert_allclose(
        leaf, factor * flat(PARAMS)[name], rtol=1e-6, err_msg=name
      )
    # `aux` is that of the weights where the gradient was taken.
    np.testing.assert_array_equal(
      flat(evaluated_at)['head/dense/kernel'], flat(grads)['head/dense/kernel']
    )


def test_sam_moves_by_rho_over_all_parameters():
  (_, _), grads = sam(rho=0.25)(quadratic, has_aux=True)(PARAMS, 0)
  change = jax.tree.map(np.subtract, grads, PARAMS)
  assert optax.tree.norm(change) == pytest.approx(0.25, rel=1e-5)
  length = optax.tree.norm(PARAMS)
  np.testing.assert_allclose(
    change['trunk']['norm']['bias'], 0.25 * 2 / length * np.ones(3), rtol=1e-5
  )


PERTURBATIONS = {
  'awp': functools.partial(awp, gamma=0.1),
  'sam': functools.partial(sam, rho=0.5),
}


def make(stage, value_and_grad, **options):
  """Returns (state, step) of a stage on random variables, with decay."""
  return make_step(
    stage, augment=None, value_and_grad=value_and_grad, **options
  )


@functools.cache
def stepped(name, stage):
  """Returns (state before, state and metrics after one step)."""
  state, step = make(stage, PERTURBATIONS[name](), decay=0.5)
  return state, *jax.jit(step)(state, make_batch())


@pytest.mark.parametrize('name', list(PERTURBATIONS))
@pytest.mark.parametrize('stage', ['second_head', 'aggregator'])
def test_frozen_parts_stay_bitwise(name, stage):
  before, after, _ = stepped(name, stage)
  for group in ('params', 'batch_stats'):
    old, new = flat(getattr(before, group)), flat(getattr(after, group))
    for path, leaf in old.items():
      trains = path.partition('/')[0] in all_roles()[stage].trains
      assert np.array_equal(leaf, new[path]) != trains, path


@pytest.mark.parametrize('name', list(PERTURBATIONS))
def test_the_average_moves_to_the_weights_and_not_to_the_perturbed(name):
  before, after, _ = stepped(name, 'second_head')
  for path, leaf in flat(after.ema_params).items():
    expected = (flat(before.params)[path] + flat(after.params)[path]) / 2
    np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', list(PERTURBATIONS))
def test_statistics_are_of_the_last_pass_alone(name):
  """One update of the running statistics, at the perturbed weights."""
  weights = []

  def recording(loss_fn, has_aux):
    gradient = PERTURBATIONS[name]()(loss_fn, has_aux=has_aux)

    def record(params, step):
      result = gradient(params, step)
      weights.append(result[0][1][-1])  # where the gradient was taken
      return result

    return record

  state, step = make('main_head', recording, loss=losses.natural())
  after, _ = step(state, make_batch())
  role = all_roles()['main_head']
  _, updated = make_net(role.outputs).apply(
    {'params': weights[0], 'batch_stats': state.batch_stats},
    make_batch()['images'] / np.float32(255),
    training_parts=role.trains,
    mutable=['batch_stats'],
  )
  for path, leaf in flat(after.batch_stats).items():
    expected = flat(updated['batch_stats'])[path]
    np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', list(PERTURBATIONS))
def test_a_rate_of_zero_leaves_the_weights_bitwise(name):
  state, step = make('main_head', PERTURBATIONS[name](), rate=0.0)
  after, _ = jax.jit(step)(state, make_batch())
  for path, leaf in flat(after.params).items():
    np.testing.assert_array_equal(leaf, flat(state.params)[path], err_msg=path)


def test_gamma_of_zero_is_no_perturbation():
  batch = make_batch()
  expected = [
    jax.jit(step)(state, batch)[0].params
    for state, step in [
      make('main_head', jax.value_and_grad),
      make('main_head', awp(gamma=0.0)),
    ]
  ]
  for path, leaf in flat(expected[0]).items():
    np.testing.assert_allclose(flat(expected[1])[path], leaf, atol=1e-6)


@pytest.mark.parametrize('name', list(PERTURBATIONS))
def test_two_devices_perturb_as_one(name):
  """The gradient is summed over the devices before any norm."""
  perturb = PERTURBATIONS[name](axis_name=devices.AXIS)
  state, step = make('main_head', perturb, axis_name=devices.AXIS)
  replicated, _ = devices.pmap_train_step(step)(
    devices.replicate(state), devices.shard(make_batch())
  )
  one, step = make('main_head', PERTURBATIONS[name]())
  one, _ = jax.jit(step)(one, make_batch())
  two = flat(devices.to_host(replicated).params)
  for path, leaf in flat(one.params).items():
    np.testing.assert_allclose(two[path], leaf, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
  ('value_and_grad', 'count'),
  [
    (jax.value_and_grad, 1),
    (awp(gamma=0.1), 2),
    (sam(rho=0.1, axis_name=devices.AXIS), 2),
  ],
)
def test_gradients_are_counted(value_and_grad, count):
  assert perturbation.count_gradients(value_and_grad) == count


COSTS = {'trunk': 3, 'main_head': 7, 'second_head': 7, 'aggregator': 1}


@pytest.mark.parametrize(
  ('stage', 'loss', 'expected'),
  [
    # TRADES: 27 forward passes, and 2 x 3 more.
    ('main_head', losses.trades(beta=6.0), 330),
    ('main_head', losses.sat(), 230 + 30),
    # Only the head is differentiated again; the trunk's features are the same.
    ('second_head', losses.trades(beta=6.0), 22 * 3 + 33 * 7),
  ],
)
def test_cost(stage, loss, expected):
  assert cost.needed(COSTS, all_roles()[stage], loss, 10, 2) == expected


def test_from_config():
  config = digits.get_config()
  config.main_head.weight_perturbation.name = 'awp'
  assert from_config.make_stage(config, 'main_head', 1309).gradients == 2
  assert from_config.make_stage(config, 'second_head', 1309).gradients == 1


@pytest.mark.parametrize(
  ('options', 'problem'),
  [
    ({'gamma': -0.1}, 'gamma: got -0.1'),
    ({'gamma': float('nan')}, 'gamma: got nan'),
    ({'start_epoch': 0}, 'start_epoch: got 0'),
    ({'rho': 0.1}, "got ('rho',), choices for 'awp' are"),
  ],
)
def test_mistakes(options, problem):
  config = digits.get_config()
  with config.unlocked():
    config.main_head.weight_perturbation = {'name': 'awp', **options}
  where = re.escape('config.main_head.weight_perturbation: ')
  with pytest.raises(ValueError, match=where + re.escape(problem)):
    from_config.check(config)
