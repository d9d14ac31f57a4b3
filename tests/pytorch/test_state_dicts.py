import errno
import os

import numpy as np
import pytest

from dhat_jax.models import aggregator
from dhat_jax.models.dual_head import DualHeadNet
from dhat_jax.models.outputs import OUTPUTS, Output
from dhat_jax.models.resnet import ResNet18
from dhat_jax.models.wide_resnet import DeepMindWideResNet, WideResNet
from dhat_jax.pytorch import names, state_dicts
from tests.helpers.state_dicts import (
  WRN,
  counted_variables,
  make,
  state_dict_of,
  variables_of,
)
from tests.helpers.tiny import TinyBackbone, flat


def errors_of(state_dict, model):
  with pytest.raises(ValueError, match='do not fit the network') as raised:
    state_dicts.from_torch(state_dict, model)
  return str(raised.value)


@pytest.mark.parametrize(
  'model',
  [
    make(WideResNet(16, 2), num_classes=10),
    make(WideResNet(16, 2), attach='block2', aggregator='classwise'),
    make(WideResNet(34, 1), heads=2, num_classes=100),
    make(aggregator='mean'),
    make(DeepMindWideResNet(16, 2), attach='block2'),
    make(WRN, heads=1),
    make(ResNet18()),
    make(ResNet18(preact=True), attach='block3', aggregator='classwise'),
    make(ResNet18(preact=True), heads=1),
  ],
  ids=lambda model: f'{model.backbone}-{len(model.outputs)}-{model.aggregator}',
)
def test_round_trip_keeps_every_array(model):
  expected = counted_variables(model)
  state_dict = state_dicts.to_torch(expected, model)
  expected = flat(expected)
  assert all(type(value) is np.ndarray for value in state_dict.values())
  restored = flat(state_dicts.from_torch(state_dict, model))
  assert restored.keys() == expected.keys()
  for path, array in expected.items():
    np.testing.assert_array_equal(restored[path], array, err_msg=path)
  # And every array that is not a counter came from one of them.
  counters = [key for key in state_dict if key.endswith('_tracked')]
  assert len(state_dict) == len(expected) + len(counters)
  assert all(state_dict[key].dtype == np.int64 for key in counters)
  assert all(state_dict[key].shape == () for key in counters)


def test_wide_resnet_has_the_published_keys():
  keys = state_dict_of(make(WideResNet(10, 2), heads=1)).keys()
  norm = ('weight', 'bias', 'running_mean', 'running_var')
  norm += ('num_batches_tracked',)
  expected = {'conv1.weight', 'fc.weight', 'fc.bias'}
  expected |= {f'bn1.{name}' for name in norm}
  for block in (1, 2, 3):
    unit = f'block{block}.layer.0.'
    expected |= {
      unit + f'{conv}.weight' for conv in ('conv1', 'conv2', 'convShortcut')
    }
    expected |= {
      unit + f'{bn}.{name}' for bn in ('bn1', 'bn2') for name in norm
    }
  assert keys == expected


def test_deepmind_has_the_published_keys():
  keys = state_dict_of(make(DeepMindWideResNet(16, 2), heads=1)).keys()
  norm = ('weight', 'bias', 'running_mean', 'running_var')
  norm += ('num_batches_tracked',)
  expected = {'init_conv.weight', 'logits.weight', 'logits.bias'}
  expected |= {f'batchnorm.{name}' for name in norm}
  for group in (0, 1, 2):
    expected.add(f'layer.{group}.block.0.shortcut.weight')
    for block in (0, 1):
      prefix = f'layer.{group}.block.{block}.'
      expected |= {f'{prefix}conv_{i}.weight' for i in (0, 1)}
      expected |= {
        f'{prefix}batchnorm_{i}.{name}' for i in (0, 1) for name in norm
      }
  assert keys == expected
  dual = state_dict_of(make(DeepMindWideResNet(10, 1)))
  assert {key.split('.block')[0] for key in dual if 'WRN2.l' in key} == {
    'WRN2.layer.1',
    'WRN2.layer.2',
    'WRN2.logits.weight',
    'WRN2.logits.bias',
  }


