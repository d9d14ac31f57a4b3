import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.models import backbones, layers
from dhat_jax.models.dual_head import DualHeadNet, Trunk
from dhat_jax.models.resnet import ResNet18
from dhat_jax.models.wide_resnet import DeepMindWideResNet, WideResNet
from tests.helpers.tiny import flat, normal, random_variables, shapes_of

WRN34, WRN28, WRN16 = WideResNet(34, 10), WideResNet(28, 10), WideResNet(16, 4)
RESNET, PREACT = ResNet18(), ResNet18(preact=True)
TINY = WideResNet(10, 1)
DEEPMIND = DeepMindWideResNet(10, 1)
IMAGE = np.zeros((1, 32, 32, 3), np.float32)


@functools.cache
def counts(backbone, num_classes=10, **kwargs):
  """Returns {part: number of parameters}; nothing is compiled."""
  net = DualHeadNet(backbone=backbone, num_classes=num_classes, **kwargs)
  return {
    part: sum(leaf.size for leaf in jax.tree.leaves(subtree))
    for part, subtree in shapes_of(net, IMAGE)['params'].items()
  }


# PreActResNet-18 by hand (weights of a batch norm: 2 per channel).
# Trunk: conv 3*64*9 = 1,728; two units of 2*128 + 2*36,864 = 73,984 each:
#   149,696.
# Block 2: 128 + 73,728 + 256 + 147,456 + shortcut 8,192 = 229,760, then
#   2*256 + 2*147,456 = 295,424: 525,184.
# Block 3: 256 + 294,912 + 512 + 589,824 + 32,768 = 918,272, then
#   2*512 + 2*589,824 = 1,180,672: 2,098,944.
# Block 4: 512 + 1,179,648 + 1,024 + 2,359,296 + 131,072 = 3,671,552, then
#   2*1,024 + 2*2,359,296 = 4,720,640: 8,392,192.
# Head: these, batch norm 1,024, linear 5,130: 11,022,474.
# Plain 149,696 + 11,022,474; DH-AT one more head and the aggregator's 28,930.
@pytest.mark.parametrize(
  ('backbone', 'plain', 'dual'),
  [
    (WRN34, 46_160_474, 90_247_334),
    (WRN28, 36_479_194, 71_346_214),
    (DeepMindWideResNet(28, 10), 36_479_194, 71_346_214),
    (WRN16, 2_748_890, 5_405_030),
    (RESNET, 11_173_962, 22_227_030),
    (PREACT, 11_172_170, 22_223_574),
  ],
)
def test_parameter_counts(backbone, plain, dual):
  assert sum(counts(backbone, outputs=('main',)).values()) == plain
  assert sum(counts(backbone).values()) == dual


def test_parameter_counts_by_part():
  assert counts(WRN34) == {
    'trunk': 2_102_544,
    'main_head': 44_057_930,
    'second_head': 44_057_930,
    'aggregator': 28_930,
  }
  assert counts(PREACT, outputs=('main',)) == {
    'trunk': 149_696,
    'main_head': 11_022_474,
  }


@pytest.mark.parametrize(
  ('backbone', 'channels'), [(WRN34, 640), (WRN16, 256), (RESNET, 512)]
)
def test_parameter_counts_with_100_classes(backbone, channels):
  ten = counts(backbone)
  hundred = counts(backbone, 100, aggregator='classwise')
  assert hundred['trunk'] == ten['trunk']
  for head in ('main_head', 'second_head'):
    assert hundred[head] - ten[head] == 90 * (channels + 1)
  assert hundred['aggregator'] == 80_140


@pytest.mark.parametrize('backbone', [WRN16, PREACT])
def test_attach_point_moves_parameters_only(backbone):
  first = counts(backbone, outputs=('main',))
  second = counts(backbone, outputs=('main',), attach='block2')
  assert sum(first.values()) == sum(second.values())
  assert second['trunk'] > 2 * first['trunk']


