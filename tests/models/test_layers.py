import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.models import layers
from tests.helpers.tiny import normal, random_variables
from tests.models.convolutions import assert_close, plain_conv, random_arrays


def test_padding_at_stride_2_is_symmetric():
  # 4x4 pixels 0..15 under a kernel of ones. With one pixel of padding on all
  # sides the windows cover rows (and columns) {0, 1} and {1, 2, 3}.
  image = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
  kernel = np.ones((3, 3, 1, 1), np.float32)
  out = layers.conv(1, 3, 2).apply({'params': {'kernel': kernel}}, image)
  np.testing.assert_array_equal(
    out[0, :, :, 0],
    [
      [0 + 1 + 4 + 5, 1 + 2 + 3 + 5 + 6 + 7],
      [4 + 5 + 8 + 9 + 12 + 13, 5 + 6 + 7 + 9 + 10 + 11 + 13 + 14 + 15],
    ],
  )
  same = plain_conv(image, kernel, (2, 2), 'SAME')
  assert same[0, 0, 0, 0] == 45  # rows and columns {0, 1, 2}: not PyTorch's
  out = layers.conv(1, 3, 2, padding=((0, 1), (0, 1))).apply(
    {'params': {'kernel': kernel}}, image
  )
  np.testing.assert_array_equal(out, same)


@pytest.mark.oracle
@pytest.mark.parametrize(
  ('size', 'kernel_size', 'stride'), [((7, 8), 3, 2), ((8, 8), 1, 2)]
)
def test_conv_equals_pytorch(size, kernel_size, stride):
  torch = pytest.importorskip('torch')
  inputs, kernel = random_arrays(size, kernel_size)
  out = layers.conv(4, kernel_size, stride).apply(
    {'params': {'kernel': kernel}}, inputs
  )
  expected = torch.nn.functional.conv2d(
    torch.tensor(inputs.transpose(0, 3, 1, 2)),
    torch.tensor(kernel.transpose(3, 2, 0, 1)),
    stride=stride,
    padding=kernel_size // 2,
  )
  assert_close(out, expected.numpy().transpose(0, 2, 3, 1))


@pytest.mark.parametrize('size', [6, 7])
def test_unit_pads_as_tensorflow(size):
  inputs = normal(2, size, size, 3)
  unit = layers.PreActUnit(
    5, 2, None, None, activation='silu', same_padding=True
  )
  variables = random_variables(unit, inputs, train=False)
  out, captured = unit.apply(
    variables, inputs, train=False, capture_intermediates=True
  )
  (normed,), (ours,) = (
    captured['intermediates'][name]['__call__'] for name in ('norm1', 'conv1')
  )
  kernel = variables['params']['conv1']['kernel']
  activated = normed / (1 + jnp.exp(-normed))
  assert_close(ours, plain_conv(activated, kernel, (2, 2), 'SAME'))
  assert out.shape == (2, (size + 1) // 2, (size + 1) // 2, 5)


def test_conv_init_is_he_normal_over_the_fan_out():
  shape = (3, 3, 32, 96)
  kernel = np.asarray(layers.conv(96, 3).kernel_init(jax.random.key(0), shape))
  expected = np.sqrt(2 / (3 * 3 * 96))
  # The relative error of a measured deviation is 1 / sqrt(2 n).
  tolerance = 5 / np.sqrt(2 * kernel.size)
  assert abs(kernel.std() / expected - 1) < tolerance
  # A normal distribution, not one cut off at two deviations.
  assert np.abs(kernel).max() > 3 * expected


def norm_variables(channels):
  return {
    'params': {'scale': np.ones(channels), 'bias': np.zeros(channels)},
    'batch_stats': {'mean': np.zeros(channels), 'var': np.ones(channels)},
  }


def test_norm_golden():
  images = np.array([[0.0, 10.0], [0.002, 14.0]], np.float32)
  out, updated = jax.jit(
    lambda x: layers.norm(train=True).apply(
      norm_variables(2), x, mutable=['batch_stats']
    )
  )(images.reshape(2, 1, 1, 2))
  # Means .001 and 12, biased variances 1e-6 and 4.
  scale = np.array([0.001 / np.sqrt(1e-6 + 1e-5), 2 / np.sqrt(4 + 1e-5)])
  np.testing.assert_allclose(out[1, 0, 0], scale, rtol=1e-4)
  np.testing.assert_allclose(out[0, 0, 0], -scale, rtol=1e-4)
  stats = updated['batch_stats']
  # Momentum: .9 of the old (0 and 1), .1 of the new.
  np.testing.assert_allclose(stats['mean'], [0.0001, 1.2], rtol=1e-5)
  np.testing.assert_allclose(stats['var'], [0.9 + 1e-7, 1.3], rtol=1e-5)


def test_norm_in_evaluation_uses_running_statistics():
  images = normal(4, 2, 2, 2)
  variables = {
    'params': {'scale': np.array([2.0, 3.0]), 'bias': np.array([0.5, -1.0])},
    'batch_stats': {'mean': np.array([1.0, 0.0]), 'var': np.array([4.0, 1.0])},
  }
  # The mapped axis does not exist here, and is not asked for.
  norm = layers.norm(train=False, axis_name='absent')
  out, updated = jax.jit(
    lambda x: norm.apply(variables, x, mutable=['batch_stats'])
  )(images)
  expected = (images - [1, 0]) / np.sqrt([4 + 1e-5, 1 + 1e-5])
  np.testing.assert_allclose(out, expected * [2, 3] + [0.5, -1], atol=1e-5)
  assert_close(updated['batch_stats'], variables['batch_stats'], tolerance=0)


def test_norm_shares_statistics_over_the_mapped_axis():
  images = normal(2, 3, 2, 2, 4)
  images[1] *= 5

  def apply(axis_name, x):
    return layers.norm(train=True, axis_name=axis_name).apply(
      norm_variables(4), x, mutable=['batch_stats']
    )

  @jax.jit
  def all_three(images):
    return (
      jax.vmap(lambda x: apply('batch', x), axis_name='batch')(images),
      apply(None, images.reshape(6, 2, 2, 4)),
      apply(None, images[0])[0],
    )

  (out, updated), (expected, expected_stats), alone = all_three(images)
  assert_close(out.reshape(6, 2, 2, 4), expected)
  assert_close(jax.tree.map(lambda s: s[0], updated), expected_stats)
  assert_close(jax.tree.map(lambda s: s[1], updated), expected_stats)
  assert np.abs(alone - out[0]).max() > 0.1


def test_classifier_averages_positions_and_answers_in_float32():
  features = normal(2, 3, 5, 4)
  classifier = layers.Classifier(7)
  variables = jax.jit(classifier.init)(jax.random.key(1), features)
  dense = jax.tree.map(np.asarray, variables['params']['dense'])
  expected = features.mean(axis=(1, 2)) @ dense['kernel']
  apply = jax.jit(lambda x: classifier.apply(variables, x))
  np.testing.assert_allclose(apply(features), expected, atol=1e-5)
  low = apply(features.astype(jnp.bfloat16))
  assert low.dtype == jnp.float32
  np.testing.assert_allclose(low, expected, atol=0.02)
  # PyTorch's uniform initialisation over the fan in, 4.
  assert 0.3 < np.abs(dense['kernel']).max() <= 0.5
  np.testing.assert_array_equal(dense['bias'], np.zeros(7))
