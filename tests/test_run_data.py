"""A run knows its data by content: changed is refused, a copy is the same."""

import logging
import os
import shutil

import jax
import numpy as np
import pytest

from dhat_jax import from_config
from dhat_jax.datasets import digits, loaders
from dhat_jax.datasets.base import Source, Split
from dhat_jax.datasets.batches import ShuffledSplit
from dhat_jax.run import load_run, prepare_workdir, train_and_evaluate
from dhat_jax.runtime import files
from tests.helpers import tiny_run


def write(path, change=None):
  """Writes 200 + 60 digits; `change` takes the arrays before."""
  data = digits.load()
  arrays = {
    'x_train': data.train.images[:200].copy(),
    'y_train': data.train.labels[:200].copy(),
    'x_test': data.test.images[:60].copy(),
    'y_test': data.test.labels[:60].copy(),
  }
  if change is not None:
    change(arrays)
  np.savez(path, **arrays)
  return str(path)


def write_extra(path, change=lambda images: None):
  """Writes 30 other digits, as generated images are stored."""
  data = digits.load().train
  images = data.images[200:230].copy()
  change(images)
  np.savez(path, image=images, label=data.labels[200:230])
  return str(path)


def config_of(path, **overrides):
  """The config of a run whose extra images lie beside its data."""
  beside = os.path.join(os.path.dirname(path), 'extra.npz')
  if not os.path.exists(beside):
    write_extra(beside)
  return tiny_run.get_config(
    **{
      'dataset.name': 'few digits',
      'dataset.loader': 'npz',
      'dataset.data_dir': path,
      'dataset.validation_size': 0,
      'dataset.extra.files': (beside,),
      'main_head.epochs': 2,  # of 4 steps each
      'stages': ('main_head',),
      'main_head.keep': 'last',
      'evaluation.attacks': ('clean', 'pgd_2'),
      **overrides,
    }
  )


def swap_two_classes(arrays):
  labels = arrays['y_train']
  arrays['y_train'] = np.where(labels == 3, 5, np.where(labels == 5, 3, labels))


def change_one_test_pixel(arrays):
  arrays['x_test'][7, 4, 4] ^= 1


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """(workdir, path of the data) of a finished run."""
  folder = tmp_path_factory.mktemp('data')
  path = write(folder / 'digits.npz')
  train_and_evaluate(config_of(path), str(folder / 'run'))
  return str(folder / 'run'), path


@pytest.fixture
def stopped(trained, tmp_path):
  """(workdir, path of the data) of a run that lacks its results."""
  workdir = str(tmp_path / 'run')
  shutil.copytree(trained[0], workdir)
  os.remove(os.path.join(workdir, 'results.json'))
  return workdir, trained[1]


def listing(folder):
  return sorted(
    os.path.join(base, name)
    for base, _, names in os.walk(folder)
    for name in names
  )


def test_the_digests_are_kept(trained):
  workdir, path = trained
  stored = files.read_json(os.path.join(workdir, 'data.json'))
  config = config_of(path)
  dataset = from_config.load_dataset(config)
  assert stored == {'digests': from_config.digests(config, dataset)}
  assert set(stored['digests']) == {'train', 'test', 'extra'}
  assert {len(digest) for digest in stored['digests'].values()} == {32}
  assert not os.path.exists(os.path.join(workdir, '.lock'))


@pytest.mark.parametrize('there', [True, False])
@pytest.mark.parametrize(
  ('change', 'split'),
  [(swap_two_classes, 'train'), (change_one_test_pixel, 'test')],
)
def test_other_data_is_refused(stopped, tmp_path, change, split, there):
  """At the same path, or at another one."""
  workdir, _ = stopped
  path = write(tmp_path / 'changed.npz', change)
  config = config_of(path)
  if there:
    stored = files.read_json(os.path.join(workdir, 'config.json'))
    stored['dataset']['data_dir'] = path
    files.write_json(os.path.join(workdir, 'config.json'), stored)
  before = listing(workdir)
  expected = files.read_json(os.path.join(workdir, 'data.json'))['digests']
  with pytest.raises(ValueError, match='the data changed') as error:
    train_and_evaluate(config, workdir)
  got = from_config.load_dataset(config).digests()
  message = str(error.value)
  assert f'of its {split!r} is {got[split]}, expected {expected[split]}' in (
    message
  )
  assert 'choose another --workdir' in message
  assert listing(workdir) == before


def change_one_pixel(images):
  images[7, 4, 4] ^= 1


def extra_of(case, folder):
  """What may not be given in place of the run's extra images."""
  if case == 'none':
    return ()
  changed = write_extra(folder / 'changed.npz', change_one_pixel)
  same = write_extra(folder / 'extra.npz')
  return (changed,) if case == 'changed' else (same, same)


@pytest.mark.parametrize('case', ['none', 'changed', 'twice'])
def test_other_extra_images_are_refused(stopped, trained, tmp_path, case):
  workdir, path = stopped
  given = {'dataset.extra.files': extra_of(case, tmp_path)}
  before = listing(workdir)
  with pytest.raises(ValueError, match="of its 'extra' is"):
    train_and_evaluate(config_of(path, **given), workdir)
  with pytest.raises(ValueError, match="of its 'extra' is"):
    train_and_evaluate(config_of(path, **given), trained[0])
  assert listing(workdir) == before


