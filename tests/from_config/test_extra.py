"""Extra images in a config: checked at once, mixed into any data set."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from dhat_jax import from_config, main
from dhat_jax.configs import cifar10, digits
from dhat_jax.datasets import batches, loaders
from dhat_jax.datasets.base import Source
from dhat_jax.datasets.extra import MixedBatches
from dhat_jax.from_config import data
from tests.helpers import tiny  # noqa: F401 - registers the backbone 'tiny'


@pytest.fixture
def path(tmp_path):
  rng = np.random.default_rng(0)
  path = str(tmp_path / 'generated_1.npz')
  images = rng.integers(0, 256, (30, 8, 8, 1), np.uint8)
  np.savez(path, image=images, label=np.arange(30) % 10)
  return path


@pytest.fixture
def config(path):
  config = digits.get_config()
  config.model.backbone = 'tiny'
  config.dataset.extra.files = (path,)
  return config


def refused(config):
  with pytest.raises(ValueError) as error:  # noqa: PT011 - the caller matches
    from_config.check(config)
  assert '\n' not in str(error.value)
  return str(error.value)


@pytest.mark.parametrize('fraction', [0.0, 1.0, -0.1, 1.5, 'x', True])
def test_fraction(config, fraction):
  """Also where no file is named."""
  for files in (config.dataset.extra.files, ()):
    config.dataset.extra = ConfigDict({'files': files, 'fraction': fraction})
    assert refused(config).startswith('config.dataset.extra.fraction: got')


def test_fraction_of_every_stage(config):
  config.dataset.extra.fraction = 0.02
  config.aggregator.batch_size = 48
  assert refused(config) == (
    'config.dataset.extra.fraction: got 0.02, which gives 0 extra images in a '
    'batch of 48; expected from 1 to 47 (config.aggregator.batch_size)'
  )


@pytest.mark.parametrize(
  ('files', 'message'),
  [
    ('', "got '', expected a tuple"),
    (3, 'got 3, expected a tuple'),
    ({}, 'expected a tuple'),
    (('/none.npz',), "got '/none.npz', which is no file and no pattern of any"),
    (('x' * 5000,), 'is not a readable path'),
    (('a\0b',), 'is not a readable path'),
  ],
)
def test_wrong_files(config, files, message):
  with config.unlocked():
    config.dataset.extra = {'files': files, 'fraction': 0.7}
  got = refused(config)
  assert got.startswith('config.dataset.extra.files')
  assert message in got


def test_classes_and_size(config):
  """Found before the data set is loaded."""
  config.dataset.num_classes = 9
  assert 'label: labels from 0 to 9, expected in [0, 9)' in refused(config)
  larger = cifar10.get_config('trades_resnet18')
  larger.dataset.extra.files = config.dataset.extra.files
  got = refused(larger)
  assert got.startswith('config.dataset.extra.files: ')
  assert 'images are (8, 8, 1), those of the data set (32, 32, 3)' in got


def test_size_that_is_only_known_with_the_data(config):
  config.dataset.loader = 'digits_of_unknown_size'

  @loaders.register('digits_of_unknown_size')
  def make():
    split = batches.Split(np.zeros((99, 4, 4, 1), 'u1'), np.zeros(99, 'i4'))
    dataset = loaders.DATASETS.make('digits').dataset
    return Source(lambda: type(dataset)(split, split, dataset.class_names, 'x'))

  from_config.check(config)
  dataset = from_config.load_dataset(config)
  config.dataset.validation_size = 0
  with pytest.raises(ValueError, match=r'extra\.files: .*the data set \(4, 4,'):
    from_config.make_experiment(config, dataset)


def test_from_the_command_line(path):
  flag = '--config.dataset.extra.files'
  pattern = path.replace('_1', '_?')
  for value, expected in (
    (path, (path,)),
    (pattern, (pattern,)),
    (f'("{path}","{path}")', (path, path)),
    ('()', ()),
  ):
    argv = ['main', '--config=configs/digits.py', f'{flag}={value}']
    config = main.parse(argv).config
    assert config.dataset.extra.files == expected
    from_config.check(config)
    again = ConfigDict(json.loads(json.dumps(from_config.as_json(config))))
    from_config.check(again)


def test_a_name_alone(config, path):
  """In a config file, one path needs no tuple."""
  with config.ignore_type():
    config.dataset.extra.files = path
  from_config.check(config)
  assert len(data.make_extra(config)) == 30


def test_what_may_be_left_out(config):
  del config.dataset.extra['fraction']
  from_config.check(config)
  assert from_config.completed(config).dataset.extra.fraction == 0.7
  del config.dataset['extra']
  from_config.check(config)
  assert data.make_extra(config) is None


def test_an_experiment_with_extra_images(config):
  dataset = from_config.load_dataset(config)
  experiment = from_config.make_experiment(config, dataset)
  for stage in experiment.stages:
    batch = stage.source.batch(3)
    assert (~batch['own']).sum() == 44  # .7 * 64 = 44.8
    # 1437 - 128 images, 20.5 batches of 64.
    assert stage.steps_per_epoch == stage.source.steps_per_epoch == 21
    epochs = config[stage.name].epochs
    assert stage.num_steps == epochs * 21
  first, second = (stage.source.batch(0) for stage in experiment.stages[:2])
  assert not np.array_equal(first['images'], second['images'])


def test_batches_of_a_data_set_s_own_are_mixed_too(config):
  config.dataset.loader = 'digits_in_reverse'
  dataset = from_config.load_dataset(digits.get_config())

  class Reverse:
    def __init__(self, split, *, batch_size, **options):
      del options
      self._split, self._size = split, batch_size

    def batch(self, step):
      del step
      images = self._split.images[: -self._size - 1 : -1]
      labels = self._split.labels[: -self._size - 1 : -1]
      mask = np.ones(self._size, bool)
      return {'images': images, 'labels': labels, 'mask': mask}

  @loaders.register('digits_in_reverse')
  def make():
    return Source(lambda: dataset, (8, 8, 1), make_batches=Reverse)

  make_batches = data.batch_maker(config, dataset)
  source = make_batches(dataset.train, batch_size=10, seed=0)
  assert isinstance(source, MixedBatches)
  batch = source.batch(0)
  expected = dataset.train.images[:-4:-1]
  np.testing.assert_array_equal(batch['images'][batch['own']], expected)


def test_a_twin_and_a_copy_have_the_same_digest(config, path, tmp_path):
  dataset = from_config.load_dataset(config)
  digests = from_config.digests(config, dataset)
  assert digests.keys() == {'train', 'test', 'extra'}
  arrays = dict(np.load(path))
  np.savez(tmp_path / 'copy.npz', **arrays)
  config.dataset.extra.files = (str(tmp_path / 'copy.npz'),)
  assert from_config.digests(config, dataset) == digests
  arrays['image'][29, 7, 7, 0] ^= 1
  np.savez(tmp_path / 'copy.npz', **arrays)
  other = from_config.digests(config, dataset)
  assert {key for key in other if other[key] != digests[key]} == {'extra'}
