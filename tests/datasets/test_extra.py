"""Extra images: where they lie, and how they come into batches."""

import itertools
import pickle
import shutil
import tracemalloc
import zlib

import numpy as np
import pytest

from dhat_jax.datasets import batches, extra
from dhat_jax.datasets.base import Split
from tests.datasets.test_npz_arrays import run

CLASSES = 3


def numbered(count, first=0):
  """Images [count, 2, 2, 1] that hold their number, and labels of it."""
  number = np.arange(first, first + count)
  images = np.broadcast_to(number[:, None, None, None], (count, 2, 2, 1))
  return images.astype(np.uint8), number % CLASSES


def numbers(images):
  return images[:, 0, 0, 0].tolist()


def write(path, count=5, first=0, **change):
  images, labels = numbered(count, first)
  arrays = {'image': images, 'label': labels} | change
  np.savez(path, **{k: a for k, a in arrays.items() if a is not None})
  return str(path)


def opened(patterns, num_classes=CLASSES):
  return extra.ExtraImages(patterns, num_classes=num_classes)


# Files.


def test_parts_are_one_set_in_order(tmp_path):
  for name, count, first in (('b', 3, 100), ('a', 4, 0), ('c', 1, 200)):
    write(tmp_path / f'{name}.npz', count, first)
  images = opened([str(tmp_path / 'b.npz'), str(tmp_path / '[ac].npz')])
  assert len(images) == 8
  assert images.image_shape == (2, 2, 1)
  expected = [100, 101, 102, 0, 1, 2, 3, 200]
  got = images.take(np.arange(8))
  assert numbers(got.images) == expected
  assert got.labels.tolist() == [number % CLASSES for number in expected]
  assert (got.images.dtype, got.labels.dtype) == (np.uint8, np.int32)
  some = images.take(np.array([7, 2, 3, 3]))
  assert numbers(some.images) == [200, 102, 0, 0]
  assert len(images.take(np.array([], int)).labels) == 0


def test_a_file_in_place_of_a_list(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  path = write(tmp_path / 'one[1].npz')
  # It is there, so it is no pattern.
  for given in (path, [path], '~/one[1].npz', '~/one*'):
    assert extra.find_files(given) == [path]


def test_images_stay_in_the_file(tmp_path):
  """32 MB of images, and labels of one byte each: the rest is not in memory."""
  images = np.zeros((2000, 64, 64, 4), np.uint8)
  path = write(tmp_path / 'large.npz', image=images, label=np.ones(2000, int))
  del images
  tracemalloc.start()
  try:
    mapped = opened(path)
    mapped.take(np.arange(3))
    mapped.digest()
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  # The digest looks at 256 images, 4 MB.
  assert peak < 12 * 2**20


def test_grey_images_and_other_names(tmp_path):
  images, labels = numbered(5)
  path = write(
    tmp_path / 'grey.npz',
    image=None,
    label=None,
    images=images[..., 0],
    labels=labels[:, None].astype(np.uint8),
  )
  split = opened(path).take(np.arange(5))
  np.testing.assert_array_equal(split.images, images)
  assert split.labels.tolist() == labels.tolist()


def test_more_classes_than_a_byte_holds(tmp_path):
  path = write(tmp_path / 'many.npz', label=np.arange(5) + 296)
  labels = opened(path, num_classes=301).take(np.arange(5)).labels
  assert labels.tolist() == [296, 297, 298, 299, 300]


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'image': None}, r"holds \['label'\], expected one array 'image' or"),
    ({'label': None}, r"holds \['image'\], expected one array 'label' or"),
    (
      {'image': np.zeros((5, 2, 2, 1))},
      r'image: got float64 \(5, 2, 2, 1\), e',
    ),
    ({'image': np.zeros((5, 3, 4, 4, 1), np.uint8)}, 'image: got uint8'),
    (
      {'image': np.zeros((0, 2, 2, 1), np.uint8), 'label': np.zeros(0, int)},
      r'image: got uint8 \(0, 2, 2, 1\), expected uint8',
    ),
    ({'label': np.zeros(5)}, r'label: got float64 \(5,\), expected integers'),
    ({'label': np.eye(5, dtype=int)}, r'label: got int64 \(5, 5\)'),
    ({'label': np.zeros(4, int)}, 'image holds 5 images, label 4 labels'),
    ({'label': np.arange(5)}, r'label: labels from 0 to 4, expected in \[0, 3'),
    ({'label': np.arange(5) - 1}, r'label: labels from -1 to 3'),
    ({'label': np.full(5, 2**32)}, 'label: labels from 4294967296 to'),
  ],
)
def test_wrong_content(tmp_path, change, message):
  path = write(tmp_path / 'wrong.npz', **change)
  with pytest.raises(ValueError, match=message) as error:
    opened(path)
  assert str(error.value).startswith(path)
  assert '\n' not in str(error.value)


