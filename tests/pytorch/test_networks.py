"""The same weights in PyTorch and in JAX: one function, one gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dhat_jax.attacks import fab
from dhat_jax.models.dual_head import DualHeadNet
from dhat_jax.models.outputs import Outputs
from dhat_jax.models.resnet import ResNet18
from dhat_jax.models.wide_resnet import DeepMindWideResNet, WideResNet
from dhat_jax.pytorch import state_dicts
from tests.helpers.tiny import flat, random_variables

torch = pytest.importorskip('torch')

from dhat_jax.pytorch import networks  # noqa: E402
from tests.attacks import nets, oracle  # noqa: E402

pytestmark = pytest.mark.oracle


def make_twins(model, channels=3, seed=0):
  """Returns random variables and a PyTorch network that has them."""
  variables = random_variables(model, jnp.zeros((1, 8, 8, channels)), seed=seed)
  net = networks.make_torch_network(model, image_channels=channels)
  state_dict = state_dicts.to_torch(variables, model)
  net.load_state_dict(
    {key: torch.from_numpy(value) for key, value in state_dict.items()}
  )
  return variables, net.eval()


def random_images(shape, seed=0):
  return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


@pytest.mark.parametrize(
  'model',
  [
    DualHeadNet(
      WideResNet(10, 2), 10, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
    ),
    DualHeadNet(WideResNet(16, 1), 5, 'block2', 'classwise'),
    DualHeadNet(WideResNet(10, 1, 'silu'), 3, aggregator='mean'),
    DualHeadNet(
      DeepMindWideResNet(10, 1),
      5,
      'block2',
      'classwise',
      mean=(0.5, 0.4, 0.3),
      std=(0.2, 0.3, 0.4),
    ),
    DualHeadNet(WideResNet(10, 1), 3, outputs=('second', 'aggregated')),
    DualHeadNet(WideResNet(10, 1), 3, outputs=('second',)),
    DualHeadNet(ResNet18(activation='silu'), 3, outputs=('main',)),
    DualHeadNet(ResNet18(preact=True, activation='silu'), 3, outputs=('main',)),
  ],
  ids=lambda m: f'{m.backbone}-{"-".join(m.outputs)}-{m.aggregator}',
)
def test_logits_and_input_gradients_are_equal(model):
  variables, net = make_twins(model)
  images = random_images((4, 8, 8, 3))
  labels = np.arange(4) % model.num_classes

  # As an argument: as constants the weights would make compiling slower.
  def loss(images, variables):
    outputs = model.apply(variables, images)
    losses = optax.softmax_cross_entropy_with_integer_labels(
      outputs.select(model.outputs[-1]), labels
    )
    return losses.sum(), outputs

  gradient, outputs = jax.jit(jax.grad(loss, has_aux=True))(images, variables)
  images_torch = oracle.nchw(images).requires_grad_()
  logits = net(images_torch)
  torch.nn.functional.cross_entropy(
    logits, torch.tensor(labels), reduction='sum'
  ).backward()
  expected = oracle.nhwc(images_torch.grad)
  if len(model.outputs) == 1:
    theirs = Outputs(**{model.outputs[0]: logits})
  else:
    theirs = net.outputs(images_torch)
  assert tuple(theirs) == tuple(outputs) == model.outputs
  assert torch.equal(logits, theirs[model.outputs[-1]])
  for name, ours in outputs.items():
    other = theirs[name].detach().numpy()
    assert np.ptp(other) > 0.1
    np.testing.assert_allclose(ours, other, rtol=0, atol=1e-4)
    assert np.array_equal(ours.argmax(axis=1), other.argmax(axis=1))
  cosine = np.vdot(gradient, expected) / (
    np.linalg.norm(gradient) * np.linalg.norm(expected)
  )
  assert cosine > 0.9999
  np.testing.assert_allclose(
    gradient, expected, rtol=0, atol=1e-4 * np.abs(expected).max()
  )


@pytest.mark.parametrize('preact', [False, True])
def test_dual_resnet_has_exactly_these_keys(preact):
  """Loading is strict: no key may be missing or surplus."""
  model = DualHeadNet(ResNet18(preact), 3, 'block3', 'classwise')
  _, net = make_twins(model)
  outputs = net.outputs(torch.zeros(1, 3, 8, 8))
  assert [logits.shape for logits in outputs.values()] == [(1, 3)] * 3


def _record_counts(net):
  """Returns {module: n}, filled as batch norms run: n values per channel."""
  counts = {}

  def hook(name):
    def record(_, arguments):
      images = arguments[0]
      counts[name] = images.numel() // images.shape[1]

    return record

  for name, module in net.named_modules():
    if hasattr(module, 'running_var'):
      module.register_forward_pre_hook(hook(name))
  return counts


@pytest.mark.parametrize(
  ('backbone', 'momentum', 'outputs'),
  [
    (WideResNet(10, 1), 0.9, ('main', 'second', 'aggregated')),
    (DeepMindWideResNet(10, 1), 0.99, ('main',)),
  ],
)
def test_training_uses_the_same_statistics(backbone, momentum, outputs):
  model = DualHeadNet(backbone, 4, outputs=outputs)
  variables, net = make_twins(model)
  images = random_images((6, 8, 8, 3), seed=1)
  outputs, updated = jax.jit(
    lambda images: model.apply(
      variables, images, training_parts=model.parts, mutable=['batch_stats']
    )
  )(images)
  before = state_dicts.to_torch(variables, model)
  ours = state_dicts.to_torch({**variables, **updated}, model)
  counts = _record_counts(net.train())
  logits = net(oracle.nchw(images))
  theirs = {key: value.numpy() for key, value in net.state_dict().items()}
  np.testing.assert_allclose(
    outputs.select(model.outputs[-1]), logits.detach(), rtol=0, atol=1e-3
  )
  assert counts.keys() == {
    key.removesuffix('.running_var') for key in ours if 'running_var' in key
  }
  for name, count in counts.items():
    np.testing.assert_allclose(
      ours[f'{name}.running_mean'],
      theirs[f'{name}.running_mean'],
      rtol=1e-4,
      atol=1e-5,
    )
    # PyTorch's estimate is n / (n - 1) times as large.
    old = momentum * before[f'{name}.running_var']
    np.testing.assert_allclose(
      (ours[f'{name}.running_var'] - old) * count / (count - 1),
      theirs[f'{name}.running_var'] - old,
      rtol=1e-3,
      atol=1e-5,
    )
    assert theirs[f'{name}.num_batches_tracked'] == 1


def test_float_and_wrapped_tensors_are_read(tmp_path):
  model = DualHeadNet(WideResNet(10, 1), 4, outputs=('main',))
  variables, net = make_twins(model)
  path = tmp_path / 'model.pt'
  parallel = torch.nn.DataParallel(net.double())
  torch.save({'state_dict': parallel.state_dict(), 'epoch': 3}, path)
  restored = state_dicts.from_torch(
    state_dicts.read_state_dict(str(path)), model
  )
  for name, array in flat(restored).items():
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, flat(variables)[name])
  state_dicts.write_state_dict(str(path), state_dicts.to_torch(restored, model))
  net.float().load_state_dict(torch.load(path, weights_only=True))
  torch.save({'lr': 0.1}, path)
  with pytest.raises(ValueError, match='holds no state dict'):
    state_dicts.read_state_dict(str(path))


def test_flags_of_fab_are_equal():
  fab_pt = pytest.importorskip('pyautoattack.fab_pt')
  model = DualHeadNet(WideResNet(10, 1), 10)
  variables, net = make_twins(model, channels=1)
  images = nets.digits()[2][:40]
  epsilon, n_iter = 0.05, 6
  labels = net(oracle.nchw(images)).argmax(dim=1)
  attack = fab_pt.FABAttack_PT(
    net, norm='Linf', n_iter=n_iter, eps=epsilon, targeted=True
  )
  theirs = oracle.nhwc(attack.perturb(oracle.nchw(images), labels))
  expected = np.all(theirs == images, axis=(1, 2, 3))

  # As an argument: as constants the weights would make compiling slower.
  @jax.jit
  def attack_towards(rank, variables):
    return fab.fab_targeted(
      lambda images: model.apply(variables, images).aggregated,
      jnp.asarray(images),
      jnp.asarray(labels.numpy()),
      target_rank=rank,
      epsilon=epsilon,
      n_iter=n_iter,
    )[0]

  robust = np.all(
    [attack_towards(rank, variables) for rank in range(2, 11)], axis=0
  )
  assert 0.1 < expected.mean() < 0.9
  np.testing.assert_array_equal(robust, expected)
