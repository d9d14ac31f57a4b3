"""Data sets by name: `config.dataset.loader`.

A factory returns a `Source`: the shape of the images, and how to load them. It
takes those of `name`, `data_dir`, `manual_dir`, `cache_dir` and `num_classes`
that it needs, and its own options. These are keys of `config.dataset`; a
missing path is '' or None. A user's config file registers one like this:

    @loaders.register('mine')
    def mine(*, data_dir, size=32):
      def load():
        train, test = read_mine(data_dir, size)  # uint8 [N, H, W, C], int32 [N]
        return Dataset(
          train=Split(*train),
          test=Split(*test),
          class_names=('cat', 'dog'),
          source=f'mine from {data_dir}',
        )

      return Source(load, image_shape=(size, size, 3))
"""

import functools

from dhat_jax.datasets.base import Source
from dhat_jax.registry import Registry

DATASETS = Registry(
  'data set',
  shared=('name', 'data_dir', 'manual_dir', 'cache_dir', 'num_classes'),
)
register = DATASETS.register


@register('tfds')
def tfds(
  *,
  name: str,
  data_dir: str | None = None,
  manual_dir: str | None = None,
  cache_dir: str | None = None,
  download: bool = True,
) -> Source:
  """A data set of TensorFlow Datasets.

  Args:
    name: as in TFDS.
    data_dir: folder of a prepared data set.
    manual_dir: folder of archives that were downloaded by hand.
    cache_dir: folder of decoded images.
    download: whether missing data may be downloaded.
  """
  from dhat_jax.datasets.tfds import load

  return Source(
    functools.partial(
      load.load,
      name,
      data_dir=data_dir or None,
      manual_dir=manual_dir or None,
      cache_dir=cache_dir or None,
      download=download,
    ),
    functools.partial(load.image_shape, name, data_dir=data_dir or None),
  )


@register('image_folder')
def image_folder(
  *, data_dir: str | None = None, cache_dir: str | None = None
) -> Source:
  """Images in `<data_dir>/train/<class>/` and `test/<class>/`."""
  from dhat_jax.datasets import image_folder

  data_dir = image_folder.check_folder(data_dir)
  return Source(
    functools.partial(
      image_folder.load, data_dir=data_dir, cache_dir=cache_dir or None
    ),
    functools.partial(image_folder.image_shape, data_dir),
  )


@register('npz')
def npz(
  *, data_dir: str | None = None, num_classes: int | None = None
) -> Source:
  """Arrays: one npz file with Keras' names, or train.npz and test.npz."""
  from dhat_jax.datasets import npz

  path = npz.check_path(data_dir)
  return Source(
    functools.partial(npz.load, path, num_classes=num_classes),
    functools.partial(npz.image_shape, path),
  )


@register('digits')
def digits() -> Source:
  """Scikit-learn's handwritten digits."""
  from dhat_jax.datasets import digits

  return Source(digits.load, digits.IMAGE_SHAPE)
