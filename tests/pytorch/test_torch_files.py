"""Files of PyTorch's, whole and broken; each broken one is one line."""

import argparse
import collections
import datetime
import os
import pathlib
import pickle
import tarfile
import zipfile

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from dhat_jax.pytorch import state_dicts, torch_files  # noqa: E402

pytestmark = pytest.mark.oracle


class Settings:
  """A class that a checkpoint may have been written with."""


def weights():
  return {'fc.weight': torch.ones(2, 3), 'fc.bias': torch.zeros(2)}


def save(value, **options):
  return lambda path: torch.save(value, path, **options)


def cut(make, share=0.5):
  def write(path):
    make(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])

  return write


def flip(path):
  """Damages one weight, which PyTorch does not see."""
  torch.save({'w': torch.ones(500)}, path)
  content = bytearray(path.read_bytes())
  content[content.index(np.ones(9, np.float32).tobytes()) + 2] ^= 64
  path.write_bytes(content)
  assert (torch.load(path)['w'] != 1).any()


def zip_of(**members):
  def write(path):
    with zipfile.ZipFile(path, 'w') as archive:
      for name, content in members.items():
        archive.writestr(name.replace('__', '/').replace('_', '.'), content)

  return write


def content(data):
  return lambda path: path.write_bytes(data)


def script(path):
  torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path))


def tar(path):
  with tarfile.open(path, 'w') as archive:
    archive.add(__file__)


NETWORK = torch.nn.Sequential(torch.nn.Linear(2, 2))
LFS = b'version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n'
ADVICE = 'torch.save(model.state_dict(), PATH)'
BROKEN = {
  'cut': (cut(save(weights())), 'is cut off or damaged; download'),
  'cut at the end': (cut(save(weights()), 0.99), 'is cut off or damaged'),
  'older format, cut': (
    cut(save(weights(), _use_new_zipfile_serialization=False)),
    'it again',
  ),
  'older format, cut at the end': (
    cut(save(weights(), _use_new_zipfile_serialization=False), 0.98),
    'it again',
  ),
  'flipped': (flip, "is damaged, the checksum of 'model/data/0' does not fit"),
  'git-lfs': (content(LFS), 'a git-lfs pointer; get the file itself with: git'),
  'empty': (content(b''), 'it is empty'),
  'zeros': (content(bytes(999)), 'it again'),
  'web page': (content(b'<!DOCTYPE html>\n<html>'), 'it is a web page'),
  'text': (content(b'wrong'), 'torch.save did not write it'),
  'pickle': (
    content(pickle.dumps({'a': [1]})),
    'torch.save did not write it',
  ),
  'zip': (zip_of(a_txt='hi'), "torch.save did not write, with ['a.txt']"),
  'zip of nothing': (zip_of(), 'torch.save did not write, with []'),
  'zip that begins as ours': (
    zip_of(x__data_pkl='hi'),
    "torch.save did not write, with ['x/data.pkl']",
  ),
  'zip with a broken description': (
    zip_of(x__data_pkl='hi', x__version='3'),
    'it again',
  ),
  'npz': (lambda path: np.savez(path.open('wb'), a=np.ones(2)), "['a.npy']"),
  'TorchScript': (script, 'it is a TorchScript archive; save the weights'),
  'tar': (tar, 'torch.save did not write it'),
  'folder': (os.mkdir, 'Is a directory'),
  'nothing': (lambda path: None, 'No such file'),
  'network': (save(NETWORK), 'torch.nn.modules.container.Sequential'),
  'network in an entry': (save({'model': NETWORK}), ADVICE),
  'network, older format': (
    save(NETWORK, _use_new_zipfile_serialization=False),
    'torch.nn.modules.container.Sequential',
  ),
  'text of NumPy': (save({'a': np.array(['x'])}), 'numpy.dtypes.StrDType'),
  'class of its own': (
    save({'net': weights(), 'settings': Settings()}),
    f'{__name__}.Settings, a pickled network or settings',
  ),
  'function': (save({'net': weights(), 'log': print}), 'builtins.print'),
  'number': (save(5), 'holds no state dict (no {name: tensor}), but a int'),
  'none': (save(None), 'but a NoneType'),
  'tuple': (save((weights(), 1)), 'but a tuple'),
  'empty dict': (save({}), 'but an empty dict'),
  'no weights': (save({'epoch': 3, 'lr': 0.1}), 'but a dict of epoch, lr;'),
  'two networks': (
    save({'generator': weights(), 'critic': weights()}),
    'holds several state dicts, generator, critic; choose one by --entry',
  ),
}


