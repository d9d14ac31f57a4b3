import functools
import itertools
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.datasets import batches as input_pipeline
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
  rest, held = input_pipeline.hold_out(split, 9, seed=1)
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
    _, held = input_pipeline.hold_out(split, size, seed=0)
    assert len(held.labels) == size
    share = np.bincount(held.labels, minlength=3)
    np.testing.assert_allclose(
      share, np.array([100, 40, 11]) * size / 151, atol=1
    )


def test_hold_out_follows_the_seed_alone():
  split = make_split(60)

  def held(seed):
    return indices(input_pipeline.hold_out(split, 20, seed=seed)[1])

  assert held(3) == held(3)
  assert held(3) != held(4)


def test_hold_out_nothing():
  split = make_split(6)
  assert input_pipeline.hold_out(split, 0, seed=0) == (split, None)


@pytest.mark.parametrize('size', [-1, 6, 7])
def test_hold_out_too_much(size):
  with pytest.raises(
    ValueError, match=f'validation_size: got {size}, expected from 0 to 5'
  ):
    input_pipeline.hold_out(make_split(6), size, seed=0)


# Batches for training.


def test_epoch_order_is_a_function_of_seed_and_epoch():
  order = functools.partial(input_pipeline.epoch_order, 50)
  first = order(seed=1, epoch=2)
  assert sorted(first) == list(range(50))
  np.testing.assert_array_equal(first, order(seed=1, epoch=2))
  # Swapped too: it is no function of their sum.
  for seed, epoch in ((1, 3), (2, 2), (2, 1)):
    assert first.tolist() != order(seed=seed, epoch=epoch).tolist()


def train_indices(split, **options):
  options = {
    'batch_size': 4,
    'seed': 5,
    'start_step': 0,
    'num_steps': 9,
  } | options
  return [
    indices(batch) for batch in input_pipeline.train_batches(split, **options)
  ]


def test_train_epochs_leave_out_the_remainder():
  split = make_split(14)
  batches = train_indices(split)
  assert [len(batch) for batch in batches] == [4] * 9
  epochs = [flat(batches[first : first + 3]) for first in (0, 3, 6)]
  for number, epoch in enumerate(epochs):
    assert len(set(epoch)) == 12
    order = input_pipeline.epoch_order(14, seed=5, epoch=number)
    assert epoch == order[:12].tolist()
  # Others are left out in each epoch.
  left_out = [set(range(14)) - set(epoch) for epoch in epochs]
  assert not left_out[0] == left_out[1] == left_out[2]


def test_train_batches_fit_the_contract():
  split = make_split(14)
  (batch,) = input_pipeline.train_batches(
    split, batch_size=4, seed=0, start_step=0, num_steps=1
  )
  assert batch['images'].shape == (4, 2, 2, 1)
  assert batch['images'].dtype == np.uint8
  assert batch['labels'].dtype == np.int32
  assert batch['labels'].tolist() == [i % 3 for i in indices(batch)]
  assert batch['mask'].dtype == bool
  assert batch['mask'].all()


@pytest.mark.parametrize('start_step', range(10))
def test_resumed_batches_are_the_tail_of_the_whole(start_step):
  split = make_split(14)
  whole = train_indices(split)
  assert train_indices(split, start_step=start_step) == whole[start_step:]


@pytest.mark.parametrize('process_count', [1, 2, 4])
def test_shares_of_processes_make_the_global_batch(process_count):
  split = make_split(14)
  shares = [
    train_indices(split, process_index=i, process_count=process_count)
    for i in range(process_count)
  ]
  together = [flat(parts) for parts in zip(*shares, strict=True)]
  assert together == train_indices(split)


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
  ],
)
def test_wrong_training_options(options, message):
  options = {'batch_size': 4, 'seed': 5} | options
  with pytest.raises(ValueError, match=message):
    # At the call: nothing is iterated over.
    input_pipeline.train_batches(
      make_split(14), start_step=0, num_steps=9, **options
    )


# Batches for evaluation.