@pytest.mark.parametrize('shape', [(8, 8, 1), (28, 28, 1), (64, 64, 3)])
@pytest.mark.parametrize('backbone', [TINY, DEEPMIND, RESNET, PREACT])
def test_other_image_sizes(backbone, shape):
  net = DualHeadNet(backbone=backbone, num_classes=7, outputs=('main',))
  images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
  variables = shapes_of(net, images)
  kernel = variables['params']['trunk']['conv']['kernel']
  assert kernel.shape[:3] == (3, 3, shape[2])
  outputs = jax.eval_shape(net.apply, variables, images)
  assert outputs.main.shape == (2, 7)
  trunk = Trunk(backbone, 'block2')
  trunk_variables = shapes_of(trunk, images, train=False)
  features = jax.eval_shape(
    functools.partial(trunk.apply, train=False), trunk_variables, images
  )
  assert features.shape[1:3] == (shape[0] // 2, shape[1] // 2)


@pytest.mark.parametrize(
  ('name', 'backbone'),
  [
    ('wrn34_10', WRN34),
    ('wrn10_1.5', WideResNet(10, 1.5)),
    ('dm_wrn10_1', DEEPMIND),
    ('resnet18', RESNET),
    ('preact_resnet18', PREACT),
  ],
)
def test_names(name, backbone):
  assert backbones.BACKBONES.make(name) == backbone


@pytest.mark.parametrize(
  ('name', 'options', 'backbone'),
  [
    ('wrn10_1', {'activation': 'silu'}, WideResNet(10, 1, 'silu')),
    (
      'dm_wrn10_1',
      {'activation': 'relu', 'momentum': 0.9},
      DeepMindWideResNet(10, 1, 'relu', 0.9),
    ),
    ('resnet18', {'activation': 'silu'}, ResNet18(activation='silu')),
    ('preact_resnet18', {'activation': 'silu'}, ResNet18(True, 'silu')),
  ],
)
def test_options(name, options, backbone):
  assert backbones.BACKBONES.make(name, options) == backbone
  assert backbone != backbones.BACKBONES.make(name)
  with pytest.raises(
    ValueError, match=r"activation: got 'tanh', choices are \('relu', 'silu'\)"
  ):
    backbones.BACKBONES.make(name, {'activation': 'tanh'})


@pytest.mark.parametrize('momentum', [1, -0.1, True])
def test_wrong_momentum(momentum):
  with pytest.raises(ValueError, match='momentum: got'):
    backbones.BACKBONES.make('dm_wrn10_1', {'momentum': momentum})


def test_units_of_deepmind():
  options = {'features': 4, 'stride': 2, 'dtype': None, 'axis_name': None}
  unit, plain = DEEPMIND.unit(**options), TINY.unit(**options)
  assert (unit.activation, unit.momentum, unit.same_padding) == (
    'silu',
    0.99,
    True,
  )
  assert (plain.activation, plain.momentum, plain.same_padding) == (
    'relu',
    0.9,
    False,
  )


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('vgg16', r"backbone: got 'vgg16', choices are \('wrn<depth>_<widen_"),
    ('resnet8', "did you mean 'resnet18'"),
    ('wrn35_10', r'backbone: WideResNet depth: got 35, expected 6n \+ 4'),
    ('wrn16_0', 'got 0, expected >= 1'),
    ('wrn16.5_1', "got 'wrn16.5_1', choices are"),
  ],
)
def test_wrong_names(name, message):
  with pytest.raises(ValueError, match=message):
    backbones.BACKBONES.make(name)


@backbones.register('convnet')
@dataclasses.dataclass(frozen=True)
class ConvNet:
  """A user's own: a convolution, batch norm and ReLU for each block."""

  widths: tuple[int, ...] = (4, 6, 8)

  block_names = ('block1', 'block2', 'block3')
  attach_points = ('block1', 'block2')

  def stem(self, images, **options):
    return images - 0.5

  def blocks(self, features, names, *, train, dtype, axis_name):
    for name in names:
      index = self.block_names.index(name)
      features = layers.conv(
        self.widths[index], 3, 2 if index else 1, dtype=dtype, name=name
      )(features)
      features = layers.norm_relu(
        features, train, dtype=dtype, axis_name=axis_name, name=f'{name}_norm'
      )
    return features

  def tail(self, features, **options):
    return features


def test_backbone_of_a_user():
  backbone = backbones.BACKBONES.make('convnet', {'widths': (3, 5, 7)})
  net = DualHeadNet(backbone, 4, attach='block2', dtype=jnp.bfloat16)
  images = normal(2, 8, 8, 3)
  variables = random_variables(net, images)
  kernels = {
    name: leaf.shape[-1]
    for name, leaf in flat(variables['params']).items()
    if leaf.ndim == 4
  }
  assert kernels == {
    'trunk/block1/kernel': 3,
    'trunk/block2/kernel': 5,
    'main_head/block3/kernel': 7,
    'second_head/block3/kernel': 7,
  }
  outputs, updated = net.apply(
    variables, images, training_parts=net.parts, mutable=['batch_stats']
  )
  assert outputs.aggregated.shape == (2, 4)
  before, after = flat(variables['batch_stats']), flat(updated['batch_stats'])
  assert all(np.all(before[name] != after[name]) for name in before)


class Detached(ConvNet):
  """Its attach point is no block."""

  attach_points = ('block9',)


@pytest.mark.parametrize(
  ('backbone', 'message'),
  [
    (object(), r"which lacks \['block_names', 'attach_points', 'stem'"),
    (Detached(), r"got attach points \['block9'\], choices are \('block1'"),
    (
      ConvNet(widths=[1, 2, 3]),
      r'expected a hashable object, as a frozen dataclass is \(unhash',
    ),
  ],
)
def test_objects_that_are_no_backbone(backbone, message):
  with pytest.raises(ValueError, match=message):
    DualHeadNet(backbone, 4)


