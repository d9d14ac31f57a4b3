import functools
import itertools
import threading
import time

import numpy as np
import pytest

from dhat_jax.datasets import batches
from dhat_jax.datasets.base import Split


def make_split(num_images, num_classes=3):
  """Images that hold their own index, so that each can be told apart."""
  index = np.arange(num_images)
  images = np.broadcast_to(
    index.astype(np.uint8)[:, None, None, None], (num_images, 2, 2, 1)
  )
  return Split(images.copy(), (index % num_classes).astype(np.int32))


def indices(split_or_batch):
  images = getattr(split_or_batch, 'images', None)
  images = split_or_batch['images'] if images is None else images
  return images[:, 0, 0, 0].tolist()


def flat(lists):
  return list(itertools.chain.from_iterable(lists))


# Holding out.


def test_hold_out_is_a_partition_in_order():
  split = make_split(30)
  rest, held = batches.hold_out(split, 9, seed=1)
  assert sorted(indices(rest) + indices(held)) == list(range(30))
  for part in (rest, held):
    assert indices(part) == sorted(indices(part))
    assert part.labels.tolist() == [index % 3 for index in indices(part)]
    assert part.images.dtype == np.uint8
    assert part.labels.dtype == np.int32


def test_hold_out_is_fair_to_every_class():
  labels = np.repeat(np.arange(3), (100, 40, 11)).astype(np.int32)
  split = Split(np.zeros((151, 1, 1, 1), np.uint8), labels)
  for size in (1, 17, 75, 150):
    _, held = batches.hold_out(split, size, seed=0)
    assert len(held.labels) == size
    share = np.bincount(held.labels, minlength=3)
    np.testing.assert_allclose(
      share, np.array([100, 40, 11]) * size / 151, atol=1
    )


def test_hold_out_follows_the_seed_alone():
  split = make_split(60)

  def held(seed):
    return indices(batches.hold_out(split, 20, seed=seed)[1])

  assert held(3) == held(3)
  assert held(3) != held(4)


def test_hold_out_nothing():
  split = make_split(6)
  assert batches.hold_out(split, 0, seed=0) == (split, None)


@pytest.mark.parametrize('size', [-1, 6, 7])
def test_hold_out_too_much(size):
  message = f'config.dataset.validation_size: got {size}, expected from 0 to 5'
  with pytest.raises(ValueError, match=message):
    batches.hold_out(make_split(6), size, seed=0)


# Batches for training.


def test_epoch_order_is_a_function_of_seed_and_epoch():
  order = functools.partial(batches.epoch_order, 50)
  first = order(seed=1, epoch=2)
  assert sorted(first) == list(range(50))
  np.testing.assert_array_equal(first, order(seed=1, epoch=2))
  # Swapped too: it is no function of their sum.
  for seed, epoch in ((1, 3), (2, 2), (2, 1)):
    assert first.tolist() != order(seed=seed, epoch=epoch).tolist()


def make_source(num_images=14, **options):
  options = {'batch_size': 4, 'seed': 5} | options
  return batches.ShuffledSplit(make_split(num_images), **options)


def train_indices(source, start_step=0, num_steps=9):
  steps = range(start_step, num_steps)
  return [indices(source.batch(step)) for step in steps]


def test_epochs_leave_out_the_remainder():
  source = make_source()
  assert source.steps_per_epoch == 3
  steps = train_indices(source)
  assert [len(batch) for batch in steps] == [4] * 9
  epochs = [flat(steps[first : first + 3]) for first in (0, 3, 6)]
  for number, epoch in enumerate(epochs):
    assert len(set(epoch)) == 12
    # The order of every run so far: a run of an older version resumes.
    order = np.random.default_rng([5, number]).permutation(14)
    assert epoch == order[:12].tolist()
  # Others are left out in each epoch.
  left_out = [set(range(14)) - set(epoch) for epoch in epochs]
  assert not left_out[0] == left_out[1] == left_out[2]


def test_training_batch_fits_the_contract():
  batch = make_source().batch(0)
  assert batch.keys() == batches.Batch.__required_keys__
  assert batch['images'].shape == (4, 2, 2, 1)
  assert batch['images'].dtype == np.uint8
  assert batch['labels'].dtype == np.int32
  assert batch['labels'].tolist() == [i % 3 for i in indices(batch)]
  assert batch['mask'].dtype == bool
  assert batch['mask'].all()


