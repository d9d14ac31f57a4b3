"""Generated or other extra images, mixed into the batches of any data set.

The files are npz with `image`, uint8 [N, H, W, C], and `label`, integers [N],
like the published sets of generated images (Rebuffi et al. 2021, Wang et al.
2023). Images stay in the files: they are memory-mapped, and a batch reads its
rows alone. So the memory that they take does not grow with their number.
"""

import glob
import hashlib
import math
import mmap
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from dhat_jax.datasets import batches, npz_arrays
from dhat_jax.datasets.base import ImageShape, Split
from dhat_jax.datasets.batches import Batch, BatchSource, Seed
from dhat_jax.runtime import files, streams
from dhat_jax.runtime.files import DataError, reading

# Labels and images that are read at once, and images that a digest looks at in
# each part.
_LABELS_AT_ONCE = 2**20
_IMAGES_AT_ONCE = 32
_SAMPLES = 256
_PICKLES = ('.pickle', '.pkl')


def find_files(patterns: str | Sequence[str]) -> list[str]:
  """Returns the files of paths and glob patterns, in order.

  Args:
    patterns: one, or several; the files of a pattern are sorted by name. A `~`
      is expanded.

  Raises:
    DataError: a path or a pattern that is no file's.
  """
  patterns = [patterns] if isinstance(patterns, str) else patterns
  paths = []
  for pattern in map(files.user_path, patterns):
    with reading(pattern, 'path'):
      matches = [pattern]
      if files.kind(pattern) is None:
        matches = sorted(glob.glob(pattern, recursive=True))
    if not matches:
      raise DataError(
        f'got {pattern!r}, which is no file and no pattern of any'
      )
    paths += matches
  for path in paths:
    if files.kind(path) != 'file':
      raise DataError(f'{path}: is a folder, expected an npz file')
  return paths


class _Part:
  """The images of one file, mapped, and their labels, in memory."""

  def __init__(self, path: str, num_classes: int):
    _refuse_pickle(path)
    names = tuple(
      npz_arrays.choose(path, choices)
      for choices in (npz_arrays.IMAGES, npz_arrays.LABELS)
    )
    headers = npz_arrays.read_headers(path, names)
    images, labels = (headers[name] for name in names)
    npz_arrays.check_images(f'{path}, {names[0]}', images)
    npz_arrays.check_labels(f'{path}, {names[1]}', labels)
    npz_arrays.check_lengths(path, names, (images, labels))
    self.path = path
    self._mapped = npz_arrays.memory_map(path, names[0])
    # Rows are read at random: without the advice the system reads megabytes
    # ahead of each. From a file of 61 GB that took 100 times as long.
    _advise(self._mapped, 'MADV_RANDOM')
    # [N, H, W, C]; grey images get a channel.
    self.images = self._mapped.reshape(-1, *(*images.shape[1:], 1)[:3])
    self.labels = _read_labels(path, names[1], num_classes)  # [N]
    self._description = f'{self.images.shape} {images.crc} {labels.crc}'

  def read(self, rows: np.ndarray) -> np.ndarray:
    """Reads images: int64 [M] -> uint8 [M, H, W, C]."""
    images = np.empty((len(rows), *self.images.shape[1:]), np.uint8)
    for start in range(0, len(rows), _IMAGES_AT_ONCE):
      chunk = slice(start, start + _IMAGES_AT_ONCE)
      images[chunk] = self.images[rows[chunk]]
      _release(self._mapped)
    return images

  def digest_items(self) -> Iterator[bytes]:
    """Yields what a digest covers; see `ExtraImages.digest`."""
    yield self._description.encode()
    yield self.labels.astype(np.int32).tobytes()
    total = len(self.images)
    rows = np.linspace(0, total - 1, min(total, _SAMPLES)).astype(int)
    yield self.read(rows).tobytes()


def _refuse_pickle(path: str) -> None:
  """Raises DataError for a pickle, with its conversion."""
  with reading(path, 'file'), open(path, 'rb') as file:
    is_pickle = file.read(1) == b'\x80' or path.endswith(_PICKLES)
  if is_pickle:
    raise DataError(
      f'{path}: is a pickle, which can run code and is not loaded; if you '
      'trust it, convert it: python -c "import pickle, numpy as np; '
      f"d = pickle.load(open('{path}', 'rb')); np.savez('{path}.npz', "
      "image=d['data'], label=d['extrapolated_targets'])\""
    )


