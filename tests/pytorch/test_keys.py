"""State dicts that wrappers wrote, and weights that no network can use."""

import logging

import jax
import ml_dtypes
import numpy as np
import pytest

from dhat_jax.pytorch import state_dicts
from tests.helpers.state_dicts import make, state_dict_of, variables_of
from tests.helpers.tiny import flat

MODEL = make(heads=1)
STATE_DICT = state_dict_of(MODEL)


def assert_reads(state_dict, model=MODEL, expected=STATE_DICT):
  got = flat(state_dicts.from_torch(state_dict, model))
  for path, array in flat(state_dicts.from_torch(expected, model)).items():
    np.testing.assert_array_equal(got[path], array, err_msg=path)


def error_of(state_dict, model=MODEL):
  with pytest.raises(ValueError, match=r'.') as raised:
    state_dicts.from_torch(state_dict, model)
  return str(raised.value)


def prefixed(prefix, state_dict=STATE_DICT):
  return {prefix + key: value for key, value in state_dict.items()}


@pytest.mark.parametrize(
  'prefix',
  [
    'module.',
    '_orig_mod.',
    'model.',
    'backbone.',
    'module._orig_mod.',
    '_orig_mod.module.',
    'model.module.',
    'module.model.net.',
    'student.0.',
    '_fsdp_wrapped_module.model.',
    '1.',
  ],
)
def test_prefix_that_all_keys_share(prefix, caplog):
  with caplog.at_level('INFO', 'dhat_jax'):
    assert_reads(prefixed(prefix))
  said = ' '.join(caplog.messages)
  assert 'left out of the keys: ' in said
  for name in prefix.strip('.').split('.'):
    assert f'{name}.' in said


def test_bare_keys_are_read_without_a_word(caplog):
  with caplog.at_level('INFO', 'dhat_jax'):
    assert_reads(STATE_DICT)
  assert not caplog.messages


def test_wrappers_of_parts():
  """Of a network of several, each compiled or in parallel."""
  model, state_dict = make(), state_dict_of(make())
  wrapped = {}
  for key, value in state_dict.items():
    part, _, rest = key.partition('.')
    wrapped[
      f'net.{part}.{"_orig_mod" if part == "cnn" else "module"}.{rest}'
    ] = value
  assert_reads(wrapped, model, state_dict)
  assert_reads(prefixed('net.', state_dict), model, state_dict)


def test_averaged_model(caplog):
  """Of `torch.optim.swa_utils.AveragedModel`."""
  averaged = {**prefixed('module.'), 'n_averaged': np.array(3)}
  with caplog.at_level('INFO', 'dhat_jax'):
    assert_reads(averaged)
  assert any('n_averaged' in message for message in caplog.messages)


def test_prefix_of_some_keys_stays_and_is_named():
  message = error_of({**prefixed('teacher.'), **prefixed('student.')})
  assert 'they begin with teacher (' in message
  message = error_of(
    {**STATE_DICT, 'model.extra.weight': np.zeros(2, np.float32)}
  )
  assert message.splitlines() == [
    '1 arrays do not fit the network:',
    '  surplus: model.extra.weight, got (2,)',
  ]


def test_prefix_and_another_number_of_heads():
  assert 'is of a network with one head' in error_of(prefixed('model.'), make())
  dual = prefixed('model.', state_dict_of(make()))
  assert "is of DH-AT's network with two" in error_of(dual)


def test_long_lists_are_cut(caplog):
  other = prefixed('other.', {key: np.zeros(3) for key in map(str, range(60))})
  logger = logging.getLogger('dhat_jax.pytorch.fitting')
  logger.addHandler(caplog.handler)  # whatever commands have set above it
  with caplog.at_level('DEBUG', logger.name):
    message = error_of(other)
  logger.removeHandler(caplog.handler)
  lines = message.splitlines()
  assert len(lines) < 25
  assert lines[0].endswith(' arrays do not fit the network:')
  assert '  ... and 52 more surplus' in lines
  assert [line for line in lines if line.endswith('more missing')]
  assert all(f'other.{i}' in caplog.text for i in range(60))


MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