def test_activation_has_no_keys():
  state_dict = state_dict_of(make(heads=1))
  silu = make(WideResNet(10, 1, 'silu'), heads=1)
  assert state_dict.keys() == state_dict_of(silu).keys()
  state_dicts.from_torch(state_dict, silu)


def test_wrappers_of_robustbench_networks_are_left_out():
  """DataParallel around a Sequential, and the constants in an older file."""
  mean, std = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
  model = make(DeepMindWideResNet(10, 1), heads=1, mean=mean, std=std)
  state_dict = state_dict_of(model)
  wrapped = {f'module.0.{key}': value for key, value in state_dict.items()}
  for name, numbers in (('mean', mean), ('std', std)):
    wrapped[f'module.0.{name}'] = np.float32(numbers).reshape(3, 1, 1)
  expected = flat(state_dicts.from_torch(state_dict, model))
  for path, array in flat(state_dicts.from_torch(wrapped, model)).items():
    np.testing.assert_array_equal(array, expected[path], err_msg=path)
  unnormalised = make(DeepMindWideResNet(10, 1), heads=1)
  message = errors_of(wrapped, unnormalised)
  assert "--config.model.mean='(0.4914, 0.4822, 0.4465)'" in message
  assert "--config.model.std='(0.2471, 0.2435, 0.2616)'" in message


@pytest.mark.parametrize('heads', [1, 3])
def test_padding_decides_whose_weights_fit(heads):
  """WideResNets with PyTorch's and with TensorFlow's padding: both ways."""
  torch_like, deepmind = (
    make(heads=heads),
    make(DeepMindWideResNet(10, 1), heads=heads),
  )
  message = errors_of(state_dict_of(deepmind), torch_like)
  prefix = '' if heads == 1 else 'WRN1.'
  assert f'  missing: {prefix}block1.layer.0.bn1.bias, expected' in message
  assert (
    'The keys are of DeepMindWideResNet (config.model.backbone: '
    'dm_wrn<depth>_<widen_factor>), the model has WideResNet '
    '(wrn<depth>_<widen_factor>)'
  ) in message
  message = errors_of(state_dict_of(torch_like), deepmind)
  assert f'  missing: {prefix}batchnorm.bias, expected (64,)' in message
  assert 'The keys are of WideResNet' in message
  message = errors_of(state_dict_of(make(ResNet18(), heads=heads)), deepmind)
  assert 'The keys are of ResNet18' in message


def test_dual_head_has_the_published_prefixes():
  state_dict = state_dict_of(make(num_classes=10))
  assert {key.split('.')[0] for key in state_dict} == {'WRN1', 'WRN2', 'cnn'}
  second = {k.split('.')[1] for k in state_dict if k.startswith('WRN2.')}
  assert second == {'block2', 'block3', 'bn1', 'fc'}
  assert state_dict['WRN1.conv1.weight'].shape == (16, 3, 3, 3)
  assert state_dict['WRN2.fc.weight'].shape == (10, 64)
  assert state_dict['cnn.conv1.weight'].shape == (8, 2, 1)
  assert state_dict['cnn.conv2.weight'].shape == (16, 2, 1)
  assert state_dict['cnn.fc.weight'].shape == (10, 2880)
  assert state_dict['cnn.bn1.running_var'].shape == (8,)
  assert state_dict['cnn.bn2.running_var'].shape == (16,)


@pytest.mark.parametrize(
  ('preact', 'has', 'has_not'),
  [
    (False, {'bn1.weight', 'layer2.0.shortcut.1.bias'}, {'bn.weight'}),
    (True, {'bn.running_var'}, {'bn1.weight', 'layer2.0.shortcut.1.bias'}),
  ],
)
def test_resnets_have_the_usual_keys(preact, has, has_not):
  model = make(ResNet18(preact), heads=1)
  keys = state_dicts.to_torch(counted_variables(model), model).keys()
  both = {'conv1.weight', 'layer1.1.bn2.running_mean', 'linear.bias'}
  both |= {'layer2.0.shortcut.0.weight', 'layer4.1.conv2.weight'}
  assert both | has <= keys
  assert not has_not & keys
  assert 'layer1.0.shortcut.0.weight' not in keys


