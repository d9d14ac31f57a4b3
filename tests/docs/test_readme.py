"""README says what is true: its program runs, its tables are generated."""

import os
import pathlib
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from dhat_jax import losses, main
from dhat_jax.datasets import digits
from dhat_jax.models.backbones import BACKBONES
from dhat_jax.models.outputs import Outputs
from tests.helpers import tiny  # noqa: F401 - what the stored runs name
from tests.test_stored_runs import ARCHIVE as STORED_RUNS

ROOT = str(pathlib.Path(__file__).parents[2])


def readme():
  with open(os.path.join(ROOT, 'README.md')) as file:
    return file.read()


def program(word):
  """The one program in README that contains a word."""
  programs = re.findall(r'```python\n(.*?)```', readme(), re.DOTALL)
  (found,) = [text for text in programs if word in text]
  return found


def test_training_loop_runs_as_it_stands():
  text = program('make_train_step')
  assert len(text.strip().split('\n')) <= 20
  train = digits.load().train
  names = {'images': train.images[:256], 'labels': train.labels[:256]}
  exec(text, names)
  assert int(names['state'].step) == 4
  assert np.isfinite(float(names['metrics']['loss'][0]))


def test_loss_of_readme_weighs_images(folder):
  config = main.parse(['main', '--config=focal_loss.py']).config
  assert config.main_head.loss.to_dict() == {'name': 'focal', 'gamma': 2.0}
  assert 'register' in program('losses.register')
  loss = losses.LOSSES.make('focal', {'gamma': 2.0})
  logits = np.log(np.float32([[0.5, 0.5], [0.2, 0.8]]))
  outputs = Outputs(main=logits)
  value, _ = loss.per_example(None, outputs, np.array([0, 0]), 'main')
  # -log(p) (1 - p)^2 by hand
  np.testing.assert_allclose(value, [0.173287, 1.030040], rtol=1e-5)


def test_loading_a_run_runs_as_it_stands(tmp_path, monkeypatch, capsys):
  with zipfile.ZipFile(STORED_RUNS) as archive:
    archive.extractall(tmp_path / 'runs')
  (tmp_path / 'runs' / 'finished').rename(tmp_path / 'runs' / 'digits')
  monkeypatch.chdir(tmp_path)
  text = program('load_run')
  assert len(text.strip().split('\n')) <= 5
  names = {'images': digits.load().test.images[:5]}
  exec(text, names)
  assert names['logits'].shape == (5, 10)
  printed = capsys.readouterr().out
  assert printed.strip() == str(names['logits'].argmax(axis=1))


def test_autoattack_runs_as_it_stands(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  test = digits.load().test
  images = np.float32(test.images[:40]) / 255
  names = {'images': images, 'labels': test.labels[:40]}
  exec(program('autoattack'), names)
  result = names['result']
  assert result.robust.shape == (40,)
  attacks = ('apgd-ce', 'apgd-t', 'fab-t', 'square')
  assert list(result.flags) == ['clean', *attacks]
  assert result.clean_accuracy > 0
  assert result.robust_accuracy <= result.clean_accuracy


def test_tables_are_generated():
  subprocess.run(
    [sys.executable, os.path.join(ROOT, 'docs/tools/tables.py'), '--check'],
    check=True,
  )


def test_every_key_that_readme_names_exists():
  from dhat_jax.configs import cifar10

  flags = re.findall(r'--config\.([\w.]+)=', readme())
  assert flags
  for flag in flags:
    value = cifar10.get_config()
    for key in flag.split('.'):
      value = value[key]


def test_names_in_the_choices_table_exist():
  for name in ('wrn34_10', 'wrn28_10', 'wrn16_4', 'resnet18'):
    assert f'`{name}`' in readme()
    BACKBONES.find(name)


@pytest.mark.parametrize('script', ['figure.py', 'terminal.py'])
def test_figures_are_generated(script):
  subprocess.run(
    [sys.executable, os.path.join(ROOT, 'docs/tools', script), '--check'],
    check=True,
  )
