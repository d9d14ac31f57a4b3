"""The experiments: stages in common, equal terms, from end to end."""

import os
import types

import numpy as np
import orbax.checkpoint as ocp
import pytest

from dhat_jax import from_config
from dhat_jax.datasets import digits as datasets_digits
from dhat_jax.runtime import documents
from dhat_jax.training import loop
from dhat_jax.training.stages import roles
from experiments import (
  ablations,
  costs,
  digits,
  generated_digits,
  modern,
  packing,
  runs,
  tables,
)
from experiments.runs import Entry, Run
from tests.helpers import tiny_run
from tests.helpers.tiny import flat


def test_every_run_builds_and_shares_rightly():
  entries = [e for base in digits.BASES for e in digits.of_seed(base, 3)]
  check_runs([*entries, *ablations.of_seed(3)])  # of one workdir


def test_modern_runs_build_and_share_rightly(tmp_path):
  generated_digits.write(str(tmp_path / modern.GENERATED), 100)
  entries = modern.of_seed(3, str(tmp_path))
  check_runs(entries)
  stages = [
    from_config.make_stage(entry.run.config, 'main_head', 1309)
    for entry in entries
    if entry.group == 'single head'
  ]
  assert len(stages) == len(modern.VARIANTS)
  # AWP and SAM alone, and AWP in both that have all.
  assert sum(stage.gradients == 2 for stage in stages) == 4
  long = [e for e in entries if e.variant == 'together' and 'times' in e.group]
  specs = [entry.run.config.main_head for entry in long]
  assert [spec.epochs for spec in specs] == [30, 100]
  assert specs[0].schedule.name == 'one_cycle'


def test_generated_digits(tmp_path):
  """As many of each class, sorted, the same each time, no copies."""
  arrays = generated_digits.generate(200)
  images, labels = arrays['image'], arrays['label']
  assert (images.shape, images.dtype) == ((200, 8, 8, 1), np.uint8)
  assert (labels == np.repeat(np.arange(10), 20)).all()
  again = generated_digits.generate(200)
  np.testing.assert_array_equal(images, again['image'])
  known = {image.tobytes() for image in datasets_digits.load().train.images}
  assert not any(image.tobytes() in known for image in images)
  # Of about the brightness of the real ones.
  real = datasets_digits.load().train.images.mean()
  assert images.mean() == pytest.approx(real, rel=0.05)


def check_runs(entries):
  """Asserts that the runs of entries build, and share what they may share."""
  configs = {}
  for entry in entries:
    config = entry.run.config
    from_config.check(config)
    assert config.seed == 3
    text = config.to_json()
    assert configs.setdefault(entry.run.name, text) == text
    if entry.run.source is not None:
      runs._same_beginning(entry.run)


def wide_and_dual(entries):
  by_variant = {entry.variant: entry for entry in entries}
  return by_variant['single head, wide'], by_variant['DH-AT, pairwise']


def test_wide_head_is_as_large():
  """As many parameters, and a training of 1.035 times the multiply-adds."""
  entries = list(digits.of_seed('trades', 0))
  wide, dual = (
    costs.of(
      entry.run.config, entry.output, digits.IMAGE_SHAPE, digits.NUM_TRAIN
    )
    for entry in wide_and_dual(entries)
  )
  assert wide['parameters'] == pytest.approx(dual['parameters'], rel=0.01)
  ratio = wide['training_gmacs'] / dual['training_gmacs']
  assert ratio == pytest.approx(1.035, rel=0.01)


def test_joint_training_costs_as_much():
  rows = {e.variant: e for e in ablations.of_seed(0) if e.group == 'training'}
  first, second = (
    costs.training_gmacs(
      e.run.config, e.output, digits.IMAGE_SHAPE, digits.NUM_TRAIN
    )
    for e in rows.values()
  )
  assert first == pytest.approx(second, rel=0.01)


def test_stages_that_differ_are_not_shared():
  dual = Run('dual', digits.make_config('trades', 0))
  other = digits.changed(dual.config, second_head__loss__beta=1.0)
  run = Run('other', other, dual, ('main_head', 'second_head'))
  with pytest.raises(ValueError, match=r"second_head\.loss\.beta'] differ"):
    runs._same_beginning(run)
  runs._same_beginning(Run('other', other, dual, ('main_head',)))
  drifting = digits.changed(dual.config, model__freeze_statistics=False)
  runs._same_beginning(Run('other', drifting, dual, ('main_head',)))
  with pytest.raises(ValueError, match='freeze_statistics'):
    runs._same_beginning(
      Run('other', drifting, dual, ('main_head', 'second_head'))
    )