@pytest.mark.parametrize(
  ('depth', 'width', 'message'),
  [
    (33, 10, r'depth: got 33, expected 6n \+ 4'),
    (4, 10, r'depth: got 4, expected 6n \+ 4'),
    (16, 0, 'widen factor: got 0, expected >= 1'),
  ],
)
def test_wrong_depth_or_width(depth, width, message):
  with pytest.raises(ValueError, match=message):
    WideResNet(depth, width)


@pytest.mark.parametrize('backbone', [WRN16, RESNET, PREACT])
def test_every_convolution_starts_he_normal(backbone, monkeypatch):
  drawn = []

  def record(rng, shape, dtype):
    drawn.append(shape)
    return layers_init(rng, shape, dtype)

  layers_init = layers.he_normal_fan_out  # measured in test_layers.py
  monkeypatch.setattr(layers, 'he_normal_fan_out', record)
  net = DualHeadNet(backbone=backbone, num_classes=10, outputs=('main',))
  leaves = jax.tree.leaves(shapes_of(net, IMAGE)['params'])
  kernels = [leaf.shape for leaf in leaves if len(leaf.shape) == 4]
  assert sorted(kernels) == sorted(drawn)
  assert len(kernels) > 12


class TorchNet:
  """The plain networks in torch.nn.functional, from the papers' figures."""

  def __init__(self, variables):
    torch = pytest.importorskip('torch')
    self.torch, self.ops = torch, torch.nn.functional
    self.leaves = {
      name.replace('blocks/', ''): torch.tensor(leaf)
      for kind in ('params', 'batch_stats')
      for name, leaf in flat(variables[kind]).items()
    }

  def conv(self, x, name, stride=1):
    kernel = self.leaves[f'{name}/kernel'].permute(3, 2, 0, 1)
    return self.ops.conv2d(
      x, kernel, stride=stride, padding=kernel.shape[2] // 2
    )

  def norm(self, x, name):
    mean, var, scale, bias = (
      self.leaves[f'{name}/{leaf}'] for leaf in ('mean', 'var', 'scale', 'bias')
    )
    return self.ops.batch_norm(x, mean, var, scale, bias, eps=1e-5)

  def preact_unit(self, x, name, stride):
    out = self.norm(x, f'{name}/norm1').relu()
    if f'{name}/shortcut/kernel' in self.leaves:
      x = self.conv(out, f'{name}/shortcut', stride)
    out = self.conv(out, f'{name}/conv1', stride)
    out = self.norm(out, f'{name}/norm2').relu()
    return x + self.conv(out, f'{name}/conv2')

  def postact_unit(self, x, name, stride):
    out = self.norm(self.conv(x, f'{name}/conv1', stride), f'{name}/norm1')
    out = self.norm(self.conv(out.relu(), f'{name}/conv2'), f'{name}/norm2')
    if f'{name}/shortcut/kernel' in self.leaves:
      x = self.conv(x, f'{name}/shortcut', stride)
      x = self.norm(x, f'{name}/shortcut_norm')
    return (x + out).relu()

  def __call__(self, images, unit, blocks, units, stem_norm):
    x = self.torch.tensor(images).permute(0, 3, 1, 2)
    x = self.conv(x, 'trunk/conv')
    if stem_norm:
      x = self.norm(x, 'trunk/norm').relu()
    for block in range(1, blocks + 1):
      part = 'trunk' if block == 1 else 'main_head'
      for index in range(1, units + 1):
        stride = 2 if block > 1 and index == 1 else 1
        x = unit(self, x, f'{part}/block{block}_unit{index}', stride)
    if not stem_norm:
      x = self.norm(x, 'main_head/norm').relu()
    dense = 'main_head/classifier/dense'
    return (
      x.mean(dim=(2, 3)) @ self.leaves[f'{dense}/kernel']
      + self.leaves[f'{dense}/bias']
    ).numpy()


@pytest.mark.oracle
@pytest.mark.parametrize(
  ('backbone', 'unit', 'blocks', 'units'),
  [
    (WideResNet(16, 1), TorchNet.preact_unit, 3, 2),
    (RESNET, TorchNet.postact_unit, 4, 2),
    (PREACT, TorchNet.preact_unit, 4, 2),
  ],
)
def test_plain_networks_equal_pytorch(backbone, unit, blocks, units):
  images = normal(2, 9, 8, 3)
  net = DualHeadNet(backbone=backbone, num_classes=5, outputs=('main',))
  variables = random_variables(net, images)
  logits = jax.jit(net.apply)(variables, images).main
  expected = TorchNet(variables)(
    images, unit, blocks, units, stem_norm=backbone is RESNET
  )
  size = np.abs(expected).max()
  np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4 * size)