def _read_labels(path: str, name: str, num_classes: int) -> np.ndarray:
  """Reads and checks labels: [N], of the smallest type that holds K - 1."""
  mapped = npz_arrays.memory_map(path, name)  # [N] or [N, 1]
  labels = np.empty(len(mapped), np.min_scalar_type(num_classes - 1))  # [N]
  for start in range(0, len(mapped), _LABELS_AT_ONCE):
    chunk = mapped[start : start + _LABELS_AT_ONCE].reshape(-1)
    # Before the conversion, in which large numbers would wrap around.
    npz_arrays.check_range(
      f'{path}, {name}', chunk.min(), chunk.max(), num_classes
    )
    labels[start : start + _LABELS_AT_ONCE] = chunk
    _release(mapped)
  return labels


def _release(mapped: np.memmap) -> None:
  # Pages of a map that were read count as memory of the process, although the
  # system may drop them: in a long run they would be the whole file. An image
  # may bring 2 MB of them, where the system caches files in large pages.
  _advise(mapped, 'MADV_DONTNEED')


def _advise(mapped: np.memmap, name: str) -> None:
  """Gives the system an advice about a map, where it takes it."""
  advice = getattr(mmap, name, None)
  if advice is not None:
    mapped.base.madvise(advice)


class ExtraImages:
  """Images of one or several npz files, which stay there.

  Attributes:
    image_shape: (H, W, C).
  """

  def __init__(self, patterns: str | Sequence[str], *, num_classes: int):
    """Opens files; reads and checks their labels, but no image.

    Args:
      patterns: as of `find_files`; the files are parts of one set, in order.
      num_classes: K; labels are in [0, K).

    Raises:
      DataError: a missing, empty or compressed file, other arrays, shapes or
        dtypes, a label out of range, or images of different sizes.
    """
    paths = find_files(patterns)
    if not paths:
      raise DataError('got no files, expected one or more npz files')
    self._parts = [_Part(path, num_classes) for path in paths]
    first = self._parts[0]
    self.image_shape: ImageShape = first.images.shape[1:]
    for part in self._parts:
      if part.images.shape[1:] != self.image_shape:
        raise DataError(
          f'{part.path}: images are {part.images.shape[1:]}, those of '
          f'{first.path} {self.image_shape}'
        )
    # Where each part ends in the set.
    self._ends = np.cumsum([len(part.labels) for part in self._parts])

  def __len__(self) -> int:
    """Returns the number of images, N."""
    return int(self._ends[-1])

  def check_shape(self, shape: ImageShape, source: str) -> None:
    """Raises DataError unless the images are as large as a data set's."""
    if tuple(shape) != self.image_shape:
      raise DataError(
        f'{self._parts[0].path}: images are {self.image_shape}, those of '
        f'{source} {tuple(shape)}'
      )

  def take(self, indices: np.ndarray) -> Split:
    """Reads images.

    Args:
      indices: int64 [M] in [0, N), in any order.

    Returns:
      uint8 [M, H, W, C] and int32 [M].
    """
    images = np.empty((len(indices), *self.image_shape), np.uint8)
    labels = np.empty(len(indices), np.int32)
    holders = np.searchsorted(self._ends, indices, side='right')  # [M]
    for number in np.unique(holders):
      part, here = self._parts[number], holders == number
      rows = indices[here] - (self._ends[number] - len(part.labels))
      images[here] = part.read(rows)
      labels[here] = part.labels[rows]
    return Split(images, labels)

  def digest(self) -> str:
    """Returns 32 hex digits of the content, in seconds for any size.

    BLAKE2b of every part's shape, of all labels, of the archive's own checksums
    of images and labels, and of 256 images of each part. The checksums cover
    every pixel that a program wrote as npz; a later change of the file in
    place, at other images than these, stays unnoticed.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in self._parts:
      for item in part.digest_items():
        digest.update(item)
    return digest.hexdigest()


def count_extra(fraction: float, batch_size: int) -> int:
  """Returns floor(fraction * batch_size), without the error of the product.

  Raises:
    ValueError: this leaves no extra images, or no others.
  """
  count = math.floor(round(fraction * batch_size, 6))
  if not 0 < count < batch_size:
    raise ValueError(
      f'fraction: got {fraction}, which gives {count} extra images in a batch '
      f'of {batch_size}; expected from 1 to {batch_size - 1}'
    )
  return count


class MixedBatches:
  """Batches of a data set, a fixed share of each filled with extra images.

  The data set's own images come from its own source of batches, here of
  batch_size - floor(fraction * batch_size) images: passes over permutations,
  which need not end where an epoch does. Extra images are drawn with
  replacement, by seed and step alone. Both kinds are spread evenly over the
  batch, so that every device has its share.

  An epoch is ceil(N / batch_size) steps, with N images of the data set,
  whatever the number of extra ones (Wang et al. 2023). So an epoch sees as many
  images as one without extra images, and about (1 - fraction) N of its own.

  Differs from the published code, which begins a new permutation in each epoch:
  there a pass is never finished.
  """

  def __init__(
    self,
    split: Split,
    *,
    batch_size: int,
    seed: Seed,
    process_index: int = 0,
    process_count: int = 1,
    extra: ExtraImages,
    fraction: float,
    make_batches: Callable[..., BatchSource] = batches.ShuffledSplit,
  ):
    """Creates a source.

    Args:
      split: the N training images of the data set.
      batch_size: global, of both kinds together.
      seed: as of `batches.ShuffledSplit`.
      process_index: which contiguous share of each batch to give.
      process_count: number of shares.
      extra: the extra images.
      fraction: of the extra images in a batch, in (0, 1).
      make_batches: makes the source of the data set's own images.

    Raises:
      ValueError: a wrong batch size or seed; a fraction that leaves no images
        of one kind.
    """
    share = batches.process_slice(batch_size, process_index, process_count)
    self._count = count_extra(fraction, batch_size)
    self._extra = extra
    self._seed = seed
    self._num_steps = math.ceil(len(split.labels) / batch_size)
    # Of the whole batch: which images are drawn must not depend on the share.
    self._source = make_batches(
      split,
      batch_size=batch_size - self._count,
      seed=seed,
      process_index=0,
      process_count=1,
    )
    is_extra = _spread(batch_size, self._count)  # [B]
    self._is_extra = is_extra[share]  # [b]
    self._extra_share = _among(is_extra, share)
    self._own_share = _among(~is_extra, share)

  @property
  def steps_per_epoch(self) -> int:
    """ceil(N / batch_size)."""
    return self._num_steps

  def batch(self, step: int) -> Batch:
    """Returns the batch of a step; `own` is False where an image is extra.

    Raises:
      ValueError: the data set's own batches hold other images than uint8.
    """
    whole = self._source.batch(step)
    if whole['images'].dtype != np.uint8:
      raise ValueError(
        f'the data set makes batches of {whole["images"].dtype} images, '
        'expected uint8, as the extra images are'
      )
    generator = batches.generator(self._seed, streams.number('extra'), step)
    drawn = generator.integers(len(self._extra), size=self._count)  # [G]
    extra = self._extra.take(drawn[self._extra_share])
    mixed = {
      'images': extra.images,
      'labels': extra.labels,
      'mask': np.ones(len(extra.labels), bool),
      'own': np.zeros(len(extra.labels), bool),
    }
    whole = {**whole, 'own': np.ones_like(whole['mask'])}
    return {
      key: self._merge(whole[key][self._own_share], array)
      for key, array in mixed.items()
    }

  def _merge(self, own: np.ndarray, extra: np.ndarray) -> np.ndarray:
    """Puts images of both kinds in their places: [b, ...]."""
    merged = np.empty((len(self._is_extra), *extra.shape[1:]), extra.dtype)
    merged[~self._is_extra] = own
    merged[self._is_extra] = extra
    return merged


def _spread(size: int, count: int) -> np.ndarray:
  """Spreads `count` marks evenly over `size` places: bool [size]."""
  steps = np.arange(size + 1) * count // size
  return np.diff(steps) > 0


def _among(marked: np.ndarray, share: slice) -> slice:
  """Returns which of the marked places lie in a share, counted from 0."""
  before = int(marked[: share.start].sum())
  return slice(before, before + int(marked[share].sum()))
