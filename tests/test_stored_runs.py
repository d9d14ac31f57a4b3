"""Runs that version 0.1.0 left, before the middle was rebuilt.

`data/stored_runs.zip` holds the workdirs of two runs of one config (digits, a
tiny backbone, ten steps a stage, weights averaged in the second stage), made by
the code of commit 3a4b34b: `finished`, and `stopped` by SIGTERM at step 5 of
stage 2.
"""

import os
import zipfile

import jax
import ml_collections
import numpy as np
import pytest

import dhat_jax
from dhat_jax.datasets import digits
from dhat_jax.runtime import files
from dhat_jax.training import loop, optim, stored
from tests.helpers import tiny  # noqa: F401 - registers the backbone 'tiny'

# Another name for the same optimiser: another config all the same.
optim.OPTIMIZERS.register('sgd_of_another_file')(optim.sgd)

ARCHIVE = os.path.join(os.path.dirname(__file__), 'data', 'stored_runs.zip')
# Another processor rounds otherwise.
ONE_IMAGE = 1.5 / 360


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  folder = tmp_path_factory.mktemp('stored')
  with zipfile.ZipFile(ARCHIVE) as archive:
    archive.extractall(folder)
  return folder


def config_of(workdir):
  return ml_collections.ConfigDict(files.read_json(f'{workdir}/config.json'))


def test_a_finished_run_is_loaded(runs):
  """Its own accuracies on clean images come out again."""
  expected = files.read_json(f'{runs}/finished/results.json')['accuracy']
  run = dhat_jax.load_run(str(runs / 'finished'))
  assert run.output == 'aggregated'
  test = digits.load().test
  for output, row in expected.items():
    right = run.predict(test.images, output).argmax(axis=1) == test.labels
    assert right.mean() == pytest.approx(row['clean'], abs=ONE_IMAGE)
  # Floats are the same images.
  np.testing.assert_array_equal(
    run.predict(test.images[:8]),
    run.predict(test.images[:8].astype(np.float32) / 255),
  )
  first = dhat_jax.load_run(str(runs / 'finished'), stage='main_head')
  assert first.net.outputs == ('main',)
  np.testing.assert_allclose(
    first.predict(test.images[:8]),
    run.predict(test.images[:8], 'main'),
    atol=1e-5,
  )


def test_loading_writes_nothing(runs):
  def listing():
    paths = sorted((runs / 'finished').rglob('*'))
    return [(path, path.stat().st_mtime_ns) for path in paths]

  before = listing()
  dhat_jax.load_run(str(runs / 'finished'))
  assert listing() == before


def test_a_finished_run_is_evaluated_again(runs, tmp_path):
  workdir = runs / 'finished'
  expected = files.read_json(f'{workdir}/results.json')
  results = dhat_jax.train_and_evaluate(
    config_of(workdir), str(workdir), mode='evaluate'
  )
  for key in ('accuracy', 'worst_case'):
    for output, row in expected[key].items():
      assert results[key][output] == pytest.approx(row, abs=ONE_IMAGE)


def test_a_stopped_run_resumes(runs):
  """It ends where the run ended that was not stopped."""
  workdir = runs / 'stopped'
  folder = loop.checkpoint_folder(str(workdir), 'second_head')
  assert stored.steps(folder) == [5]
  results = dhat_jax.train_and_evaluate(config_of(workdir), str(workdir))
  for stage in ('main_head', 'second_head', 'aggregator'):
    actual, expected = (
      stored.read_variables(
        loop.checkpoint_folder(str(runs / name), stage), keep='last'
      )
      for name in ('stopped', 'finished')
    )
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=5e-3),
      actual,
      expected,
    )
  expected = files.read_json(f'{runs}/finished/results.json')['accuracy']
  for output, row in expected.items():
    assert results['accuracy'][output] == pytest.approx(row, abs=0.02)


def test_another_config_is_still_refused(runs):
  config = config_of(runs / 'finished')
  config.main_head.optimizer.name = 'sgd_of_another_file'
  config.seed = 1
  with pytest.raises(ValueError, match='another config') as error:
    dhat_jax.train_and_evaluate(config, str(runs / 'finished'))
  assert 'main_head.optimizer.name' in str(error.value)
  assert 'seed: workdir has 0, this run has 1' in str(error.value)
  # What newer configs say and older ones could not is no difference.
  assert 'augmentations' not in str(error.value)


def test_a_part_that_nobody_registered_is_named(runs, tmp_path):
  config = config_of(runs / 'finished')
  config.model.backbone = 'of_another_file'
  (tmp_path / 'config.json').write_text(config.to_json())
  with pytest.raises(ValueError, match=r"'of_another_file'.*import that file"):
    dhat_jax.load_run(str(tmp_path))


@pytest.mark.parametrize(
  ('workdir', 'stage', 'message'),
  [
    ('nothing', None, 'holds no run'),
    ('finished', 'third_head', r"stage: got 'third_head', choices are"),
    ('stopped_early', 'aggregator', "stage 'aggregator' is not trained"),
  ],
)
def test_what_cannot_be_loaded(runs, workdir, stage, message):
  if workdir == 'stopped_early':
    with zipfile.ZipFile(ARCHIVE) as archive:
      archive.extract('stopped/config.json', runs / 'early')
    workdir = 'early/stopped'
  with pytest.raises(ValueError, match=message):
    dhat_jax.load_run(str(runs / workdir), stage)
