"""The DKL loss: PyTorch's values, the classes' means, the training step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dhat_jax import from_config, losses
from dhat_jax.attacks import pgd
from dhat_jax.configs import digits
from dhat_jax.losses.decoupled import pairwise_mse
from dhat_jax.models.dual_head import DualHeadNet
from dhat_jax.models.outputs import Outputs
from dhat_jax.runtime import devices
from dhat_jax.training import checkpoint
from dhat_jax.training.perturbation import awp
from dhat_jax.training.stages import all_roles
from dhat_jax.training.state import create_train_state
from dhat_jax.training.step import make_train_step
from tests.helpers.float64 import LABELS, kl_in_float64, logits_at, softmax
from tests.helpers.tiny import TinyBackbone, random_variables

CLASSES, SHAPE, STEPS_PER_EPOCH = 4, (6, 6, 1), 2


def make_loss(**options):
  options = {'num_classes': CLASSES, 'steps_per_epoch': 3, **options}
  return losses.dkl(**options)


def state_of(class_means):
  class_means = jnp.asarray(class_means)
  return {
    'class_means': class_means,
    'class_sums': jnp.zeros_like(class_means),
  }


def random_means(seed=0):
  logits = np.random.default_rng(seed).normal(size=(CLASSES, CLASSES))
  return softmax(logits)


def pairs_in_float64(z, z_adv, weights):
  """The double sum, entry by entry."""
  total = np.zeros(len(z))
  for b, i, j in np.ndindex(len(z), z.shape[1], z.shape[1]):
    change = (z[b, i] - z[b, j]) - (z_adv[b, i] - z_adv[b, j])
    total[b] += weights[b, i] * weights[b, j] * change**2 / 4
  return total


def test_pairwise_mse_is_the_double_sum():
  z, z_adv = np.float64(logits_at(10.0))
  weights = random_means()[LABELS]
  expected = pairs_in_float64(z, z_adv, weights)
  assert expected.min() > 1e-3
  np.testing.assert_allclose(
    pairwise_mse(z, z_adv, weights), expected, rtol=1e-5
  )
  # A sum other than 1, and a shift of all logits, which no pair sees.
  np.testing.assert_allclose(
    pairwise_mse(z + 64, z_adv, 3 * weights), 9 * expected, rtol=1e-4
  )


def test_pairwise_mse_by_hand():
  # d = (2, 0), s = (3/4, 1/4): twice 3/16 times 4, over 4.
  one = pairwise_mse(
    jnp.array([[3.0, 1.0]]), jnp.ones((1, 2)), jnp.array([[0.75, 0.25]])
  )
  np.testing.assert_allclose(one, [0.375], rtol=1e-6)


def torch_dkl(torch, clean, adversarial, labels, class_means):
  """The published formulas: alpha 4, beta 20."""
  functional = torch.nn.functional
  weights = class_means[labels]
  pairs = weights.unsqueeze(2) * weights.unsqueeze(1)
  change = clean - adversarial
  change = (change.unsqueeze(2) - change.unsqueeze(1)) ** 2
  pairwise = 0.25 * (pairs * change).sum((1, 2))
  target = functional.softmax(clean, 1).detach()
  soft = -(target * functional.log_softmax(adversarial, 1)).sum(1)
  natural = functional.cross_entropy(clean, labels, reduction='none')
  return natural + 4 * soft + 20 * pairwise


@pytest.mark.oracle
def test_values_and_gradients_match_pytorch_in_float64():
  torch = pytest.importorskip('torch')
  pair, class_means = np.float64(logits_at(10.0)), random_means()
  double = torch.tensor(pair, requires_grad=True)
  expected = torch_dkl(
    torch, *double, torch.tensor(LABELS), torch.tensor(class_means)
  )
  expected.sum().backward()
  with jax.enable_x64(True):

    def total(pair):
      clean, adversarial = (Outputs(main=logits) for logits in pair)
      values, terms = make_loss().per_example(
        clean, adversarial, jnp.asarray(LABELS), 'main', state_of(class_means)
      )
      return values.sum(), (values, terms)

    gradients, (values, terms) = jax.grad(total, has_aux=True)(
      jnp.asarray(pair)
    )
  assert values.dtype == np.float64
  np.testing.assert_allclose(values, expected.detach(), rtol=1e-12)
  np.testing.assert_allclose(gradients, double.grad, rtol=1e-11, atol=1e-13)
  sums = np.zeros((CLASSES, CLASSES))
  for label, row in zip(LABELS, softmax(pair[0] / 4), strict=True):
    sums[label] += row
  np.testing.assert_allclose(
    np.sum(np.asarray(terms['class_sums']), 0), sums, rtol=1e-12
  )


@pytest.mark.parametrize('attack_beta', [0.0, 1.0])
def test_objective(attack_beta):
  clean, adversarial = logits_at(3.0)
  class_means = random_means()
  loss = make_loss(attack_beta=attack_beta)
  memory = (state_of(class_means),) if loss.objective_uses_memory else ()
  objective = loss.make_objective(jnp.asarray(clean), LABELS, *memory)
  expected = kl_in_float64(softmax(clean), softmax(adversarial))
  expected += attack_beta * pairs_in_float64(
    clean, adversarial, class_means[LABELS]
  )
  np.testing.assert_allclose(
    objective(jnp.asarray(adversarial)), expected, rtol=1e-4
  )
  # SCE has the gradient of KL.
  soft = jax.grad(
    lambda z: -(softmax(clean) * jax.nn.log_softmax(z, axis=1)).sum()
  )
  plain = make_loss().make_objective(jnp.asarray(clean), LABELS)
  np.testing.assert_allclose(
    jax.grad(lambda z: plain(z).sum())(jnp.asarray(adversarial)),
    soft(jnp.asarray(adversarial)),
    rtol=1e-4,
    atol=1e-5,
  )


def test_means_of_an_epoch_by_hand():
  memory = make_loss(num_classes=2, steps_per_epoch=2).memory
  state = memory.initial()
  np.testing.assert_array_equal(state['class_means'], np.full((2, 2), 0.5))
  sums = [[[0.75, 0.25], [0, 0]], [[1.5, 1.5], [0, 0]]]
  for step, rows in enumerate(sums):
    state = memory.advance(state, {'class_sums': jnp.array(rows)}, step)
    if step == 0:
      np.testing.assert_array_equal(state['class_means'], np.full((2, 2), 0.5))
  # Four images of class 0; of class 1 there was none.
  np.testing.assert_allclose(
    state['class_means'], [[0.5625, 0.4375], [0.5, 0.5]], rtol=1e-6
  )
  np.testing.assert_array_equal(state['class_sums'], np.zeros((2, 2)))


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'alpha': -1.0}, 'alpha: got -1.0, expected a finite number >= 0'),
    ({'beta': float('nan')}, 'beta: got nan'),
    ({'temperature': 0.0}, 'temperature: got 0.0, expected a finite number >'),
    ({'attack_beta': -1}, 'attack_beta: got -1'),
    ({'label_smoothing': 2}, 'label_smoothing: got 2'),
    ({'num_classes': 1}, 'num_classes: got 1, expected an integer >= 2'),
    ({'steps_per_epoch': 0}, 'steps_per_epoch: got 0'),
  ],
)
def test_arguments_out_of_range(options, message):
  with pytest.raises(ValueError, match=message):
    make_loss(**options)


def test_logits_of_another_number_of_classes():
  outputs = Outputs(main=jnp.zeros((4, 3)))
  with pytest.raises(ValueError, match='num_classes: got 4, expected 3'):
    make_loss().per_example(outputs, outputs, LABELS, 'main', None)


# The training step.


@functools.cache
def make(axis_name=None):
  """(state, step) with AWP and the CIFAR-100 objective."""
  role = all_roles()['main_head']
  net = DualHeadNet(
    backbone=TinyBackbone(),
    num_classes=CLASSES,
    outputs=role.outputs,
    axis_name=axis_name,
  )
  tx = optax.sgd(0.1)
  loss = make_loss(attack_beta=1.0, steps_per_epoch=STEPS_PER_EPOCH)
  state = create_train_state(
    net=net,
    tx=tx,
    trains=role.trains,
    rng=jax.random.key(0),
    image_shape=SHAPE,
    variables=random_variables(
      net.clone(axis_name=None), jnp.zeros((1, *SHAPE)), seed=1
    ),
    loss=loss,
  )
  step = make_train_step(
    net=net,
    tx=tx,
    loss=loss,
    attack=pgd.make_attack(epsilon=0.3, step_size=0.2, steps=1, norm='l2'),
    trains=role.trains,
    output=role.output,
    axis_name=axis_name,
    value_and_grad=awp(axis_name=axis_name),
  )
  return state, step


def make_batch(seed):
  rng = np.random.default_rng(seed)
  return {
    'images': rng.integers(0, 256, (8, *SHAPE), dtype=np.uint8),
    'labels': rng.integers(0, CLASSES - 1, 8).astype(np.int32),
    'mask': np.arange(8) < 6,
  }


@functools.cache
def states():
  """The states before each of three steps, and the metrics of the last."""
  state, step = make()
  step = jax.jit(step)
  result = [state]
  for seed in range(3):
    state, metrics = step(state, make_batch(seed))
    result.append(state)
  assert step._cache_size() == 1  # compiled once: the state keeps its types
  return result, metrics, step


def test_step_remembers_what_counts():
  passed, metrics, _ = states()
  assert 'class_sums' not in metrics
  assert set(metrics) >= {'natural_loss', 'soft_loss', 'pairwise_loss'}
  first = passed[1].loss_state
  counts = np.bincount(make_batch(0)['labels'][:6], minlength=CLASSES)
  np.testing.assert_allclose(first['class_sums'].sum(1), counts, rtol=1e-5)
  np.testing.assert_array_equal(first['class_means'], np.full((4, 4), 0.25))
  second = passed[2].loss_state
  np.testing.assert_allclose(second['class_means'].sum(1), np.ones(4), 1e-5)
  assert (second['class_means'][:3] != 0.25).all()
  np.testing.assert_array_equal(second['class_means'][3], np.full(4, 0.25))


def test_two_devices_equal_one():
  state, step = make(devices.AXIS)
  mapped = devices.pmap_train_step(step)
  state = devices.replicate(state)
  for seed in range(3):
    state, _ = mapped(state, devices.shard(make_batch(seed)))
  host, expected = devices.to_host(state), states()[0][3]
  for name in ('params', 'loss_state'):
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-4),
      getattr(host, name),
      getattr(expected, name),
    )


def test_resumes_bitwise():
  passed, _, step = states()
  for before in (1, 2):
    stored = checkpoint.flatten(passed[before])
    assert 'loss_state/class_means' in stored
    resumed = checkpoint.unflatten(passed[0], stored)
    after, _ = step(resumed, make_batch(before))
    expected = checkpoint.flatten(passed[before + 1])
    for name, array in checkpoint.flatten(after).items():
      np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_dkl_knows_the_classes_and_the_epoch():
  config = digits.get_config()
  with config.unlocked():
    config.main_head.loss = {'name': 'dkl'}
  config.main_head.batch_size = 4
  stage = from_config.make_stage(config, 'main_head', num_train=8)
  state = stage.loss.memory.initial()
  assert state['class_means'].shape == (10, 10)
  sums = {'class_sums': jnp.eye(10)}
  for step, mean in ((0, 0.1), (1, 1.0)):
    state = stage.loss.memory.advance(state, sums, step)
    assert state['class_means'][3, 3] == pytest.approx(mean)