@pytest.mark.parametrize('num_images', [1, 7, 8, 9])
@pytest.mark.parametrize('process_count', [1, 2])
def test_evaluation_counts_each_image_once(num_images, process_count):
  split = make_split(num_images)
  shares = [
    list(
      input_pipeline.eval_batches(
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
    input_pipeline.eval_batches(
      make_split(4), batch_size=batch_size, process_index=0, process_count=2
    )


# Prefetching.


def prefetch_threads():
  return [t for t in threading.enumerate() if t.name == 'prefetch']


def test_prefetch_keeps_order_and_ends():
  assert list(input_pipeline.prefetch(range(20), size=3)) == list(range(20))
  assert list(input_pipeline.prefetch([])) == []
  assert not prefetch_threads()


def test_prefetch_is_ahead_by_no_more_than_its_size():
  taken = []

  def source():
    for item in itertools.count():
      taken.append(item)
      yield item

  iterator = input_pipeline.prefetch(source(), size=3)
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

  iterator = input_pipeline.prefetch(source())
  assert next(iterator) == 1
  with pytest.raises(RuntimeError, match='disk is gone'):
    next(iterator)
  assert not prefetch_threads()


def test_prefetch_without_room():
  with pytest.raises(ValueError, match='size: got 0, expected at least 1'):
    next(input_pipeline.prefetch([], size=0))


# Images on the device.


def test_to_float_divides_by_255():
  images = np.array([0, 51, 255], np.uint8).reshape(1, 1, 3, 1)
  floats = input_pipeline.to_float(images)
  assert floats.dtype == jnp.float32
  np.testing.assert_allclose(floats.ravel(), [0, 0.2, 1], rtol=1e-7)


PADDING = 2


@functools.cache
def augmenter(crop_padding, flip):
  return jax.jit(
    functools.partial(
      input_pipeline.augment, crop_padding=crop_padding, flip=flip
    )
  )


def make_images(num_images):
  """Uint8 [N, 5, 4, 2] without zeros: those come from padding alone."""
  generator = np.random.default_rng(0)
  return generator.integers(1, 256, (num_images, 5, 4, 2), np.uint8)


def keys(num_images, seed=0):
  return jax.random.split(jax.random.key(seed), num_images)


def shifted(image, top, left, flip):
  """What a crop at (top, left) of the padded image holds, pixel by pixel."""
  height, width, _ = image.shape
  result = np.zeros_like(image)
  for row, column in itertools.product(range(height), range(width)):
    y, x = row + top - PADDING, column + left - PADDING
    if 0 <= y < height and 0 <= x < width:
      result[row, column] = image[y, x]
  return result[:, ::-1] if flip else result


def places(images, augmented, flips=(False, True)):
  """Returns the (top, left, flip) that explains each augmented image."""
  offsets = range(2 * PADDING + 1)
  found = []
  for image, result in zip(images, augmented, strict=True):
    matches = [
      place
      for place in itertools.product(offsets, offsets, flips)
      if np.array_equal(shifted(image, *place), result)
    ]
    assert len(matches) == 1
    found += matches
  return found


def test_augmented_images_are_shifted_flipped_copies():
  images = make_images(200)
  augmented = augmenter(PADDING, True)(keys(200), images)
  assert augmented.dtype == jnp.uint8
  found = places(images, np.asarray(augmented))
  # Every offset and both directions come up; 200 draws of 5 x 5 x 2.
  for coordinate in range(2):
    assert {place[coordinate] for place in found} == set(range(5))
  assert len(set(found)) > 35
  # Independent: about as many flips at either end of the shifts.
  flips = np.array([place[2] for place in found])
  upper = np.array([place[0] < PADDING for place in found])
  assert 0.3 < flips[upper].mean() < 0.7
  assert 0.3 < flips[~upper].mean() < 0.7


def test_crop_alone_never_flips():
  images = make_images(40)
  augmented = augmenter(PADDING, False)(keys(40), images)
  places(images, np.asarray(augmented), flips=(False,))


def test_flip_alone_flips_half():
  images = make_images(1000)
  augmented = np.asarray(augmenter(0, True)(keys(1000), images))
  same = (augmented == images).all(axis=(1, 2, 3))
  mirrored = (augmented == images[:, :, ::-1]).all(axis=(1, 2, 3))
  assert (same ^ mirrored).all()
  # Five standard deviations.
  assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / 1000**0.5


def test_neither_crop_nor_flip_changes_nothing():
  images = make_images(3)
  augmented = augmenter(0, False)(keys(3), images)
  np.testing.assert_array_equal(augmented, images)


def test_augmentation_does_not_depend_on_the_rest_of_the_batch():
  images, rngs = make_images(8), keys(8)
  whole = augmenter(PADDING, True)(rngs, images)
  halves = [
    augmenter(PADDING, True)(rngs[half], images[half])
    for half in (slice(0, 4), slice(4, 8))
  ]
  np.testing.assert_array_equal(whole, np.concatenate(halves))


def test_augmentation_follows_its_key():
  images = np.repeat(make_images(1), 8, axis=0)
  augment = augmenter(PADDING, True)
  first = augment(keys(8), images)
  np.testing.assert_array_equal(first, augment(keys(8), images))
  assert (np.asarray(first) != augment(keys(8, seed=1), images)).any()
  assert len({image.tobytes() for image in np.asarray(first)}) > 1


def test_floats_and_eager_calls_give_the_same():
  images, rngs = make_images(8), keys(8)
  expected = np.asarray(augmenter(PADDING, True)(rngs, images))
  floats = augmenter(PADDING, True)(rngs, images.astype(np.float32))
  assert floats.dtype == jnp.float32
  np.testing.assert_array_equal(floats, expected.astype(np.float32))
  eager = input_pipeline.augment(
    rngs, jnp.asarray(images), crop_padding=PADDING, flip=True
  )
  np.testing.assert_array_equal(eager, expected)


def test_negative_padding():
  with pytest.raises(ValueError, match='crop_padding: got -1'):
    input_pipeline.augment(keys(1), make_images(1), crop_padding=-1, flip=True)