@pytest.mark.parametrize('path', ['cifar10', 'data/cifar10'])
def test_the_stored_command_is_of_no_machine(path):
  arguments = [f'--data_dir={path}', '--workdir=runs/x', '--seeds=0,1']
  assert runs._shown(arguments) == ['--data_dir=cifar10', '--seeds=0,1']


def tiny_entries(seed):
  """A run, and one that takes over its first two stages."""
  values = {
    'seed': seed,
    'evaluation.attacks': ('clean', 'pgd_2'),
    'evaluation.audit': True,
    'evaluation.audit_steps': 2,
    'evaluation.audit_queries': 0,
    'evaluation.batch_size': 360,
    'checkpoint.every_steps': 100,
    'dataset.validation_size': 0,
    **{f'{stage}.keep': 'last' for stage in roles()},
  }
  dual = Run(f'dual_{seed}', tiny_run.get_config(**values))
  classwise = digits.changed(dual.config, model__aggregator='classwise')
  classwise = Run(
    f'classwise_{seed}', classwise, dual, ('main_head', 'second_head')
  )
  return [
    Entry('trades', 'single head', seed, dual, 'main'),
    Entry('trades', 'DH-AT, classwise', seed, classwise, 'aggregated'),
  ]


@pytest.fixture
def perform(tmp_path):
  """Runs the tiny experiment on some seeds; returns its JSON."""

  def make(*seeds):
    options = types.SimpleNamespace(
      seeds=seeds,
      workdir=str(tmp_path / 'runs'),
      json=str(tmp_path / 'results' / 'tiny.json'),
    )
    runs.main(
      [entry for seed in (0, 1) for entry in tiny_entries(seed)],
      options,
      image_shape=(8, 8, 1),
      num_train=1437,
      caption={'experiment': 'tiny', 'data': 'digits'},
    )
    return documents.read(options.json)

  return make


def test_experiment_from_end_to_end(perform, tmp_path):
  document = perform(0)
  assert document['kind'] == 'experiment'
  assert document['missing'] == 2
  assert [row['variant'] for row in document['rows']] == [
    'single head',
    'DH-AT, classwise',
  ]
  single, dual = document['rows']
  assert single['training_gmacs'] < dual['training_gmacs']
  assert single['parameters'] < dual['parameters']
  assert single['red_flags'] is None
  assert isinstance(dual['red_flags'], list)
  assert dual['worst_case'] <= min(dual['accuracy'].values())
  for row in document['rows']:
    for attack, accuracy in row['accuracy'].items():
      right = packing.unpack(row['images'][attack])
      assert right.mean() == pytest.approx(accuracy)
      assert len(right) == row['n_test'] == 360
  # What was taken over is what the source trained, bit for bit.
  workdirs = tmp_path / 'runs'
  checkpoints = [
    flat_checkpoint(workdirs / name, 'second_head')
    for name in ('dual_0', 'classwise_0')
  ]
  assert checkpoints[0].keys() == checkpoints[1].keys()
  for name, array in checkpoints[0].items():
    np.testing.assert_array_equal(array, checkpoints[1][name])
  # What is there is not made again.
  path = workdirs / 'dual_0' / 'results.json'
  before = path.stat().st_mtime_ns
  assert perform(0)['rows'] == document['rows']
  assert path.stat().st_mtime_ns == before
  for view in ('accuracies', 'differences'):
    assert '\n| trades ' in tables.table(document, view)[0]


def test_a_copy_cut_short_does_not_count(tmp_path):
  dual, classwise = (entry.run for entry in tiny_entries(0))
  stages = tmp_path / dual.name / 'checkpoints'
  for stage in classwise.shared:
    (stages / stage / '10').mkdir(parents=True)
    (stages / stage / '10' / 'array').write_text(stage)
  copies = tmp_path / classwise.name / 'checkpoints'
  (copies / 'main_head.half' / '9').mkdir(parents=True)
  for _ in range(2):  # again: nothing to do
    runs._take_over(classwise, str(tmp_path))
    assert sorted(os.listdir(copies)) == ['main_head', 'second_head']
    for stage in classwise.shared:
      assert os.listdir(copies / stage) == ['10']
      assert (copies / stage / '10' / 'array').read_text() == stage


def flat_checkpoint(workdir, stage):
  """Returns {name: array} of the newest checkpoint."""
  folder = loop.checkpoint_folder(str(workdir), stage)
  newest = max(int(name) for name in os.listdir(folder) if name.isdigit())
  with ocp.PyTreeCheckpointer() as reader:
    return flat(reader.restore(os.path.join(folder, str(newest), 'state')))
