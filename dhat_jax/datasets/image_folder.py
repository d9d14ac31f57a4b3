"""Images in folders: `<split>/<class>/<file>`, splits `train` and `test`."""

import concurrent.futures
import os

import numpy as np
from PIL import ExifTags, Image

from dhat_jax.datasets import cache
from dhat_jax.datasets.base import Dataset, ImageShape, Split
from dhat_jax.runtime import files
from dhat_jax.runtime.files import DataError, reading

SPLITS = ('train', 'test')
_LAYOUT = 'expected train/<class>/<image> and test/<class>/<image> in it'
_SUFFIXES = (
  '.bmp',
  '.jpeg',
  '.jpg',
  '.pgm',
  '.png',
  '.ppm',
  '.tif',
  '.tiff',
  '.webp',
)
# Changes with what a file's pixels become: older cache files are not read.
_DECODING = 2
_UPRIGHT = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
# Files per task of the thread pool: a task's overhead is about one decoding's.
_CHUNK = 256


def load(*, data_dir: str, cache_dir: str | None = None) -> Dataset:
  """Loads a folder of images.

  The classes are the names of the folders in alphabetical order. Images are in
  the order of class and file name. Names that start with a dot are ignored. The
  decoded arrays are cached under a name that changes with any file's name, size
  or modification time.

  Every image becomes RGB as viewers show it. It is turned and mirrored by its
  EXIF orientation. Grey, palette and CMYK images are converted, without ICC
  profiles, and transparent pixels are put on white. More than 8 bits per
  channel, floating point, and files with several images (animations, pages) are
  refused.

  Args:
    data_dir: holds `train/<class>/<image>` and `test/<class>/<image>`.
    cache_dir: default: see `cache.folder`.

  Returns:
    uint8 [N, H, W, 3] and int32 [N].

  Raises:
    ValueError: another layout, a class in one split only, an empty class, an
      unreadable image, or images of different sizes. The error names the file.
  """
  data_dir = check_folder(data_dir)
  listing = {split: _list_split(data_dir, split) for split in SPLITS}
  class_names = _class_names(data_dir, listing)
  labelled = {
    split: [
      (os.path.join(split, name, file), label)
      for label, name in enumerate(class_names)
      for file in listing[split][name]
    ]
    for split in SPLITS
  }
  paths = [path for split in SPLITS for path, _ in labelled[split]]

  def decode() -> Dataset:
    images = _decode_all(data_dir, paths)
    num_train = len(labelled['train'])
    labels = {
      split: np.array([label for _, label in labelled[split]], np.int32)
      for split in SPLITS
    }
    return Dataset(
      train=Split(images[:num_train], labels['train']),
      test=Split(images[num_train:], labels['test']),
      class_names=class_names,
      source=f'image_folder {data_dir}',
    )

  key = cache.fingerprint(data_dir, paths)
  return cache.read_or_make(
    os.path.join(
      cache.folder(cache_dir), f'image_folder_{_DECODING}_{key}.npz'
    ),
    decode,
  )


def check_folder(data_dir: str | None) -> str:
  """Returns `data_dir`, ~ expanded; raises ValueError if none is given."""
  if not data_dir:
    raise ValueError(
      f'config.dataset.data_dir: got nothing, expected a folder; {_LAYOUT}'
    )
  return files.user_path(data_dir)


def image_shape(data_dir: str) -> ImageShape:
  """Returns (H, W, 3) of the first training image."""
  data_dir = check_folder(data_dir)
  name, images = next(iter(_list_split(data_dir, SPLITS[0]).items()))
  # Decoded: its header does not tell in which direction it is shown.
  return _decode(os.path.join(data_dir, SPLITS[0], name, images[0])).shape


def _entries(path: str) -> list[os.DirEntry]:
  """Returns a folder's visible entries in alphabetical order."""
  with reading(path, 'folder'), os.scandir(path) as entries:
    visible = [entry for entry in entries if not entry.name.startswith('.')]
  return sorted(visible, key=lambda entry: entry.name)


