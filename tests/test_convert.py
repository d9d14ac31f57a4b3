import subprocess
import sys

import jax
import numpy as np
import pytest

from dhat_jax import convert, from_config
from dhat_jax.configs import digits
from dhat_jax.datasets import digits as digits_data
from dhat_jax.models.wide_resnet import DeepMindWideResNet
from dhat_jax.run import load_run, train_and_evaluate
from dhat_jax.training import loop
from tests.helpers.state_dicts import make, state_dict_of
from tests.helpers.tiny import flat

OVERRIDES = (
  '--config=configs/digits.py',
  '--config.compare_with_natural=false',
  '--config.evaluation.attacks=("clean",)',
)
# What a stage averages is imported, and exported, too.
AVERAGED = (
  '--config.second_head.ema_decay=0.9',
  '--config.second_head.ema.statistics=true',
)


def run(*arguments):
  convert.main(['convert', *arguments])


@pytest.fixture(scope='module')
def digits_model():
  return make(num_classes=10)


@pytest.fixture(scope='module')
def imported(tmp_path_factory, digits_model):
  """A workdir made of a state dict, and the state dict."""
  folder = tmp_path_factory.mktemp('convert')
  state_dict = state_dict_of(digits_model, channels=1)
  np.savez(folder / 'model.npz', **state_dict)
  run(
    *OVERRIDES,
    *AVERAGED,
    f'--from_torch={folder}/model.npz',
    f'--workdir={folder}/workdir',
  )
  return folder / 'workdir', state_dict


def test_workdir_comes_back_as_the_same_state_dict(imported, tmp_path):
  workdir, state_dict = imported
  path = tmp_path / 'back.npz'
  run(*OVERRIDES, *AVERAGED, f'--to_torch={path}', f'--workdir={workdir}')
  with np.load(path) as back:
    assert set(back.files) == set(state_dict)
    for key, array in state_dict.items():
      np.testing.assert_array_equal(back[key], array, err_msg=key)


@pytest.fixture(scope='module')
def imported_plain(tmp_path_factory):
  """A workdir of a plain network: config, path, model, state dict."""
  folder = tmp_path_factory.mktemp('plain')
  model = make(num_classes=10, heads=1)
  state_dict = state_dict_of(model, channels=1)
  np.savez(folder / 'model.npz', **state_dict)
  run(
    *OVERRIDES,
    '--config.stages=("main_head",)',
    f'--from_torch={folder}/model.npz',
    f'--workdir={folder}/workdir',
  )
  config = digits.get_config()
  config.compare_with_natural = False
  config.stages = ('main_head',)
  config.evaluation.attacks = ('clean',)
  return config, str(folder / 'workdir'), model, state_dict


def test_imported_stages_count_as_trained(imported_plain):
  config, workdir, model, state_dict = imported_plain
  experiment = from_config.make_experiment(config, digits_data.load())
  variables, seconds = loop.train(
    experiment.stages,
    workdir,
    image_shape=experiment.image_shape,
    intervals=experiment.intervals,
  )
  assert seconds == {'main_head': 0}
  expected = flat(convert.from_torch(state_dict, model))
  for path, array in flat(variables).items():
    np.testing.assert_array_equal(array, expected[path], err_msg=path)


@pytest.mark.slow
def test_imported_workdir_is_evaluated(imported_plain):
  config, workdir, model, state_dict = imported_plain
  results = train_and_evaluate(config, workdir, mode='evaluate')
  test = digits_data.load().test
  logits = jax.jit(model.apply)(
    convert.from_torch(state_dict, model),
    test.images.astype(np.float32) / 255,
  ).main
  expected = np.mean(logits.argmax(axis=1) == test.labels)
  assert abs(results['accuracy']['main']['clean'] - expected) < 0.005


def test_deepmind_network_of_robustbench_comes_in(tmp_path, capsys):
  """The commands of docs/from_pytorch.md, with digits for CIFAR-10."""
  model = make(
    DeepMindWideResNet(10, 1), heads=1, num_classes=10, mean=(0.5,), std=(0.2,)
  )
  state_dict = state_dict_of(model, channels=1)
  wrapped = {f'module.0.{key}': value for key, value in state_dict.items()}
  np.savez(tmp_path / 'theirs.npz', **wrapped)
  flags = (
    *OVERRIDES,
    '--config.stages=("main_head",)',
    '--config.model.backbone=dm_wrn10_1',
    f'--workdir={tmp_path}/workdir',
  )
  numbers = ('--config.model.mean=(0.5,)', '--config.model.std=(0.2,)')
  run(*flags, *numbers, f'--from_torch={tmp_path}/theirs.npz')
  assert 'left out of the keys: 0., which' in capsys.readouterr().err
  run(*flags, *numbers, f'--to_torch={tmp_path}/back.npz')
  with np.load(tmp_path / 'back.npz') as back:
    assert set(back.files) == set(state_dict)
    for key, array in state_dict.items():
      np.testing.assert_array_equal(back[key], array, err_msg=key)


