"""Whole runs on a tiny network: results, resume, refusals."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from dhat_jax.run import load_run, train_and_evaluate
from dhat_jax.runtime import files
from dhat_jax.training import metrics, stored
from tests.helpers import tiny_run

OUTPUTS = ('main', 'second', 'mean', 'aggregated')
ATTACKS = ('clean', 'fgsm', 'pgd_2', 'cw_2')


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A finished run with its natural twin: (workdir, results)."""
  directory = str(tmp_path_factory.mktemp('finished'))
  results = train_and_evaluate(
    tiny_run.get_config(compare_with_natural=True), directory
  )
  return directory, results


def last_arrays(directory, stage, step=10):
  """The arrays of a checkpoint, read without this package's code."""
  path = os.path.join(directory, 'checkpoints', stage, str(step), 'state')
  return ocp.StandardCheckpointer().restore(os.path.abspath(path))


def without_seconds(results):
  return {key: value for key, value in results.items() if key != 'seconds'}


def test_results(finished):
  directory, results = finished
  with open(os.path.join(directory, 'results.json')) as file:
    stored = json.load(file)
  assert stored == json.loads(json.dumps(results))
  assert stored['dataset'] == 'digits'
  assert stored['data_source'] == 'scikit-learn digits'
  assert stored['n_test'] == 360
  assert stored['seed'] == 0
  assert stored['epsilon'] == 0.2
  assert stored['config']['name'] == 'tiny'
  assert stored['versions']['jax'] == jax.__version__
  assert set(stored['seconds']) == {
    'main_head',
    'second_head',
    'aggregator',
    'evaluation',
  }
  for accuracy in (stored['accuracy'], stored['natural']['accuracy']):
    assert tuple(accuracy) == OUTPUTS
    for row in accuracy.values():
      assert tuple(row) == ATTACKS
      assert all(0 <= value <= 1 for value in row.values())
      # Each of the 360 images counts once.
      assert all(
        value * 360 == pytest.approx(round(value * 360))
        for value in row.values()
      )
      assert row['fgsm'] <= row['clean']


def test_stages_hand_on_frozen_parts_bit_for_bit(finished):
  directory, _ = finished
  main, second, aggregator = (
    last_arrays(directory, stage)
    for stage in ('main_head', 'second_head', 'aggregator')
  )

  def parts(arrays, *names):
    return {
      key: value
      for key, value in arrays.items()
      if key.split('/')[0] in ('params', 'batch_stats')
      and key.split('/')[1] in names
    }

  for before, after, frozen in (
    (main, second, ('trunk', 'main_head')),
    (second, aggregator, ('trunk', 'main_head', 'second_head')),
  ):
    expected = parts(before, *frozen)
    assert expected
    for key, value in parts(after, *frozen).items():
      np.testing.assert_array_equal(value, expected[key], err_msg=key)
  assert not parts(main, 'second_head')
  assert parts(aggregator, 'aggregator')


def test_metrics_of_every_stage(finished):
  directory, _ = finished
  records = files.read_json_lines(os.path.join(directory, 'metrics.jsonl'))
  for stage in ('main_head', 'second_head', 'aggregator'):
    steps = [
      record['step']
      for record in records
      if record['stage'] == stage and 'train/loss' in record
    ]
    # Every 2 steps, and where checkpoints are.
    assert steps == [2, 3, 4, 6, 8, 9, 10]
  last = records[-1]
  assert last['stage'] == 'aggregator'
  assert 0 <= last['validation/robust_accuracy'] <= 1
  assert os.listdir(os.path.join(directory, 'tensorboard', 'aggregator'))


def test_provenance_is_kept(finished):
  directory, _ = finished
  with open(os.path.join(directory, 'environment.json')) as file:
    environment = json.load(file)
  assert len(environment['devices']) == 2
  assert environment['git_commit']


def test_same_command_again_has_nothing_to_do(finished):
  directory, results = finished
  paths = list(pathlib.Path(directory).rglob('*'))
  before = {path: path.stat().st_mtime_ns for path in paths}
  again = train_and_evaluate(
    tiny_run.get_config(compare_with_natural=True), directory
  )
  assert again == json.loads(json.dumps(results))
  assert before == {path: path.stat().st_mtime_ns for path in paths}


def test_other_config_is_refused(finished):
  directory, _ = finished
  config = tiny_run.get_config(**{'seed': 1, 'main_head.loss.beta': 5.0})
  config.compare_with_natural = True
  with pytest.raises(ValueError, match='another config') as error:
    train_and_evaluate(config, directory)
  assert 'main_head.loss.beta: workdir has 6.0, this run has 5.0' in str(
    error.value
  )
  assert 'seed: workdir has 0, this run has 1' in str(error.value)
  assert 'stages' not in str(error.value)