@pytest.mark.parametrize(
  ('names', 'shape'),
  [
    (('mu', 'sigma'), (3, 1, 1)),
    (('mean', 'std'), (1, 3, 1, 1)),
    (('normalize.mean', 'normalize.std'), (3,)),
    (('0.mean', '0.std'), (3,)),
  ],
)
def test_normalisation_belongs_to_the_config(names, shape, caplog):
  numbers = {
    name: np.array(values, np.float32).reshape(shape)
    for name, values in zip(names, (MEAN, STD), strict=True)
  }
  state_dict = {**numbers, **prefixed('model.')}
  message = error_of(state_dict)
  assert message.startswith('2 arrays')
  assert (
    f"--config.model.mean='{MEAN}' --config.model.std='{STD}'"
    == message.split('holds: ')[1]
  )
  assert all(name in message for name in names)
  # With these the same file is read.
  assert_reads(state_dict, make(heads=1, mean=MEAN, std=STD))
  assert 'mean' in error_of(state_dict, make(heads=1, mean=STD, std=STD))


def test_normalisation_that_does_nothing():
  assert_reads({**STATE_DICT, 'mean': np.zeros(3), 'std': np.ones(1)})


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(value):
  state_dict = {key: array.copy() for key, array in STATE_DICT.items()}
  state_dict['fc.weight'][0, :2] = value
  state_dict['bn1.bias'][0] = value
  message = error_of(state_dict)
  assert message.startswith('2 arrays hold no weights that can be used: ')
  assert 'fc.weight (2 of 256 are NaN or infinite)' in message
  assert 'bn1.bias (1 of 64 are NaN or infinite)' in message
  assert '\n' not in message
  variables = jax.tree.map(np.array, variables_of(MODEL))
  variables['params']['trunk']['conv']['kernel'][0, 0, 0, 0] = value
  with pytest.raises(ValueError, match=r'conv1\.weight \(1 of 432 are NaN'):
    state_dicts.to_torch(variables, MODEL)


def test_what_float32_cannot_hold_is_not_finite():
  state_dict = {**STATE_DICT, 'fc.bias': np.full(4, 1e300)}
  assert 'fc.bias (4 of 4 are NaN' in error_of(state_dict)


def test_variance_below_zero_is_refused():
  variance = STATE_DICT['bn1.running_var'] - 1e3
  message = error_of({**STATE_DICT, 'bn1.running_var': variance})
  assert 'bn1.running_var (a variance below zero)' in message


def test_long_lists_of_bad_arrays_are_cut():
  bad = {
    key: np.full(array.shape, np.nan)
    for key, array in STATE_DICT.items()
    if not key.endswith('tracked')
  }
  message = error_of(bad)
  assert message.endswith(f' and {len(bad) - 8} more')


@pytest.mark.parametrize(
  'dtype', ['float16', 'float64', 'bfloat16', 'float8_e4m3fn', 'int8']
)
def test_dtypes(dtype):
  dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
  zeros = {key: np.zeros(a.shape, dtype) for key, a in STATE_DICT.items()}
  got = flat(state_dicts.from_torch(zeros, MODEL))
  assert all(array.dtype == np.float32 for array in got.values())


@pytest.mark.parametrize(
  ('value', 'message'),
  [
    (np.zeros(4, complex), 'fc.bias: got complex numbers, expected real ones'),
    (np.array(['x'] * 4), 'fc.bias: got <U1, expected numbers'),
    (np.array([None] * 4), 'fc.bias: got object, expected numbers'),
    (None, 'fc.bias: got object, expected numbers'),
  ],
)
def test_what_are_no_weights(value, message):
  assert error_of({**STATE_DICT, 'fc.bias': value}) == message


@pytest.mark.oracle
def test_kinds_of_tensors():
  torch = pytest.importorskip('torch')
  tensors = {key: torch.from_numpy(a) for key, a in STATE_DICT.items()}
  weight = tensors['fc.weight']
  for same in (
    weight.to_sparse(),
    weight.to_sparse_csr(),
    torch.nn.Parameter(weight),
    weight.double(),
    weight.T.contiguous().T,
  ):
    assert_reads({**tensors, 'fc.weight': same})
  rounded = {**STATE_DICT, 'fc.weight': weight.bfloat16().float().numpy()}
  assert_reads({**tensors, 'fc.weight': weight.bfloat16()}, expected=rounded)
  for bad, message in (
    (
      torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
      'fc.weight: got a quantised tensor, expected floating point',
    ),
    (weight.to('meta'), 'fc.weight: got a tensor on the device meta'),
    (weight.to(torch.complex64), 'fc.weight: got complex numbers'),
  ):
    assert error_of({**tensors, 'fc.weight': bad}).startswith(message)
