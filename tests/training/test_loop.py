"""The training loop with objects and callables alone: no config anywhere."""

import os

import jax
import numpy as np
import optax
import pytest

from dhat_jax import losses
from dhat_jax.attacks.pgd import make_attack
from dhat_jax.datasets.base import Split
from dhat_jax.datasets.batches import ShuffledSplit
from dhat_jax.models.dual_head import DualHeadNet
from dhat_jax.runtime import devices, files
from dhat_jax.training import loop, metrics, stored
from dhat_jax.training.loop import Intervals
from dhat_jax.training.stages import Fitted, Stage, Validation, all_roles
from dhat_jax.training.step import make_train_step
from tests.helpers.tiny import TinyBackbone

SHAPE = (8, 8, 1)
STEPS = 6


class ByHand:
  """A source of batches whose images are all of one grey: that of the step."""

  steps_per_epoch = 3

  def batch(self, step):
    return {
      'images': np.full((4, *SHAPE), 10 * step, np.uint8),
      'labels': np.arange(4, dtype=np.int32) % 3,
      'mask': np.ones(4, bool),
    }


def make_stage(
  name,
  source=None,
  *,
  num_steps=STEPS,
  tx=None,
  schedule=None,
  ema_decay=0.0,
  **kwargs,
):
  """A stage of three classes that trains in a second."""
  role = all_roles()[name]
  net = DualHeadNet(
    backbone=TinyBackbone(),
    num_classes=3,
    outputs=role.outputs,
    axis_name=devices.AXIS,
  )
  tx = tx or optax.sgd(0.05, momentum=0.9)
  loss = losses.trades(beta=1.0)
  step = make_train_step(
    net=net,
    tx=tx,
    loss=loss,
    attack=make_attack(epsilon=0.1, step_size=0.05, steps=1),
    trains=role.trains,
    output=role.output,
    ema_decay=ema_decay,
    axis_name=devices.AXIS,
  )
  return Stage(
    name=name,
    role=role,
    net=net,
    loss=loss,
    tx=tx,
    step=step,
    schedule=schedule or optax.constant_schedule(0.05),
    num_steps=num_steps,
    steps_per_epoch=3,
    batch_size=4,
    rng=jax.random.key(7),
    source=source or ByHand(),
    **kwargs,
  )


def records(directory):
  return files.read_json_lines(os.path.join(directory, 'metrics.jsonl'))


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """(directory, variables, seconds, calls of the validation) of two stages."""
  directory = str(tmp_path_factory.mktemp('trained'))
  calls = []

  def accuracies(variables):
    calls.append(sorted(variables['params']))
    # Higher once, in the middle: the best is not the last.
    robust = 0.9 if len(calls) == 1 else 0.1
    return {'clean_accuracy': 0.5, 'robust_accuracy': robust}

  pictures = {'images/clean': np.zeros((2, *SHAPE))}
  validation = Validation(lambda variables: (accuracies(variables), pictures))
  stages = [
    make_stage('main_head', validation=validation, keep='best'),
    make_stage('second_head', ema=True),
  ]
  variables, seconds = loop.train(
    stages,
    directory,
    image_shape=SHAPE,
    intervals=Intervals(log_steps=2, checkpoint_steps=4, validation_epochs=1),
  )
  return directory, variables, seconds, calls


def test_intervals(trained):
  directory, _, seconds, calls = trained
  rows = records(directory)
  for stage, steps in (
    ('main_head', [2, 3, 4, 6]),  # validated after steps 3 and 6
    ('second_head', [2, 4, 6]),
  ):
    assert steps == [
      row['step']
      for row in rows
      if row['stage'] == stage and 'train/loss' in row
    ]
  assert len(calls) == 2
  assert calls[0] == ['main_head', 'trunk']
  assert list(seconds) == ['main_head', 'second_head']
  folder = loop.checkpoint_folder(directory, 'second_head')
  assert stored.steps(folder) == [4, 6]


def test_compilation_is_no_part_of_the_speed(trained):
  """It has a record's key of its own; the step that compiles is left out."""
  directory, *_ = trained
  for stage in ('main_head', 'second_head'):
    first, *others = [
      row
      for row in records(directory)
      if row['stage'] == stage and 'train/loss' in row
    ]
    assert first['step'] == 2
    # Not 8 images in the time to compile: 4 in that of a step.
    assert first['train/images_per_second'] > 8 / first['train/compile_seconds']
    assert all('train/images_per_second' in row for row in others)
    assert not any('train/compile_seconds' in row for row in others)


def test_the_best_checkpoint_is_handed_on(trained):
  directory, variables, _, _ = trained
  folder = loop.checkpoint_folder(directory, 'main_head')
  best = stored.read_variables(folder, keep='best')
  last = stored.read_variables(folder, keep='last')
  for part in ('trunk', 'main_head'):
    expected = jax.tree.leaves(best['params'][part])
    actual = jax.tree.leaves(variables['params'][part])
    for one, other in zip(actual, expected, strict=True):
      np.testing.assert_array_equal(one, other)
  kernels = [tree['params']['trunk']['conv']['kernel'] for tree in (best, last)]
  assert not np.array_equal(*kernels)


def test_stored_variables_are_what_is_handed_on(trained):
  """Averaged weights included."""
  directory, variables, _, _ = trained
  folder = loop.checkpoint_folder(directory, 'second_head')
  read = stored.read_variables(folder, keep='last')
  assert jax.tree.structure(read) == jax.tree.structure(variables)
  jax.tree.map(np.testing.assert_array_equal, read, variables)


