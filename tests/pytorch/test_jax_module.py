import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.pytorch import jax_module

torch = pytest.importorskip('torch')

from tests.attacks import nets, oracle  # noqa: E402
from tests.pytorch.functions import smooth  # noqa: E402

pytestmark = pytest.mark.oracle


def random_images(count, seed=0):
  shape = (count, 3, 5, 2)
  return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


@pytest.mark.parametrize('count', [0, 4, 5])
def test_logits_and_gradients_are_those_of_jax(count):
  images = random_images(count)
  weights = np.random.default_rng(1).normal(size=(count, 3)).astype(np.float32)
  module = jax_module.as_torch(smooth).eval()
  images_torch = oracle.nchw(images).requires_grad_()
  logits = module(images_torch)
  assert logits.shape == (count, 3)
  (logits * torch.tensor(weights)).sum().backward()
  np.testing.assert_allclose(
    logits.detach(), jax.jit(smooth)(images), rtol=1e-6
  )
  gradient = jax.jit(jax.grad(lambda images: (smooth(images) * weights).sum()))(
    images
  )
  np.testing.assert_allclose(
    oracle.nhwc(images_torch.grad), gradient, rtol=1e-6
  )


def test_batches_between_powers_of_two_compile_nothing_new():
  traced = []

  def counted(images):
    traced.append(images.shape[0])
    return smooth(images)

  module = jax_module.as_torch(counted)
  for count in (5, 6, 8, 7):
    module(oracle.nchw(random_images(count)))
  assert traced == [8]


def test_inputs_may_be_overwritten_afterwards():
  module = jax_module.as_torch(smooth)
  images = oracle.nchw(random_images(4))
  logits = module(images)
  images.zero_()
  np.testing.assert_allclose(logits, smooth(random_images(4)), rtol=1e-6)


def test_views_and_unaligned_memory_are_read_right():
  module = jax_module.as_torch(smooth)
  images = random_images(9)
  for view in (slice(1, 5), slice(1, 9, 2), slice(3, 4)):
    logits = module(oracle.nchw(images)[view])
    np.testing.assert_allclose(logits, jax.jit(smooth)(images[view]), rtol=1e-6)


def test_images_changed_before_backward_are_noticed():
  module = jax_module.as_torch(smooth)
  images = oracle.nchw(random_images(4)).requires_grad_()
  logits = module(images)
  with torch.no_grad():
    images.add_(1)
  with pytest.raises(RuntimeError, match='modified by an inplace operation'):
    logits.sum().backward()


def test_outputs_are_pytorchs_own_memory():
  """Results that XLA hands through from inputs and constants included."""
  table = jnp.ones((4, 3))
  images = oracle.nchw(np.ones((4, 1, 3, 1), np.float32))
  constant = jax_module.as_torch(lambda images: table)
  identity = jax_module.as_torch(lambda images: images.reshape(4, 3))
  constant(images).zero_()
  np.testing.assert_array_equal(table, 1)
  np.testing.assert_array_equal(constant(images), 1)
  identity(images).zero_()
  np.testing.assert_array_equal(images, 1)


def test_repeated_backward_gives_jacobians():
  module = jax_module.as_torch(smooth)
  images = random_images(2)
  images_torch = oracle.nchw(images).requires_grad_()
  logits = module(images_torch)
  jacobian = jax.jit(jax.jacobian(smooth))(images)
  for index in range(3):
    (gradient,) = torch.autograd.grad(
      logits[:, index].sum(), images_torch, retain_graph=True
    )
    np.testing.assert_allclose(
      oracle.nhwc(gradient), jacobian[:, index].sum(1), rtol=1e-6
    )


def test_double_images_get_double_gradients():
  images = torch.tensor(random_images(3), dtype=torch.float64)
  images = images.permute(0, 3, 1, 2).requires_grad_()
  module = jax_module.as_torch(smooth)
  logits = module(images)
  logits.sum().backward()
  assert logits.dtype == torch.float32
  assert images.grad.dtype == torch.float64
  with oracle.float64():
    assert module(images).dtype == torch.float64


def test_images_of_another_rank_are_refused():
  module = jax_module.as_torch(smooth)
  with pytest.raises(ValueError, match=r'got shape \(4, 9\), expected \[B, C'):
    module(torch.zeros(4, 9))


def test_pyautoattack_runs_on_a_jax_network():
  pyautoattack = pytest.importorskip('pyautoattack')
  weights = nets.trained_weights()
  images, labels = (array[:60] for array in nets.digits()[2:])

  def logits_fn(images):
    return nets.logits_of(weights, images)

  module = jax_module.as_torch(logits_fn).eval()
  epsilon = nets.EPSILON['linf']
  attack = pyautoattack.AutoAttack(
    module,
    norm='Linf',
    eps=epsilon,
    version='custom',
    attacks=['apgd-ce'],
  )
  attack.apgd.n_iter = 10
  attack.apgd.n_restarts = 1
  adversarial, _ = attack.run_standard_evaluation(
    oracle.nchw(images), torch.tensor(labels).long()
  )
  images_adv = oracle.nhwc(adversarial)
  assert np.abs(images_adv - images).max() < epsilon + 1e-6
  clean = np.mean(logits_fn(images).argmax(axis=1) == labels)
  robust = np.mean(logits_fn(images_adv).argmax(axis=1) == labels)
  assert clean > 0.8
  assert robust < clean - 0.2