def test_evaluate_mode_takes_other_attacks(finished, capsys):
  directory, results = finished
  config = tiny_run.get_config(
    **{'evaluation.attacks': ('clean', 'pgd_2'), 'evaluation.batch_size': 360}
  )
  config.compare_with_natural = True
  again = train_and_evaluate(config, directory, mode='evaluate')
  for output in OUTPUTS:
    assert tuple(again['accuracy'][output]) == ('clean', 'pgd_2')
    # Neither the batch size nor the other attacks change an attack's noise.
    for attack in ('clean', 'pgd_2'):
      assert (
        again['accuracy'][output][attack] == results['accuracy'][output][attack]
      )
  assert 'aggregated' in capsys.readouterr().out


def test_evaluate_mode_trains_nothing(tmp_path):
  config = tiny_run.get_config()
  with pytest.raises(ValueError, match='holds no run'):
    train_and_evaluate(config, str(tmp_path), mode='evaluate')
  (tmp_path / 'config.json').write_text(config.to_json())
  with pytest.raises(ValueError, match="'main_head' is at step None of 10"):
    train_and_evaluate(config, str(tmp_path), mode='evaluate')


@pytest.mark.parametrize(
  ('key', 'wrong', 'right', 'message'),
  [
    ('dataset.validation_size', 1437, 64, 'expected from 0 to 1436'),
    ('main_head.batch_size', 2000, 64, 'expected at most the 1309 training'),
  ],
)
def test_a_mistake_that_the_data_shows_leaves_the_workdir_free(
  tmp_path, key, wrong, right, message
):
  workdir = tmp_path / 'run'
  config = tiny_run.get_config(stages=('main_head',), **{key: wrong})
  with pytest.raises(
    ValueError, match=rf'config\.{key}: got {wrong}, {message}'
  ):
    train_and_evaluate(config, str(workdir))
  assert not workdir.exists()
  config = tiny_run.get_config(stages=('main_head',), **{key: right})
  assert train_and_evaluate(config, str(workdir))['n_test'] == 360


def test_single_head_is_the_plain_network(tmp_path):
  config = tiny_run.get_config(stages=('main_head',))
  results = train_and_evaluate(config, str(tmp_path))
  assert tuple(results['accuracy']) == ('main',)


def test_mean_aggregator_options_and_reverse_smoothing(tmp_path):
  """The options that the other runs leave alone, in one run."""
  config = tiny_run.get_config(
    **{
      'model.aggregator': 'mean',
      'second_head.ema_decay': 0.9,
      'second_head.ema.copy_epochs': 0.1,
      'second_head.ema.warm_up': True,
      'second_head.ema.statistics': True,
      'second_head.optimizer.clip_norm': 1.0,
      'second_head.optimizer.decay_norm': False,
      'main_head.keep': 'last',
      'main_head.attack.warmup_epochs': 0.25,
      'dataset.crop_padding': 1,
      'dataset.flip': True,
    }
  )
  config.main_head.loss = {'name': 'mart', 'beta': 5.0}
  config.second_head.loss = {'name': 'reverse_smoothing'}
  results = train_and_evaluate(config, str(tmp_path))
  accuracy = results['accuracy']
  assert accuracy['mean'] == accuracy['aggregated']
  assert (tmp_path / 'checkpoints' / 'aggregator' / '0').is_dir()
  check_that_load_run_reads_the_average(tmp_path)


def check_that_load_run_reads_the_average(workdir):
  """Or the weights themselves, if the config says so."""
  path = workdir / 'config.json'
  folder = str(workdir / 'checkpoints' / 'second_head')
  kernels = []
  for use in (True, False):
    config = files.read_json(str(path))
    config['second_head']['ema']['use'] = use
    files.write_json(str(path), config)
    got = load_run(str(workdir), 'second_head').variables
    expected = stored.read_variables(folder, keep='best', averaged=use)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    kernels.append(jax.tree.leaves(got['params']['second_head'])[0])
  assert not np.array_equal(*kernels)


def test_sat_reports_clean_accuracy_too(tmp_path):
  config = tiny_run.get_config(stages=('main_head',))
  config.main_head.loss = {'name': 'sat'}
  train_and_evaluate(config, str(tmp_path))
  record = files.read_json_lines(str(tmp_path / 'metrics.jsonl'))[0]
  assert {'train/clean_accuracy', 'train/robust_accuracy'} <= set(record)


