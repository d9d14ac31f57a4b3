"""DeepMind's WideResNet against a rendering of its own, in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.attacks import fab
from dhat_jax.models.dual_head import DualHeadNet
from dhat_jax.models.wide_resnet import DeepMindWideResNet
from dhat_jax.pytorch import state_dicts
from tests.helpers.tiny import flat

torch = pytest.importorskip('torch')

from tests.attacks import nets, oracle  # noqa: E402
from tests.pytorch import deepmind  # noqa: E402

pytestmark = pytest.mark.oracle
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


def make_original(depth, width, mean=MEAN, std=STD, seed=0):
  """Returns the network with random weights and random running statistics."""
  net = deepmind.DMWideResNet(depth, width, 10, mean, std)
  rng = np.random.default_rng(seed)
  for name, array in net.state_dict().items():
    if name.endswith('running_var'):
      values = rng.uniform(0.5, 2, array.shape)
    elif array.ndim > 1:
      values = rng.normal(size=array.shape) * np.sqrt(2 / array[0].numel())
    elif name.endswith('weight'):
      values = rng.normal(1, 0.2, array.shape)
    else:
      values = rng.normal(0, 0.2, array.shape)
    # What float32 can hold: the same numbers in both precisions.
    array.copy_(torch.tensor(values, dtype=torch.float32))
  return net.eval()


def make_model(depth, width, mean=MEAN, std=STD):
  return DualHeadNet(
    DeepMindWideResNet(depth, width),
    10,
    outputs=('main',),
    mean=mean,
    std=std,
  )


def test_names_are_one_to_one():
  original, model = make_original(16, 2), make_model(16, 2)
  state_dict = original.state_dict()
  variables = state_dicts.from_torch(state_dict, model)
  back = state_dicts.to_torch(variables, model)
  assert back.keys() == state_dict.keys()
  for key, array in state_dict.items():
    np.testing.assert_array_equal(back[key], array.numpy(), err_msg=key)
  counters = sum(key.endswith('num_batches_tracked') for key in back)
  assert len(flat(variables)) == len(back) - counters


@pytest.mark.parametrize(
  ('depth', 'width', 'size'), [(16, 2, (8, 8)), (10, 1, (12, 4))]
)
def test_logits_and_input_gradients_are_equal(depth, width, size):
  model = make_model(depth, width)
  rng = np.random.default_rng(1)
  images = rng.uniform(size=(3, *size, 3))
  weights = rng.normal(size=(3, 10))

  def weighted(images, variables):
    logits = model.apply(variables, images).main
    return (weights * logits).sum(), logits

  with oracle.float64():
    original = make_original(depth, width)
    variables = state_dicts.from_torch(original.state_dict(), model)
    gradient, logits = jax.jit(jax.grad(weighted, has_aux=True))(
      jnp.asarray(images), jax.tree.map(jnp.float64, variables)
    )
    images_torch = oracle.nchw(images).requires_grad_()
    expected = original(images_torch)
    (torch.tensor(weights) * expected).sum().backward()
    expected_gradient = oracle.nhwc(images_torch.grad)
  expected = expected.detach().numpy()
  assert np.ptp(expected) > 1
  for ours, theirs in (
    (logits, expected),
    (gradient, expected_gradient),
  ):
    np.testing.assert_allclose(
      ours, theirs, rtol=0, atol=1e-12 * np.abs(theirs).max()
    )


def test_flags_of_fab_are_equal():
  fab_pt = pytest.importorskip('pyautoattack.fab_pt')
  numbers = {'mean': (0.5,), 'std': (0.25,)}
  original = make_original(10, 1, **numbers)
  model = make_model(10, 1, **numbers)
  variables = state_dicts.from_torch(original.state_dict(), model)
  images = nets.digits()[2][:32]
  epsilon, n_iter, targets = 0.03, 3, 3
  labels = original(oracle.nchw(images)).argmax(dim=1)
  attack = fab_pt.FABAttack_PT(
    original,
    norm='Linf',
    n_iter=n_iter,
    eps=epsilon,
    targeted=True,
    n_target_classes=targets,
  )
  theirs = oracle.nhwc(attack.perturb(oracle.nchw(images), labels))
  expected = np.all(theirs == images, axis=(1, 2, 3))

  @jax.jit
  def attack_towards(rank, variables):
    return fab.fab_targeted(
      lambda images: model.apply(variables, images).main,
      jnp.asarray(images),
      jnp.asarray(labels.numpy()),
      target_rank=rank,
      epsilon=epsilon,
      n_iter=n_iter,
    )[0]

  ranks = range(2, 2 + targets)
  robust = np.all([attack_towards(rank, variables) for rank in ranks], axis=0)
  assert 0.1 < expected.mean() < 0.9
  np.testing.assert_array_equal(robust, expected)