@pytest.mark.parametrize(('write', 'message'), BROKEN.values(), ids=BROKEN)
def test_broken_file_is_one_line(write, message, tmp_path):
  path = tmp_path / 'model.pt'
  write(path)
  with pytest.raises(ValueError, match=r'.') as error:
    state_dicts.read_state_dict(str(path))
  line = str(error.value)
  assert line.startswith(f'{path}: ')
  assert message in line
  assert '\n' not in line
  assert len(line) < 500
  assert 'weights_only' not in line
  assert 'allow_pickle' not in line


@pytest.mark.parametrize(
  ('write', 'message'),
  [
    (content(b''), 'is not a readable npz file (it is empty)'),
    (content(LFS), 'is not a readable npz file (it is a git-lfs pointer'),
    (content(b'PK\3\4' + bytes(9)), 'is not a readable npz file (BadZipFile'),
    (
      content(pickle.dumps([1])),
      'is not a readable npz file (ValueError: it ho',
    ),
    (save(weights()), 'holds no state dict'),
    (
      lambda path: np.save(path.open('wb'), np.ones(2)),
      'is not a readable npz',
    ),
    (
      lambda path: np.savez(path.open('wb'), a=np.array([{}])),
      'it holds pickled objects, which can run code and are not loaded',
    ),
    (lambda path: np.savez(path.open('wb')), 'holds no state dict'),
    (os.mkdir, 'is not a readable npz file (IsADirectoryError'),
    (lambda path: None, 'is not a readable npz file (FileNotFoundError'),
  ],
)
def test_broken_npz_is_one_line(write, message, tmp_path):
  path = tmp_path / 'model.npz'
  write(path)
  with pytest.raises(ValueError, match=r'.') as error:
    state_dicts.read_state_dict(str(path))
  assert str(error.value).startswith(f'{path}: {message}'[: len(str(path)) + 2])
  assert message in str(error.value)
  assert '\n' not in str(error.value)
  assert 'allow_pickle' not in str(error.value)


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('a.safetensors', 'make an npz file of it: np.savez('),
    ('a.onnx', "got suffix '.onnx', choices are ('.npz', '.pt',"),
    ('a', "got suffix '', choices are"),
  ],
)
def test_other_kinds_of_files(name, message):
  with pytest.raises(ValueError, match=name) as error:
    state_dicts.read_state_dict(name)
  assert message in str(error.value)


def test_file_without_checksums(tmp_path):
  path = str(tmp_path / 'model.pt')
  torch.serialization.set_crc32_options(False)
  try:
    torch.save(weights(), path)
  finally:
    torch.serialization.set_crc32_options(True)
  assert_same(state_dicts.read_state_dict(path), weights())


def assert_same(got, expected):
  assert got.keys() == expected.keys()
  for key, tensor in expected.items():
    assert torch.equal(torch.as_tensor(got[key]), tensor)


BESIDE = {
  'args': argparse.Namespace(lr=0.1, out=pathlib.Path('a/b'), cls=[1, None]),
  'best': np.float64(0.5),
  'step': np.int32(3),
  'history': np.arange(3.0),
  'objects': np.array([None, 'x'], object),
  'time': datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC),
  'took': datetime.timedelta(3),
  'windows': pathlib.PureWindowsPath('C:/x'),
  'logs': collections.defaultdict(list, a=[1.0]),
  'order': collections.OrderedDict(a=1),
  'some': {1, 2},
  'optimizer': {'state': {0: {'step': torch.ones(1)}}, 'param_groups': [{}]},
}