def test_layouts_are_those_of_pytorch():
  model = make(num_classes=10)
  variables, state_dict = flat(variables_of(model)), state_dict_of(model)
  kernel = variables['params/trunk/conv/kernel']  # [h, w, in, out]
  assert state_dict['WRN1.conv1.weight'][5, 2, 0, 1] == kernel[0, 1, 2, 5]
  dense = variables['params/second_head/classifier/dense/kernel']
  assert state_dict['WRN2.fc.weight'][3, 7] == dense[7, 3]
  conv = variables['params/aggregator/features/conv/kernel']
  assert state_dict['cnn.conv1.weight'][6, 1, 0] == conv[1, 6]


def test_prefix_of_data_parallel_and_missing_counters_are_accepted():
  model = make()
  state_dict = state_dict_of(model)
  wrapped = {
    f'module.{key}': value
    for key, value in state_dict.items()
    if not key.endswith('num_batches_tracked')
  }
  first = flat(state_dicts.from_torch(state_dict, model))
  second = flat(state_dicts.from_torch(wrapped, model))
  for path, array in first.items():
    np.testing.assert_array_equal(second[path], array)


def test_all_that_does_not_fit_is_in_one_error():
  state_dict = state_dict_of(make())
  del state_dict['WRN2.fc.bias']
  del state_dict['cnn.bn2.running_var']
  state_dict['WRN1.extra.weight'] = np.zeros((2, 3))
  state_dict['WRN1.extra.num_batches_tracked'] = np.zeros(())
  state_dict['WRN1.fc.weight'] = state_dict['WRN1.fc.weight'].T
  message = errors_of(state_dict, make())
  assert message.splitlines() == [
    '5 arrays do not fit the network:',
    '  missing: WRN2.fc.bias, expected (4,)',
    '  missing: cnn.bn2.running_var, expected (16,)',
    '  surplus: WRN1.extra.num_batches_tracked, got ()',
    '  surplus: WRN1.extra.weight, got (2, 3)',
    '  misshapen: WRN1.fc.weight, got (64, 4), expected (4, 64)',
  ]


def test_trunk_under_the_second_head_must_equal_the_first():
  model = make()
  state_dict = state_dict_of(model)
  copies = {
    key.replace('WRN1.', 'WRN2.'): value.copy()
    for key, value in state_dict.items()
    if key.startswith(('WRN1.conv1.', 'WRN1.block1.'))
  }
  same = flat(state_dicts.from_torch({**state_dict, **copies}, model))
  for path, array in flat(variables_of(model)).items():
    np.testing.assert_array_equal(same[path], array)
  copies['WRN2.conv1.weight'] += 1
  copies['WRN2.block1.layer.0.bn1.num_batches_tracked'] += 1
  message = errors_of({**state_dict, **copies}, model)
  assert message.startswith('1 arrays')
  assert 'surplus: WRN2.conv1.weight, which is not equal' in message


def test_block_that_the_published_network_never_runs_is_left_out():
  model = make(heads=1)
  state_dict = state_dict_of(model)
  unused = {
    f'sub_{key}': value + 1
    for key, value in state_dict.items()
    if key.startswith('block1.')
  }
  state_dicts.from_torch({**state_dict, **unused}, model)
  unused['sub_block1.layer.0.conv1.weight'] = np.zeros((16, 16, 1, 1))
  unused['sub_block1.layer.9.conv1.weight'] = np.zeros(3)
  message = errors_of({**state_dict, **unused}, model)
  assert message.startswith('2 arrays')
  assert 'surplus: sub_block1.layer.9.conv1.weight' in message
  assert 'surplus: sub_block1.layer.0.conv1.weight' in message


def test_network_with_other_heads_is_explained():
  single, dual = state_dict_of(make(heads=1)), state_dict_of(make())
  assert 'is of a network with one head' in errors_of(single, make())
  assert "is of DH-AT's network with two" in errors_of(dual, make(heads=1))


