"""Batches on the host, augmentation on the device.

The images of a batch, their noise and their crops depend on seeds and the step
alone, not on the number of devices, processes or restarts.
"""

import queue
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NotRequired, Protocol, TypedDict

import chex
import jax.numpy as jnp
import numpy as np

from dhat_jax.datasets.base import Split

# One number, or several: entropy for NumPy's generator.
Seed = int | Sequence[int]


class Batch(TypedDict):
  """The input of a step.

  Attributes:
    images: uint8 [B, H, W, C].
    labels: int32 [B].
    mask: bool [B]; False where an image only pads the batch.
    own: bool [B]; False where an image was mixed into the data set's own
      (`extra`). Batches that nothing is mixed into lack it.
  """

  images: np.ndarray
  labels: np.ndarray
  mask: np.ndarray
  own: NotRequired[np.ndarray]


def hold_out(
  split: Split, size: int, *, seed: int
) -> tuple[Split, Split | None]:
  """Holds a stratified validation split out of a training split.

  Args:
    split: N images.
    size: number of images to hold out; 0 holds out none.
    seed: of the choice.

  Returns:
    (N - size images, size images or None), both in their original order.
    Every class contributes its share of `size`, rounded up or down.

  Raises:
    ValueError: `size` is negative or leaves no training images.
  """
  total = len(split.labels)
  if not 0 <= size < total:
    raise ValueError(
      f'config.dataset.validation_size: got {size}, expected from 0 to '
      f'{total - 1}, less than the training images'
    )
  if not size:
    return split, None
  rng = generator(seed, size)
  # Images in random order, each with its place within its class as a fraction:
  # the `size` smallest fractions hold as many of each class as is fair.
  order = rng.permutation(total)
  fraction = np.empty(total)
  for label in np.unique(split.labels):
    members = order[split.labels[order] == label]
    fraction[members] = (np.arange(len(members)) + 0.5) / len(members)
  chosen = np.zeros(total, bool)
  chosen[order[np.argsort(fraction[order], kind='stable')[:size]]] = True
  return (
    Split(split.images[~chosen], split.labels[~chosen]),
    Split(split.images[chosen], split.labels[chosen]),
  )


def epoch_order(num_examples: int, *, seed: Seed, epoch: int) -> np.ndarray:
  """Returns the permutation of an epoch, a function of (seed, epoch) alone.

  Args:
    num_examples: N.
    seed: one or several numbers, each at least 0.
    epoch: at least 0.

  Returns:
    int64 [N].
  """
  return generator(seed, epoch).permutation(num_examples)


def generator(seed: Seed, *numbers: int) -> np.random.Generator:
  """Returns NumPy's generator, a function of a seed and of further numbers.

  Raises:
    ValueError: a seed below 0.
  """
  seeds = tuple(seed) if isinstance(seed, Sequence) else (seed,)
  if not seeds or min(seeds) < 0:
    raise ValueError(f'seed: got {seed}, expected at least 0')
  return np.random.default_rng([*seeds, *numbers])


def process_slice(
  batch_size: int, process_index: int, process_count: int
) -> slice:
  """Returns the contiguous share of a global batch that is a process's.

  Raises:
    ValueError: a batch that does not divide, or no such process.
  """
  if batch_size < 1 or batch_size % process_count:
    raise ValueError(
      f'batch_size: got {batch_size}, expected a positive multiple of the '
      f'{process_count} processes'
    )
  if not 0 <= process_index < process_count:
    raise ValueError(
      f'process_index: got {process_index}, expected from 0 to '
      f'{process_count - 1}'
    )
  share = batch_size // process_count
  return slice(process_index * share, (process_index + 1) * share)


class BatchSource(Protocol):
  """Training batches by the number of the step."""

  @property
  def steps_per_epoch(self) -> int:
    """The length of an epoch, in which schedules and intervals count."""

  def batch(self, step: int) -> Batch:
    """Returns the batch of a step (this process's share of it).

    It is a pure function of the step. So a resumed run gets the same batches,
    and any step may be requested at any time.
    """