def test_divergence_stops_and_saves_nothing_bad(tmp_path):
  config = tiny_run.get_config(
    **{'main_head.schedule.learning_rate': 1e30, 'stages': ('main_head',)}
  )
  with pytest.raises(metrics.NonFiniteError) as error:
    train_and_evaluate(config, str(tmp_path))
  message = str(error.value)
  assert 'not finite at step 2 of stage main_head' in message
  assert 'last good checkpoint: none' in message
  assert not [
    name
    for name in os.listdir(tmp_path / 'checkpoints' / 'main_head')
    if name.isdigit()
  ]


def test_damaged_newest_checkpoint_is_trained_again(finished, tmp_path):
  """The rerun repeats what was lost and ends in the same place."""
  _, results = finished
  config = tiny_run.get_config()
  first = train_and_evaluate(config, str(tmp_path))
  newest = tmp_path / 'checkpoints' / 'aggregator' / '10' / 'state'
  expected = last_arrays(str(tmp_path), 'aggregator')
  for path in newest.rglob('*'):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  os.remove(tmp_path / 'results.json')
  again = train_and_evaluate(config, str(tmp_path))
  assert without_seconds(again) == without_seconds(first)
  assert (tmp_path / 'checkpoints' / 'damaged' / 'aggregator_10').is_dir()
  actual = last_arrays(str(tmp_path), 'aggregator')
  for key, value in expected.items():
    np.testing.assert_array_equal(actual[key], value, err_msg=key)
  # And it equals the run beside it, which was not interrupted at all.
  assert again['accuracy'] == results['accuracy']


def start(directory):
  return subprocess.Popen(
    [
      *(sys.executable, '-m', 'tests.helpers.tiny_run', directory),
      'evaluation.attacks=("clean", "pgd_2")',
    ],
    cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
    env={**os.environ, 'JAX_NUM_CPU_DEVICES': '2'},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def wait_for(directory, stage, step, process):
  """Waits until a stage has recorded a step."""
  path = os.path.join(directory, 'metrics.jsonl')
  deadline = time.monotonic() + 120
  while time.monotonic() < deadline and process.poll() is None:
    if os.path.exists(path) and any(
      record['stage'] == stage and record['step'] >= step
      for record in files.read_json_lines(path)
    ):
      return
    time.sleep(0.02)
  raise AssertionError(f'{stage} did not come to step {step}')


@pytest.mark.slow
def test_killed_in_every_stage_ends_bit_for_bit_equal(tmp_path):
  whole, directory = str(tmp_path / 'whole'), str(tmp_path / 'killed')
  process = start(whole)
  output, _ = process.communicate(timeout=240)
  assert process.returncode == 0, output
  for stage, step in (('main_head', 4), ('second_head', 2), ('aggregator', 9)):
    process = start(directory)
    wait_for(directory, stage, step, process)
    process.kill()
    process.wait()
    assert not os.path.exists(os.path.join(directory, 'results.json'))
  process = start(directory)
  output, _ = process.communicate(timeout=240)
  assert process.returncode == 0, output
  for stage in ('main_head', 'second_head', 'aggregator'):
    expected = last_arrays(whole, stage)
    actual = last_arrays(directory, stage)
    assert expected.keys() == actual.keys()
    for key, value in expected.items():
      np.testing.assert_array_equal(actual[key], value, err_msg=key)
  results = [
    without_seconds(files.read_json(os.path.join(path, 'results.json')))
    for path in (whole, directory)
  ]
  assert results[0] == results[1]
  records = [
    (record['stage'], record['step'], 'train/loss' in record)
    for record in files.read_json_lines(
      os.path.join(directory, 'metrics.jsonl')
    )
  ]
  assert len(set(records)) == len(records)


@pytest.mark.slow
def test_sigterm_saves_and_exits_with_0(tmp_path):
  directory = str(tmp_path)
  process = start(directory)
  wait_for(directory, 'main_head', 2, process)
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate(timeout=120)
  assert process.returncode == 0, output
  assert 'resume with the same command' in output
  steps = os.listdir(os.path.join(directory, 'checkpoints', 'main_head'))
  assert steps


def test_a_run_without_data_leaves_nothing_behind(tmp_path):
  """So that the same command can be given again with a `data_dir`."""
  config = tiny_run.get_config(
    **{'dataset.loader': 'image_folder', 'dataset.data_dir': '/no/such/folder'}
  )
  with pytest.raises((ValueError, OSError), match='/no/such/folder'):
    train_and_evaluate(config, str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


def test_too_large_a_batch_shows_before_training(tmp_path):
  config = tiny_run.get_config(**{'aggregator.batch_size': 2000})
  with pytest.raises(ValueError, match='at most the 1309 training images'):
    train_and_evaluate(config, str(tmp_path))
  assert not (tmp_path / 'checkpoints').exists()