def test_batch_is_a_function_of_the_step_alone():
  whole = train_indices(make_source())
  source = make_source()
  for step in (8, 0, 4, 4, 2, 7, 1, 3, 6, 5):
    assert indices(source.batch(step)) == whole[step]
  for start_step in range(10):
    assert train_indices(source, start_step) == whole[start_step:]


def test_seed_of_several_numbers():
  whole = train_indices(make_source())
  assert train_indices(make_source(seed=(5,))) == whole
  several = train_indices(make_source(seed=(5, 1)))
  assert several != whole
  assert several != train_indices(make_source(seed=(1, 5)))
  order = np.random.default_rng([5, 1, 0]).permutation(14)
  assert flat(several[:3]) == order[:12].tolist()


@pytest.mark.parametrize('process_count', [1, 2, 4])
def test_shares_of_processes_make_the_global_batch(process_count):
  shares = [
    train_indices(make_source(process_index=i, process_count=process_count))
    for i in range(process_count)
  ]
  together = [flat(parts) for parts in zip(*shares, strict=True)]
  assert together == train_indices(make_source())


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'batch_size': 15}, 'batch_size: got 15, expected at most the 14'),
    ({'batch_size': 0}, 'batch_size: got 0, expected a positive'),
    ({'process_count': 3}, 'batch_size: got 4, .* multiple of the 3 processes'),
    (
      {'process_index': 2, 'process_count': 2},
      'process_index: got 2, expected from 0 to 1',
    ),
    ({'seed': -1}, 'seed: got -1, expected at least 0'),
    ({'seed': (3, -1)}, r'seed: got \(3, -1\), expected at least 0'),
  ],
)
def test_wrong_options_show_at_construction(options, message):
  with pytest.raises(ValueError, match=message):
    make_source(**options)


# Batches for evaluation.


@pytest.mark.parametrize('num_images', [1, 7, 8, 9])
@pytest.mark.parametrize('process_count', [1, 2])
def test_evaluation_counts_each_image_once(num_images, process_count):
  split = make_split(num_images)
  shares = [
    list(
      batches.eval_batches(
        split, batch_size=4, process_index=i, process_count=process_count
      )
    )
    for i in range(process_count)
  ]
  seen, labels = [], []
  for parts in zip(*shares, strict=True):
    for part in parts:
      assert part['images'].shape == (4 // process_count, 2, 2, 1)
      assert part['images'].dtype == np.uint8
      assert part['labels'].dtype == np.int32
      mask = part['mask']
      assert mask.dtype == bool
      assert not part['images'][~mask].any()
      assert not part['labels'][~mask].any()
      seen += part['images'][mask][:, 0, 0, 0].tolist()
      labels += part['labels'][mask].tolist()
  assert len(shares[0]) == -(-num_images // 4)
  assert seen == list(range(num_images))
  assert labels == split.labels.tolist()


@pytest.mark.parametrize('batch_size', [0, 3])
def test_wrong_evaluation_batch(batch_size):
  with pytest.raises(ValueError, match=f'batch_size: got {batch_size}'):
    batches.eval_batches(
      make_split(4), batch_size=batch_size, process_index=0, process_count=2
    )


# Prefetching.


def prefetch_threads():
  return [t for t in threading.enumerate() if t.name == 'prefetch']


def test_prefetch_keeps_order_and_ends():
  assert list(batches.prefetch(range(20), size=3)) == list(range(20))
  assert list(batches.prefetch([])) == []
  assert not prefetch_threads()


def test_prefetch_is_ahead_by_no_more_than_its_size():
  taken = []

  def source():
    for item in itertools.count():
      taken.append(item)
      yield item

  iterator = batches.prefetch(source(), size=3)
  assert next(iterator) == 0
  deadline = time.monotonic() + 10
  # One was given out, three wait, one is in the thread's hand.
  while len(taken) < 5 and time.monotonic() < deadline:
    time.sleep(0.01)
  time.sleep(0.1)
  assert taken == [0, 1, 2, 3, 4]
  iterator.close()
  assert not prefetch_threads()


def test_prefetch_raises_what_the_source_raises():
  def source():
    yield 1
    raise RuntimeError('disk is gone')

  iterator = batches.prefetch(source())
  assert next(iterator) == 1
  with pytest.raises(RuntimeError, match='disk is gone'):
    next(iterator)
  assert not prefetch_threads()


def test_prefetch_without_room():
  with pytest.raises(ValueError, match='size: got 0, expected at least 1'):
    next(batches.prefetch([], size=0))