def _list_split(data_dir: str, split: str) -> dict[str, list[str]]:
  """Returns {class: file names}, both in alphabetical order."""
  files.check_folder('config.dataset.data_dir', data_dir, new=True)
  path = os.path.join(data_dir, split)
  if not os.path.isdir(path):
    raise ValueError(f'{path} is not a folder; {data_dir}: {_LAYOUT}')
  classes = {}
  for entry in _entries(path):
    if entry.is_dir():
      classes[entry.name] = [_image_name(file) for file in _entries(entry.path)]
      if not classes[entry.name]:
        raise ValueError(
          f'{entry.path}: holds no images; {data_dir}: {_LAYOUT}'
        )
    elif entry.name.lower().endswith(_SUFFIXES):
      raise ValueError(f'{entry.path}: is in no class; {data_dir}: {_LAYOUT}')
  if not classes:
    raise ValueError(f'{path}: holds no class folders; {data_dir}: {_LAYOUT}')
  return classes


def _image_name(file: os.DirEntry) -> str:
  if file.is_dir() or not file.name.lower().endswith(_SUFFIXES):
    raise ValueError(
      f'{file.path}: is no image file; choices of suffix are {_SUFFIXES}'
    )
  return file.name


def _class_names(data_dir: str, listing: dict) -> tuple[str, ...]:
  train, test = (set(listing[split]) for split in SPLITS)
  if train != test:
    raise ValueError(
      f'{data_dir}: the splits have different classes; in train alone: '
      f'{sorted(train - test)}, in test alone: {sorted(test - train)}'
    )
  return tuple(sorted(train))


def _decode_all(data_dir: str, paths: list[str]) -> np.ndarray:
  """Decodes to RGB: uint8 [N, H, W, 3].

  It uses threads, since PIL decodes without the interpreter's lock. That pays
  for photographs; at 32 x 32 (0.2 ms each) opening the files dominates.
  """
  first = _decode(os.path.join(data_dir, paths[0]))
  images = np.empty((len(paths), *first.shape), np.uint8)  # [N, H, W, 3]

  def decode_chunk(start: int) -> None:
    for index in range(start, min(start + _CHUNK, len(paths))):
      path = os.path.join(data_dir, paths[index])
      image = _decode(path)
      if image.shape != first.shape:
        raise ValueError(
          f'{path}: got an image of height x width {_size(image)}, expected '
          f'{_size(first)} as {os.path.join(data_dir, paths[0])}'
        )
      images[index] = image

  pool = concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count())
  try:
    for _ in pool.map(decode_chunk, range(0, len(paths), _CHUNK)):
      pass
  finally:
    # After an error nobody waits for the rest.
    pool.shutdown(cancel_futures=True)
  return images


def _size(image: np.ndarray) -> str:
  return ' x '.join(str(size) for size in image.shape[:2])


def _decode(path: str) -> np.ndarray:
  """Returns uint8 [H, W, 3]: the image as viewers show it."""
  with reading(path, 'image'), Image.open(path) as image:
    _check(path, image)
    image.load()
    return np.asarray(_opaque(_upright(image)).convert('RGB'))


def _check(path: str, image: Image.Image) -> None:
  """Raises DataError before decoding if bits or images would be lost."""
  if image.mode[0] in 'IF' or _has_16_bits(image):
    bits = image.mode if image.mode[0] in 'IF' else f'{image.mode}, 16 bits'
    raise DataError(f'{path}: got pixels of mode {bits!r}, expected 8 bits')
  count = getattr(image, 'n_frames', 1)
  # In an MPO, a kind of JPEG that cameras write, the first one is the image.
  if count > 1 and image.format != 'MPO':
    raise DataError(f'{path}: holds {count} images, expected one')


def _has_16_bits(image: Image.Image) -> bool:
  """Whether colours have 16 bits per channel, of which PIL drops 8."""
  for _, _, _, args in image.tile:
    args = args if isinstance(args, tuple) else (args,)
    for arg in args:
      if isinstance(arg, str) and arg.endswith((';16B', ';16L', ';16N')):
        return True
      if image.format == 'PPM' and isinstance(arg, int) and arg > 255:
        return True
  return False


def _upright(image: Image.Image) -> Image.Image:
  """Turns an image by its EXIF orientation; damaged EXIF is ignored."""
  try:
    orientation = image.getexif().get(ExifTags.Base.Orientation)
  except Exception:
    orientation = None
  method = _UPRIGHT.get(orientation)
  return image if method is None else image.transpose(method)


def _opaque(image: Image.Image) -> Image.Image:
  """Puts an image with transparent pixels on white."""
  if not image.has_transparency_data:
    return image
  image = image.convert('RGBA')
  return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