def test_called_again_it_trains_nothing(trained):
  directory, variables, _, calls = trained
  before = records(directory)
  again, _ = loop.train(
    [make_stage('main_head', keep='best'), make_stage('second_head', ema=True)],
    directory,
    image_shape=SHAPE,
  )
  jax.tree.map(np.testing.assert_array_equal, again, variables)
  assert records(directory) == before
  assert len(calls) == 2


def test_a_stage_of_no_steps_is_handed_on(tmp_path):
  stage = make_stage('main_head', num_steps=0)
  variables, _ = loop.train([stage], str(tmp_path), image_shape=SHAPE)
  folder = loop.checkpoint_folder(str(tmp_path), 'main_head')
  assert stored.steps(folder) == [0]
  assert set(variables['params']) == {'trunk', 'main_head'}
  # Nothing that would have to be closed was opened.
  assert not (tmp_path / 'metrics.jsonl').exists()
  assert not (tmp_path / 'tensorboard').exists()


@pytest.mark.parametrize('ema', [False, True])
def test_a_stage_of_no_steps_may_be_fitted(tmp_path, ema):
  calls = []

  def fit(variables):
    calls.append(variables)
    if len(calls) == 1:
      raise KeyboardInterrupt  # killed
    bias = np.full(3, 7, np.float32)
    head = devices.to_host(variables['params']['main_head'])
    head['classifier']['dense']['bias'] = bias
    return Fitted({'main_head': head}, {'share': 0.25})

  def train(fit, **options):
    stage = make_stage('main_head', num_steps=0, fit=fit, ema=ema, keep='best')
    return loop.train([stage], str(tmp_path), image_shape=SHAPE, **options)[0]

  with pytest.raises(KeyboardInterrupt):
    train(fit)
  variables = train(fit)
  assert np.ndim(calls[1]['params']['trunk']['conv']['kernel']) == 5  # devices
  dense = variables['params']['main_head']['classifier']['dense']
  assert dense['bias'].tolist() == [7, 7, 7]
  expected = {'stage': 'main_head', 'step': 0, 'fit/share': 0.25}
  assert records(str(tmp_path)) == [expected]
  # Done, and stored: neither is it fitted again nor recorded.
  for options in ({}, {'mode': 'evaluate'}):
    again = train(fit, **options)
    jax.tree.map(np.testing.assert_array_equal, again, variables)
  assert len(calls) == 2
  assert records(str(tmp_path)) == [expected]
  folder = loop.checkpoint_folder(str(tmp_path), 'main_head')
  stored_dense = stored.read_variables(folder, keep='best')['params'][
    'main_head'
  ]['classifier']['dense']
  assert stored_dense['bias'].tolist() == [7, 7, 7]


def test_a_fit_that_is_not_finite_saves_nothing(tmp_path):
  def fit(variables):
    del variables
    return Fitted({'main_head': {'bias': np.float32('nan')}}, {})

  stage = make_stage('main_head', num_steps=0, fit=fit)
  with pytest.raises(
    metrics.NonFiniteError, match='bias not finite in the fit'
  ):
    loop.train([stage], str(tmp_path), image_shape=SHAPE)
  folder = loop.checkpoint_folder(str(tmp_path), 'main_head')
  assert not stored.steps(folder)


def test_a_record_of_a_killed_fit_is_dropped(tmp_path):
  for share in (0.5, 0.25):
    with metrics.Writer(str(tmp_path), 'main_head', -1) as writer:
      writer.write(0, {'fit/share': share})
  assert [row['fit/share'] for row in records(str(tmp_path))] == [0.25]


def test_shuffled_split_as_source(tmp_path):
  rng = np.random.default_rng(0)
  split = Split(
    rng.integers(0, 256, (12, *SHAPE), np.uint8),
    np.arange(12, dtype=np.int32) % 3,
  )
  source = ShuffledSplit(split, batch_size=4, seed=0)
  stage = make_stage('main_head', source, num_steps=3)
  loop.train(
    [stage],
    str(tmp_path),
    image_shape=SHAPE,
    intervals=Intervals(log_steps=1),
  )
  rows = records(str(tmp_path))
  # The first record is of the step that compiles alone.
  assert ['train/images_per_second' in row for row in rows] == [
    False,
    True,
    True,
  ]
  assert rows[0]['train/compile_seconds'] > 0
  losses_ = [row['train/loss'] for row in rows]
  assert len(set(losses_)) == 3
  assert np.isfinite(losses_).all()
  assert [row['train/learning_rate'] for row in rows] == [
    pytest.approx(0.05)
  ] * 3
  assert not any('train/momentum' in row for row in rows)


def test_not_finite_stops_at_its_step(tmp_path):
  class Broken(ByHand):
    def batch(self, step):
      images = np.full((4, *SHAPE), np.nan if step == 2 else 0.5, np.float32)
      return {**super().batch(step), 'images': images}

  with pytest.raises(metrics.NonFiniteError, match='at step 3 of stage main_h'):
    loop.train(
      [make_stage('main_head', Broken())], str(tmp_path), image_shape=SHAPE
    )
  folder = loop.checkpoint_folder(str(tmp_path), 'main_head')
  assert not stored.steps(folder)


def test_no_whole_checkpoint(tmp_path):
  with pytest.raises(ValueError, match='holds no whole checkpoint'):
    stored.read_variables(str(tmp_path), keep='best')