@pytest.mark.slow
def test_deepmind_network_trains(tmp_path):
  config = digits.get_config()
  config.stages = ('main_head',)
  config.model.backbone = 'dm_wrn10_1'
  config.model.mean, config.model.std = (0.5,), (0.25,)
  config.compare_with_natural = False
  config.main_head.update({'epochs': 1, 'batch_size': 512})  # two steps
  config.main_head.loss = {'name': 'natural'}
  config.evaluation.attacks = ('clean',)
  config.evaluation.sweep_epsilons_255 = config.evaluation.loss_steps = ()
  train_and_evaluate(config, str(tmp_path / 'run'))
  trained = load_run(str(tmp_path / 'run'))
  assert trained.net.backbone == DeepMindWideResNet(10, 1)
  state_dict = convert.export_workdir(str(tmp_path / 'run'))
  # Two steps from 1 with momentum .99.
  variances = state_dict['layer.2.block.0.batchnorm_0.running_var']
  assert np.all(variances > 0.98)
  assert np.any(variances != 1)
  assert np.any(state_dict['logits.bias'] != 0)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ((), 'give one of --from_torch and --to_torch'),
    (('--from_torch=a.npz', '--to_torch=b.npz'), 'give one of'),
    (('--from_torch=no_such.npz',), 'no_such.npz'),
    (('--from_torch=model.onnx',), "got suffix '.onnx', choices are"),
    (('--to_torch=model.onnx',), "got suffix '.onnx', choices are"),
    (('--from_torch={folder}.npz',), 'folder.npz: is not a readable npz file'),
    (('--from_torch={npz}', '--entry=ema'), "got entry 'ema', choices are ()"),
    (('--to_torch=model.npz',), 'holds no run'),
    (('--from_torch={npz}',), 'missing: WRN1.block1.layer.0.bn1.bias'),
    (
      ('--from_torch={npz}', '--config.compare_with_natural=true'),
      'give --config.compare_with_natural=false',
    ),
    (('--from_torch={npz}', '--config.nothing=1'), 'nothing'),
    (('--from_torch={npz}', 'more'), "got ['more'], expected flags only"),
  ],
)
def test_mistakes_are_one_message(arguments, message, tmp_path, capsys):
  np.savez(tmp_path / 'small.npz', surplus=np.zeros(1))
  (tmp_path / 'folder.npz').mkdir()
  paths = {'npz': tmp_path / 'small.npz', 'folder': tmp_path / 'folder'}
  arguments = [argument.format(**paths) for argument in arguments]
  with pytest.raises(SystemExit) as stop:
    run(*OVERRIDES, f'--workdir={tmp_path}/workdir', *arguments)
  assert stop.value.code == 2
  printed = capsys.readouterr().err
  assert printed.startswith('error: ')
  assert message in printed


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda d: d['WRN1.fc.bias'].fill(np.nan), 'WRN1.fc.bias (10 of 10 are N'),
    (lambda d: d.update(mu=np.zeros(3)), 'surplus: mu, got (3,)'),
    (lambda d: d.update(x=np.array(['a'])), 'x: got <U1, expected numbers'),
  ],
)
def test_bad_weights_are_named_with_their_file(
  change, message, digits_model, tmp_path, capsys
):
  state_dict = state_dict_of(digits_model, channels=1)
  change(state_dict)
  np.savez(tmp_path / 'bad.npz', **state_dict)
  with pytest.raises(SystemExit) as stop:
    run(
      *OVERRIDES,
      f'--from_torch={tmp_path}/bad.npz',
      f'--workdir={tmp_path}/workdir',
    )
  assert stop.value.code == 2
  printed = capsys.readouterr().err
  assert printed.startswith('error: bad.npz: ')
  assert message in printed
  assert not (tmp_path / 'workdir').exists()


def test_what_was_read_how_is_said(digits_model, tmp_path, capsys):
  state_dict = state_dict_of(digits_model, channels=1)
  wrapped = {f'_orig_mod.{key}': value for key, value in state_dict.items()}
  np.savez(tmp_path / 'model.npz', **wrapped)
  run(
    *OVERRIDES,
    f'--from_torch={tmp_path}/model.npz',
    f'--workdir={tmp_path}/workdir',
  )
  assert capsys.readouterr().err == 'left out of the keys: _orig_mod.\n'


def test_existing_checkpoints_are_not_overwritten(imported, tmp_path, capsys):
  workdir, state_dict = imported
  np.savez(tmp_path / 'model.npz', **state_dict)
  with pytest.raises(SystemExit):
    run(
      *OVERRIDES,
      f'--from_torch={tmp_path}/model.npz',
      f'--workdir={workdir}',
    )
  assert 'is there already' in capsys.readouterr().err


def test_pytorch_is_needed_by_the_bridge_alone():
  code = (
    'import sys; sys.modules["torch"] = None; '
    'from dhat_jax import convert; from dhat_jax.pytorch import jax_module; '
    'jax_module.as_torch(lambda images: images)'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=False
  )
  assert (
    "ImportError: PyTorch is needed here: pip install 'dhat_jax[oracle]'"
    in (done.stderr)
  )