def test_labels_are_checked_in_all_chunks(tmp_path):
  count = 2**20 + 2
  labels = np.zeros(count, np.int8)
  labels[-1] = 3
  path = write(
    tmp_path / 'wrong.npz', image=np.zeros((count, 1, 1), 'u1'), label=labels
  )
  with pytest.raises(ValueError, match=r'labels from 0 to 3, expected in \[0,'):
    opened(path)


def test_wrong_files(tmp_path):
  write(tmp_path / 'one.npz')
  larger = np.zeros((5, 3, 2, 1), np.uint8)
  write(tmp_path / 'two.npz', image=larger)
  (tmp_path / 'three.npz').write_bytes(b'version https://git-lfs.github.com\n')
  for patterns, message in (
    ([], 'got no files'),
    (['/none*.npz'], r"got '/none\*\.npz', which is no file and no pattern"),
    ([str(tmp_path)], 'is a folder, expected an npz file'),
    (
      [str(tmp_path / 'one.npz'), str(tmp_path / 'two.npz')],
      r'two\.npz: images are \(3, 2, 1\), those of .*one\.npz \(2, 2, 1\)',
    ),
    ([str(tmp_path / 'three.npz')], r'npz file \(it is a git-lfs pointer'),
  ):
    with pytest.raises(ValueError, match=message):
      opened(patterns)
  with pytest.raises(ValueError, match=r'are \(2, 2, 1\), those of mine \(3,'):
    opened(str(tmp_path / 'one.npz')).check_shape((3, 2, 1), 'mine')


def test_a_pickle_is_not_loaded_but_converted(tmp_path):
  """As the unlabelled images of Carmon et al. (2019) are stored."""
  images, labels = numbered(5)
  path = tmp_path / 'pseudo.pickle'
  content = {'data': images, 'extrapolated_targets': labels}
  path.write_bytes(pickle.dumps(content))
  with pytest.raises(ValueError, match='is a pickle, which can run') as error:
    opened(str(path))
  run(str(error.value).partition('convert it: ')[2], tmp_path)
  split = opened(f'{path}.npz').take(np.arange(5))
  assert numbers(split.images) == [0, 1, 2, 3, 4]
  assert split.labels.tolist() == labels.tolist()


def test_the_digest_is_of_the_content(tmp_path):
  images = np.zeros((600, 2, 2, 1), np.uint8)
  labels = np.zeros(600, int)
  one = write(tmp_path / 'one.npz', image=images, label=labels)
  shutil.copy(one, tmp_path / 'copy.npz')
  digest = opened(one).digest()
  assert len(digest) == 32
  assert opened(str(tmp_path / 'copy.npz')).digest() == digest
  # Image 1 is not among those that are looked at: the checksum tells it.
  images[1, 1, 1, 0] = 1
  pixel = write(tmp_path / 'pixel.npz', image=images, label=labels)
  labels[5] = 1
  label = write(tmp_path / 'label.npz', image=images, label=labels)
  others = [[pixel], [label], [one, pixel], [pixel, one], [one, one]]
  digests = {opened(paths).digest() for paths in others}
  assert len(digests | {digest}) == 6


# Batches.


@pytest.fixture
def images(tmp_path):
  """20 extra images, numbered from 100."""
  write(tmp_path / 'a.npz', 11, 100)
  write(tmp_path / 'b.npz', 9, 111)
  return opened(str(tmp_path / '?.npz'))


def make_source(images, num_images=13, **options):
  own, labels = numbered(num_images)
  options = {'batch_size': 10, 'seed': 5, 'fraction': 0.7} | options
  return extra.MixedBatches(
    Split(own, labels.astype(np.int32)), extra=images, **options
  )