class ShuffledSplit:
  """Batches of one split, over a fresh permutation in each epoch.

  Differs from PyTorch's loader in the published code: images that do not fill a
  last batch are left out, different ones in each epoch. So batch norm sees full
  batches only, and nothing compiles twice.
  """

  def __init__(
    self,
    split: Split,
    *,
    batch_size: int,
    seed: Seed,
    process_index: int = 0,
    process_count: int = 1,
  ):
    """Creates a source.

    Args:
      split: the N training images.
      batch_size: global.
      seed: one number at least 0, or several; a batch depends on it and on the
        step.
      process_index: which contiguous share of each batch to give.
      process_count: number of shares.

    Raises:
      ValueError: a batch that is larger than the split or not divisible; a
        wrong seed.
    """
    self._share = process_slice(batch_size, process_index, process_count)
    total = len(split.labels)
    if batch_size > total:
      raise ValueError(
        f'batch_size: got {batch_size}, expected at most the {total} training '
        'images'
      )
    self._split = split
    self._batch_size = batch_size
    self._seed = seed
    self._known = (0, epoch_order(total, seed=seed, epoch=0))

  @property
  def steps_per_epoch(self) -> int:
    """N // batch_size."""
    return len(self._split.labels) // self._batch_size

  def batch(self, step: int) -> Batch:
    """Returns the batch of a step: b = batch_size / process_count images."""
    epoch, place = divmod(step, self.steps_per_epoch)
    start = place * self._batch_size
    order = self._order(epoch)[start : start + self._batch_size]
    indices = order[self._share]  # [b]
    return {
      'images': self._split.images[indices],
      'labels': self._split.labels[indices],
      'mask': np.ones(len(indices), bool),
    }

  def _order(self, epoch: int) -> np.ndarray:
    """Returns the permutation of an epoch; caches the latest."""
    known_epoch, order = self._known
    if epoch != known_epoch:
      total = len(self._split.labels)
      order = epoch_order(total, seed=self._seed, epoch=epoch)
      self._known = (epoch, order)
    return order


def eval_batches(
  split: Split,
  *,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[Batch]:
  """Iterates over a split in order, each image once, the last batch padded.

  The padding has black images of class 0 whose mask is False. Arguments and
  batches are as in `ShuffledSplit`.
  """
  share = process_slice(batch_size, process_index, process_count)
  return _eval_batches(split, batch_size, share)


def _eval_batches(
  split: Split, batch_size: int, share: slice
) -> Iterator[Batch]:
  for first in range(0, len(split.labels), batch_size):
    images = split.images[first : first + batch_size]
    labels = split.labels[first : first + batch_size]
    missing = batch_size - len(labels)
    batch = {
      'images': np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))),
      'labels': np.pad(labels, (0, missing)),
      'mask': np.arange(batch_size) < len(labels),
    }
    yield {name: array[share] for name, array in batch.items()}


def prefetch(batches: Iterable, size: int = 2) -> Iterator:
  """Runs an iterator in a background thread, `size` items ahead.

  Its exceptions are raised here. The thread ends when this iterator is closed
  or exhausted.
  """
  if size < 1:
    raise ValueError(f'size: got {size}, expected at least 1')
  items: queue.Queue = queue.Queue(maxsize=size)
  closed = threading.Event()

  def put(kind, value) -> bool:
    while not closed.is_set():
      try:
        items.put((kind, value), timeout=0.1)
        return True
      except queue.Full:
        continue
    return False

  def work():
    try:
      for batch in batches:
        if not put('item', batch):
          return
      put('end', None)
    except BaseException as error:
      put('error', error)

  thread = threading.Thread(target=work, name='prefetch', daemon=True)
  thread.start()
  try:
    while True:
      kind, value = items.get()
      if kind == 'end':
        return
      if kind == 'error':
        raise value
      yield value
  finally:
    closed.set()
    thread.join()


def to_float(images: chex.Array) -> chex.Array:
  """Converts uint8 images to the floats that networks and attacks see.

  Args:
    images: uint8 [B, H, W, C].

  Returns:
    float32 [B, H, W, C] in [0, 1]: the pixels divided by 255.
  """
  return jnp.asarray(images).astype(jnp.float32) / 255


def prepare(batch: Mapping[str, chex.Array]) -> dict[str, chex.Array]:
  """Converts a batch for a step; runs inside the compiled step.

  Args:
    batch: {'images': uint8 [B, H, W, C] or float in [0, 1], 'labels': int32
      [B], 'mask': bool [B], optional, 'own': bool [B], optional}.

  Returns:
    The batch with float images in [0, 1] and a float32 mask. Without a mask
    every example counts. `own` is float32 too: 1 where an image is of the data
    set itself, 0 where it comes from elsewhere.
  """
  images = batch['images']
  if images.dtype == jnp.uint8:
    images = to_float(images)
  mask = batch.get('mask', jnp.ones(images.shape[0]))
  prepared = {
    'images': images,
    'labels': batch['labels'],
    'mask': mask.astype(jnp.float32),
  }
  if 'own' in batch:
    prepared['own'] = batch['own'].astype(jnp.float32)
  return prepared