@pytest.mark.parametrize('new_format', [True, False])
def test_harmless_classes_beside_the_weights(new_format, tmp_path):
  path = str(tmp_path / 'model.pth.tar')
  torch.save(
    {'state_dict': weights(), **BESIDE},
    path,
    _use_new_zipfile_serialization=new_format,
  )
  assert_same(state_dicts.read_state_dict(path), weights())
  loaded = torch_files.load(path)
  assert loaded['args'].out == pathlib.PurePosixPath('a/b')
  assert loaded['best'] == 0.5
  assert loaded['time'] == BESIDE['time']
  assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_numpy_1_and_paths_of_another_system(tmp_path):
  path = tmp_path / 'model.pt'
  torch.save(
    {'net': weights(), 'a': np.float32(2), 'p': pathlib.Path('x')}, path
  )
  with zipfile.ZipFile(path) as archive:
    members = {name: archive.read(name) for name in archive.namelist()}
  renamed = {
    name: data.replace(b'numpy._core.', b'numpy.core.').replace(
      b'PosixPath', b'WindowsPath'
    )
    if name.endswith('data.pkl')
    else data
    for name, data in members.items()
  }
  assert renamed != members
  with zipfile.ZipFile(path, 'w') as archive:
    for name, data in renamed.items():
      archive.writestr(name, data)
  assert torch_files.load(str(path))['a'] == 2
  assert torch_files.load(str(path))['p'] == pathlib.PureWindowsPath('x')


def test_tensors_of_another_device(tmp_path):
  path = tmp_path / 'model.pt'
  torch.save(weights(), path)
  with zipfile.ZipFile(path) as archive:
    members = {name: archive.read(name) for name in archive.namelist()}
  with zipfile.ZipFile(path, 'w') as archive:
    for name, data in members.items():
      if name.endswith('data.pkl'):
        assert b'X\3\0\0\0cpu' in data
        data = data.replace(b'X\3\0\0\0cpu', b'X\6\0\0\0cuda:0')
      archive.writestr(name, data)
  assert_same(state_dicts.read_state_dict(str(path)), weights())


OTHER = {'fc.weight': torch.zeros(1)}


@pytest.mark.parametrize(
  ('value', 'taken', 'left'),
  [
    ({'state_dict': weights(), 'epoch': 3}, 'state_dict', None),
    ({'epoch': 1, 'model': weights()}, 'model', None),
    ({'net': weights(), 'acc': 0.5}, 'net', None),
    ({'model_state_dict': weights()}, 'model_state_dict', None),
    ({'ema': weights()}, 'ema', None),
    ({'ema': OTHER, 'net': weights()}, 'net', 'ema'),
    ({'ema': OTHER, 'state_dict': weights()}, 'state_dict', 'ema'),
    ({'model': {'state_dict': weights()}}, 'model.state_dict', None),
    ({'checkpoint': {'mine': weights()}}, 'checkpoint.mine', None),
    ({'teacher': OTHER, 'model': weights()}, 'model', 'teacher'),
  ],
)
def test_entry_that_is_taken_is_said(value, taken, left, tmp_path, caplog):
  path = str(tmp_path / 'model.pt')
  torch.save(value, path)
  with caplog.at_level('INFO'):
    assert_same(state_dicts.read_state_dict(path), weights())
  (line,) = caplog.messages
  assert line.startswith(f'{path}: took the entry {taken!r}')
  assert line.endswith(
    f'--entry takes another: {left}' if left else f'{taken!r}'
  )
  if left:
    assert_same(state_dicts.read_state_dict(path, left), OTHER)
  with pytest.raises(ValueError, match="got entry 'x', choices are"):
    state_dicts.read_state_dict(path, 'x')


def test_arrays_among_other_things(tmp_path, caplog):
  path = str(tmp_path / 'model.pt')
  torch.save({**weights(), 'epoch': 3, '_extra_state': None}, path)
  with caplog.at_level('INFO'):
    assert_same(state_dicts.read_state_dict(path), weights())
  assert caplog.messages == [
    f'{path}: left out what is no array: epoch, _extra_state'
  ]


def test_writing_is_atomic(tmp_path):
  arrays = {'a': np.ones(2, np.float32)}
  for name in ('new/a.pt', 'new/a.npz'):
    path = str(tmp_path / name)
    state_dicts.write_state_dict(path, arrays)
    got = state_dicts.read_state_dict(path)
    np.testing.assert_array_equal(got['a'], arrays['a'])
  assert len(os.listdir(tmp_path / 'new')) == 2