def test_evaluation_does_not_look_at_the_extra_images(stopped, tmp_path):
  """Others may stand in where the run's own are not at hand."""
  workdir, path = stopped
  given = {'dataset.extra.files': extra_of('changed', tmp_path)}
  config = config_of(path, **given)
  assert train_and_evaluate(config, workdir, mode='evaluate')


def test_extra_images_are_no_part_of_a_run_without(tmp_path):
  path = write(tmp_path / 'digits.npz')
  without = config_of(path, **{'dataset.extra.files': ()})
  data = {'train': 'a', 'test': 'b'}
  prepare_workdir(without, str(tmp_path / 'run'), data=data)
  with pytest.raises(ValueError, match="of its 'extra' is c, expected None"):
    prepare_workdir(
      config_of(path), str(tmp_path / 'run'), data={**data, 'extra': 'c'}
    )


def test_a_run_with_extra_images_resumes_bit_for_bit(trained, stopped):
  workdir, path = stopped
  checkpoints = os.path.join(workdir, 'checkpoints', 'main_head')
  steps = sorted(int(name) for name in os.listdir(checkpoints))
  assert steps[-1] == 8
  for step in steps[1:]:
    shutil.rmtree(os.path.join(checkpoints, str(step)))
  train_and_evaluate(config_of(path), workdir)
  resumed, whole = (load_run(name).variables for name in (workdir, trained[0]))
  jax.tree.map(np.testing.assert_array_equal, resumed, whole)


def test_a_copy_elsewhere_is_the_same_data(stopped, tmp_path):
  workdir, _ = stopped
  path = write(tmp_path / 'copy.npz')
  results = train_and_evaluate(config_of(path), workdir)
  assert results['n_test'] == 60
  assert files.read_json(f'{workdir}/config.json')['dataset'][
    'data_dir'
  ].endswith('digits.npz')


def test_a_finished_run_is_not_that_of_other_data(trained, tmp_path):
  workdir, _ = trained
  path = write(tmp_path / 'changed.npz', swap_two_classes)
  with pytest.raises(ValueError, match='the data changed'):
    train_and_evaluate(config_of(path), workdir)
  assert train_and_evaluate(config_of(write(tmp_path / 'a.npz')), workdir)


def test_evaluation_is_on_the_same_test_images(stopped, tmp_path):
  workdir, _ = stopped
  path = write(tmp_path / 'changed.npz', change_one_test_pixel)
  with pytest.raises(ValueError, match="of its 'test' is"):
    train_and_evaluate(config_of(path), workdir, mode='evaluate')
  # What was trained on does not matter any more.
  path = write(tmp_path / 'changed.npz', swap_two_classes)
  assert train_and_evaluate(config_of(path), workdir, mode='evaluate')


def test_an_older_run_gets_its_digests_and_a_word(stopped, tmp_path, caplog):
  workdir, path = stopped
  os.remove(os.path.join(workdir, 'data.json'))
  with pytest.raises(ValueError, match=r'dataset\.data_dir: workdir has'):
    train_and_evaluate(config_of(write(tmp_path / 'copy.npz')), workdir)
  with caplog.at_level(logging.INFO, 'dhat_jax'):
    train_and_evaluate(config_of(path), workdir)
  assert 'from before runs kept a digest of their data' in caplog.text
  config = config_of(path)
  expected = from_config.digests(config, from_config.load_dataset(config))
  assert files.read_json(f'{workdir}/data.json')['digests'] == expected


def test_killed_before_the_config_was_written(tmp_path):
  """A digest without a config belongs to no run."""
  files.write_json(str(tmp_path / 'data.json'), {'digests': {'train': 'x'}})
  config = tiny_run.get_config()
  prepare_workdir(config, str(tmp_path), data={'train': 'y', 'test': 'z'})
  assert files.read_json(str(tmp_path / 'data.json'))['digests'] == {
    'train': 'y',
    'test': 'z',
  }


@pytest.mark.parametrize('text', ['{', '[]', '{"digests": 3}'])
def test_damaged_digests_name_the_file(tmp_path, text):
  config = tiny_run.get_config()
  data = {'train': 'y', 'test': 'z'}
  prepare_workdir(config, str(tmp_path), data=data)
  (tmp_path / 'data.json').write_text(text)
  with pytest.raises(ValueError, match=r'data\.json: not readable'):
    prepare_workdir(config, str(tmp_path), data=data)


def test_data_that_is_mixed_in_counts():
  """What a data set's own batches hold beside the training split."""

  def make(value):
    data = digits.load()
    other = Split(np.full_like(data.train.images, value), data.train.labels)
    name = f'mixed_{value}'

    @loaders.register(name)
    def mixed():
      return Source(
        load=lambda: data,
        make_batches=lambda _, **options: ShuffledSplit(other, **options),
      )

    config = tiny_run.get_config(**{'dataset.loader': name})
    return from_config.digests(config, data)

  one, two = make(1), make(2)
  assert {key for key in one if one[key] != two[key]} == {'batches'}
  assert one == {**one, **digits.load().digests()}


def test_a_digest_is_of_shape_and_labels_too():
  images = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
  labels = np.arange(2, dtype=np.int32)
  others = [
    Split(images.reshape(2, 3, 2, 2), labels),
    Split(images, labels[::-1]),
    Split(images[::-1], labels),
  ]
  digests = {split.digest() for split in (Split(images, labels), *others)}
  assert len(digests) == 4
  assert Split(images[:, :, ::-1][:, :, ::-1], labels).digest() in digests
