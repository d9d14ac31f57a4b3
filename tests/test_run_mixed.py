"""A whole run whose aggregator is fitted: checkpoint, records, results."""

import numpy as np
import pytest

from dhat_jax import from_config, load_run
from dhat_jax.configs import recipes
from dhat_jax.datasets import digits
from dhat_jax.run import train_and_evaluate
from dhat_jax.runtime import files
from dhat_jax.training import loop
from tests.helpers import tiny_run

pytestmark = pytest.mark.slow


def get_config(**overrides):
  """The tiny run, made MixedNUTS; overrides are {'dotted.key': value}."""
  config = recipes.mixed(
    tiny_run.get_config(
      **{
        'evaluation.attacks': ('clean', 'pgd_2'),
      }
    )
  )
  config.evaluation.audit = False
  config.model.aggregator_options.update(images=100, attack='pgd_2', grid=3)
  for path, value in overrides.items():
    *groups, key = path.split('.')
    target = config
    for group in groups:
      target = target[group]
    with target.ignore_type():
      target[key] = value
  return config


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  directory = str(tmp_path_factory.mktemp('mixed'))
  return directory, train_and_evaluate(get_config(), directory)


def test_the_fit_is_recorded_and_stored(finished):
  directory, results = finished
  rows = files.read_json_lines(f'{directory}/metrics.jsonl')
  (row,) = [row for row in rows if row['stage'] == 'aggregator']
  assert row['step'] == 0
  assert row['fit/images'] == 100
  assert row['fit/weight'] == pytest.approx(1 / (1 + row['fit/cutoff']))
  fitted = results['heads']['fitted']
  stored = load_run(directory).variables['params']['aggregator']
  assert set(fitted) == set(stored)
  for name, value in stored.items():
    assert value.dtype == np.float32
    assert fitted[name] == value == pytest.approx(row[f'fit/{name}'])


def test_what_is_loaded_is_what_was_evaluated(finished):
  directory, results = finished
  test = digits.load().test
  predictions = load_run(directory).predict(test.images).argmax(axis=1)
  clean = results['accuracy']['aggregated']['clean']
  assert np.mean(predictions == test.labels) == pytest.approx(clean)


def test_evaluated_again_it_is_not_fitted_again(finished):
  directory, results = finished
  again = train_and_evaluate(
    get_config(**{'evaluation.epsilon': 0.1}), directory, mode='evaluate'
  )
  assert again['heads']['fitted'] == results['heads']['fitted']
  rows = files.read_json_lines(f'{directory}/metrics.jsonl')
  assert sum(row['stage'] == 'aggregator' for row in rows) == 1


def test_the_linear_mix_is_fitted_to_the_same_heads(finished):
  """In the stage alone, on the variables of the stages before."""
  directory, results = finished
  config = get_config(**{'model.aggregator': 'linear_mix'})
  config.model.aggregator_options = {'attack': 'pgd_2', 'percentile': 90.0}
  from_config.check(config)
  dataset = from_config.load_dataset(config)
  experiment = from_config.make_experiment(config, dataset)
  *_, stage = experiment.stages
  assert [s.fit is not None for s in experiment.stages] == [False, False, True]
  heads = load_run(directory, 'second_head').variables
  state = loop.initial_state(stage, experiment.image_shape, heads)
  fitted = stage.fit(loop.devices.replicate(state.variables()))
  assert set(fitted.params['aggregator']) == {'weight'}
  weight = fitted.params['aggregator']['weight']
  assert 0.5 <= weight < 1
  # The share of the surrogate's fit, at another percentile.
  assert weight != results['heads']['fitted']['surrogate_weight']
