"""The experiment on CIFAR-10, with tiny stand-ins of its images."""

import dataclasses
import os
import types

import numpy as np
import pytest
from PIL import Image

from dhat_jax import from_config
from dhat_jax.runtime import documents, lock
from experiments import cifar10, cifar10_budget, costs, runs
from tests.helpers import tiny  # noqa: F401 - registers the backbone 'tiny'

SHAPE = (32, 32, 3)
TINY = cifar10.Scale(
  backbone='tiny',
  wide='tiny',
  epochs=(1.0, 1.0, 1.0),
  wide_epochs=2.0,
  attack={'steps': 1, 'step_size_255': 8.0},
  batch_size=10,
  train_images=35,
  test_images=20,
  every_steps=1,
  evaluation={'batch_size': 20, 'attacks': ('clean', 'pgd_2')},
  last_attack='fgsm',
  attacked_images=10,
  digests=None,
  overrides={
    'dataset.validation_size': 15,
    'validation.attack': 'pgd_2',
  },
)


def make_arrays():
  """Random images, in the arrays of Keras."""
  rng = np.random.default_rng(0)
  arrays = {}
  for split, count in (('train', 40), ('test', 30)):
    arrays[f'x_{split}'] = rng.integers(256, size=(count, *SHAPE), dtype='u1')
    arrays[f'y_{split}'] = rng.permutation(count).astype('u1') % 10
  return arrays


@pytest.fixture
def data_dir(tmp_path):
  folder = tmp_path / 'data'
  folder.mkdir()
  np.savez(folder / 'cifar10.npz', **make_arrays())
  return str(folder)


@pytest.fixture
def options(tmp_path, data_dir):
  return types.SimpleNamespace(
    seeds=(0,),
    workdir=str(tmp_path / 'runs'),
    json=str(tmp_path / 'table.json'),
    data_dir=data_dir,
    autoattack=False,
  )


def test_a_folder_gives_the_same_arrays(tmp_path, data_dir, monkeypatch):
  monkeypatch.setenv('DHAT_JAX_CACHE', str(tmp_path / 'cache'))
  arrays = make_arrays()
  for split in ('train', 'test'):
    rows = zip(arrays[f'x_{split}'], arrays[f'y_{split}'], strict=True)
    for index, (image, label) in enumerate(rows):
      folder = tmp_path / 'folder' / split / str(label)
      folder.mkdir(parents=True, exist_ok=True)
      Image.fromarray(image).save(folder / f'{index}.png')
  datasets = map(cifar10.load, (data_dir, str(tmp_path / 'folder')))
  first, second = (
    [cifar10.ordered(part).digest() for part in (d.train, d.test)]
    for d in datasets
  )
  assert first == second


def test_other_images_are_refused(tmp_path, data_dir):
  scale = dataclasses.replace(TINY, digests=cifar10.DIGESTS)
  path = tmp_path / 'images.npz'
  with pytest.raises(ValueError, match='expected those of the original'):
    cifar10.write_images(data_dir, str(path), scale)
  assert not path.exists()


def check_rows(scale, data_dir):
  """Asserts that the runs of a seed can be made; returns its rows."""
  path = os.path.join(data_dir, 'cifar10.npz')
  rows = {entry.variant: entry for entry in cifar10.of_seed(scale, 3, path)}
  for run in {entry.run.name: entry.run for entry in rows.values()}.values():
    from_config.check(run.config)
    assert run.config.seed == 3
    if run.source is not None:
      runs._same_beginning(run)
  return rows['single head, wide'], rows['DH-AT, pairwise']


def test_equal_terms(data_dir):
  """The wide head and DH-AT: as many parameters, as many multiply-adds."""
  wide, dual = (
    costs.of(entry.run.config, entry.output, SHAPE, 5_000)
    for entry in check_rows(cifar10.SCALES['cpu'], data_dir)
  )
  assert wide == pytest.approx(dual, rel=0.01)


def test_equal_parameters_on_a_gpu(data_dir):
  wide, dual = (
    costs.parameters(entry.run.config, entry.output, SHAPE)
    for entry in check_rows(cifar10.SCALES['gpu'], data_dir)
  )
  assert wide == pytest.approx(dual, rel=0.01)


def test_budget():
  measured = cifar10_budget.measure(
    repeats=1, backbones=('tiny',), attack_steps=(1, 2)
  )
  assert [row['attack_steps'] for row in measured['rows']] == [1, 2]
  assert all(row['hours_of_15_epochs'] > 0 for row in measured['rows'])
  needed = {row['run']: row['gmacs'] for row in measured['experiment']}
  entries = cifar10.of_seed(cifar10.SCALES['cpu'], 0, 'images.npz')
  for entry in entries:
    name = entry.run.name.partition('/')[2]
    whole = costs.training_gmacs(entry.run.config, entry.output, SHAPE, 5_000)
    if entry.variant in ('DH-AT, pairwise', 'single head, wide'):
      assert needed[name] == pytest.approx(whole)
    if entry.run.shared:  # what another run trains is not counted again
      assert 0 < needed[name] < whole


def test_a_seed_is_complete_before_the_next_one():
  entries = cifar10.in_order(cifar10.SCALES['cpu'], (1, 7), 'images.npz')
  names = list(dict.fromkeys(entry.run.name for entry in entries))
  assert names[:4] == ['0/dual', '0/wide', '0/classwise', '0/mixed']
  assert names[4] == '0/published_rate'
  assert names[5:8] == ['1/dual', '2/dual', '7/dual']
  assert len(names) == 20


def test_from_end_to_end(options):
  """Trains what no other process is at, attacks it, goes on where it was."""
  with lock.held(os.path.join(options.workdir, '0', 'dual')):
    cifar10.perform(options, TINY)
    options.autoattack = True
    cifar10.perform(options, TINY)
  document = documents.read(options.json)
  assert document['experiment'] == 'cifar10'
  # Those that begin as the other process's run wait for it.
  (row,) = document['rows']
  assert row['variant'] == 'single head, wide'
  assert document['missing'] == 6
  assert row['n_test'] == 20
  assert list(row['accuracy']) == ['clean', 'pgd_2', 'fgsm']