def test_preact_resnet_without_its_last_norm_is_explained():
  model = make(ResNet18(preact=True), heads=1)
  state_dict = {
    key: value
    for key, value in state_dicts.to_torch(
      counted_variables(model), model
    ).items()
    if not key.startswith('bn.')
  }
  message = errors_of(state_dict, model)
  assert message.startswith('4 arrays')
  assert 'missing: bn.running_var, expected (512,)' in message
  assert 'without them' in message


def test_variables_of_another_network_are_refused():
  variables = variables_of(make(heads=2))
  variables['params']['trunk']['extra'] = np.zeros(3)
  with pytest.raises(ValueError, match='do not fit') as raised:
    state_dicts.to_torch(variables, make())
  message = str(raised.value)
  assert 'surplus: params/trunk/extra, got (3,)' in message
  assert 'missing: params/aggregator/conv/kernel, expected (2, 16)' in message


def test_backbone_without_names_is_refused():
  model = make(TinyBackbone())
  with pytest.raises(ValueError, match='choices are WideResNet, Deep'):
    state_dicts.to_torch(variables_of(model), model)


@aggregator.register('unnamed')
class Unnamed(aggregator.Mean):
  """An aggregator that PyTorch's side does not know."""


def test_aggregator_without_names_is_refused():
  model = make(aggregator='unnamed')
  message = "aggregator: got 'unnamed', which has no PyTorch names; choices are"
  with pytest.raises(ValueError, match=message):
    state_dicts.to_torch(variables_of(model), model)
  plain = make(aggregator='unnamed', heads=2)
  assert len(state_dicts.to_torch(variables_of(plain), plain)) > 50


def test_prefixes_follow_the_output_table(monkeypatch):
  row = Output(('trunk', 'third_head'), 'third head', stage='third_head')
  monkeypatch.setitem(OUTPUTS, 'third', row)
  model = DualHeadNet(WRN, 4, outputs=('main', 'third'))
  prefixes = {'trunk': 'WRN1.', 'main_head': 'WRN1.', 'third_head': 'WRN3.'}
  assert names.prefixes(model) == prefixes
  expected = counted_variables(model)
  state_dict = state_dicts.to_torch(expected, model)
  assert {key.split('.')[0] for key in state_dict} == {'WRN1', 'WRN3'}
  # A copy of the trunk under any other head is accepted.
  state_dict['WRN3.conv1.weight'] = state_dict['WRN1.conv1.weight']
  restored = flat(state_dicts.from_torch(state_dict, model))
  for path, array in flat(expected).items():
    np.testing.assert_array_equal(restored[path], array, err_msg=path)
  alone = DualHeadNet(WRN, 4, outputs=('third',))
  assert names.prefixes(alone) == {'trunk': '', 'third_head': ''}


@pytest.mark.parametrize('suffix', ['npz', 'pt'])
def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch, suffix):
  if suffix == 'pt':
    pytest.importorskip('torch')
  path = tmp_path / f'model.{suffix}'
  arrays = {'weight': np.arange(6.0, dtype=np.float32).reshape(2, 3)}
  state_dicts.write_state_dict(str(path), arrays)
  before = path.read_bytes()
  (weight,) = state_dicts.read_state_dict(str(path)).values()
  np.testing.assert_array_equal(np.asarray(weight), arrays['weight'])

  def full(_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(OSError, match='no space left'):
    state_dicts.write_state_dict(str(path), {'weight': arrays['weight'] + 1})
  assert path.read_bytes() == before
  assert os.listdir(tmp_path) == [path.name]


def test_channels_come_from_the_state_dict_unless_given():
  state_dict = state_dict_of(make(heads=1), channels=1)
  variables = state_dicts.from_torch(state_dict, make(heads=1))
  assert variables['params']['trunk']['conv']['kernel'].shape == (3, 3, 1, 16)
  with pytest.raises(
    ValueError, match=r'got \(16, 1, 3, 3\), expected \(16, 3'
  ):
    state_dicts.from_torch(state_dict, make(heads=1), image_channels=3)