def test_what_a_batch_holds(images):
  source = make_source(images)
  orders = [np.random.default_rng([5, e]).permutation(13) for e in range(2)]
  for step in range(6):
    batch = source.batch(step)
    assert batch['images'].shape == (10, 2, 2, 1)
    assert batch['images'].dtype == np.uint8
    assert batch['labels'].dtype == np.int32
    assert batch['mask'].dtype == batch['own'].dtype == bool
    assert batch['mask'].all()
    # floor(i * 7 / 10) for i = 0 ... 10: 0 0 1 2 2 3 4 4 5 6 7.
    assert np.flatnonzero(batch['own']).tolist() == [0, 3, 6]
    own = batch['images'][batch['own']]
    place = 3 * (step % 4)  # four batches of 3 in 13 images
    assert numbers(own) == orders[step // 4][place : place + 3].tolist()
    # With replacement, by seed and step alone.
    rng = np.random.default_rng([5, zlib.crc32(b'extra'), step])
    drawn = (100 + rng.integers(20, size=7)).tolist()
    assert numbers(batch['images'][~batch['own']]) == drawn
    expected = [number % CLASSES for number in numbers(batch['images'])]
    assert batch['labels'].tolist() == expected


def test_an_epoch_is_counted_by_own_images(images, tmp_path):
  """98 steps in the published code: 50,000 images, batches of 512."""
  own = np.zeros((50_000, 2, 2, 1), np.uint8)
  source = extra.MixedBatches(
    Split(own, np.zeros(50_000, np.int32)),
    batch_size=512,
    seed=0,
    extra=images,
    fraction=0.7,
  )
  assert source.steps_per_epoch == 98
  batch = source.batch(0)
  assert (~batch['own']).sum() == 358
  # Every device has its share of both kinds, give or take one.
  for devices in (2, 4, 8, 64):
    shares = batch['own'].reshape(devices, -1).sum(axis=1)
    assert max(shares) - min(shares) <= 1


def equal(one, two):
  return one.keys() == two.keys() and all(
    np.array_equal(one[key], two[key]) for key in one
  )


def test_a_batch_is_a_function_of_the_step_alone(images):
  whole = [make_source(images).batch(step) for step in range(9)]
  source = make_source(images)
  for step in (8, 0, 4, 4, 2, 7, 1, 3, 6, 5):
    assert equal(source.batch(step), whole[step])
  drawn = [numbers(batch['images'][~batch['own']]) for batch in whole]
  assert len(set(map(tuple, drawn))) == 9
  other = make_source(images, seed=(5, 1)).batch(0)
  assert not equal(other, whole[0])


@pytest.mark.parametrize('process_count', [1, 2, 5])
def test_shares_of_processes_make_the_global_batch(images, process_count):
  for step in range(5):
    shares = [
      make_source(
        images, process_index=index, process_count=process_count
      ).batch(step)
      for index in range(process_count)
    ]
    together = {
      key: np.concatenate([share[key] for share in shares]) for key in shares[0]
    }
    assert equal(together, make_source(images).batch(step))


def test_every_own_image_is_seen_once_in_a_pass(images):
  source = make_source(images, num_images=12)
  seen = [
    numbers(batch['images'][batch['own']])
    for batch in map(source.batch, range(8))
  ]
  passes = [list(itertools.chain(*seen[:4])), list(itertools.chain(*seen[4:]))]
  assert sorted(passes[0]) == sorted(passes[1]) == list(range(12))
  assert passes[0] != passes[1]


@pytest.mark.parametrize(
  ('fraction', 'batch_size', 'count'),
  [(0.7, 512, 358), (0.7, 10, 7), (0.29, 100, 29), (0.5, 3, 1), (0.999, 2, 1)],
)
def test_count(fraction, batch_size, count):
  assert extra.count_extra(fraction, batch_size) == count


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (
      {'fraction': 0.09},
      r'fraction: got 0.09, which gives 0 extra images in a',
    ),
    ({'fraction': 1.0}, 'which gives 10 extra images in a batch of 10; exp'),
    ({'seed': -1}, 'seed: got -1, expected at least 0'),
    (
      {'process_count': 3},
      'batch_size: got 10, .* multiple of the 3 processes',
    ),
    ({'num_images': 2}, 'batch_size: got 3, expected at most the 2 training'),
  ],
)
def test_wrong_options_show_at_construction(images, options, message):
  with pytest.raises(ValueError, match=message):
    make_source(images, **options)


def test_own_images_of_another_type_are_refused(images):
  """Floats in [0, 1] would become black bytes."""

  class Floats(batches.ShuffledSplit):
    def batch(self, step):
      batch = super().batch(step)
      return {**batch, 'images': np.float32(batch['images']) / 255}

  source = make_source(images, make_batches=Floats)
  with pytest.raises(ValueError, match='float32 images, expected uint8'):
    source.batch(0)


def test_own_passes_into_the_step(images):
  prepared = batches.prepare(make_source(images).batch(0))
  assert prepared.keys() == {'images', 'labels', 'mask', 'own'}
  assert prepared['own'].tolist() == [1, 0, 0, 1, 0, 0, 1, 0, 0, 0]
  assert prepared['own'].dtype == np.float32
