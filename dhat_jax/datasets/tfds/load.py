"""Loads data sets of tensorflow-datasets without TensorFlow."""

import os

from dhat_jax.datasets import cache
from dhat_jax.datasets.base import Dataset, ImageShape
from dhat_jax.datasets.tfds import builders, prepared
from dhat_jax.runtime import files


def load(
  name: str,
  *,
  data_dir: str | None = None,
  manual_dir: str | None = None,
  cache_dir: str | None = None,
  download: bool = True,
) -> Dataset:
  """Loads a data set of TFDS.

  It first looks for the decoded arrays of an earlier run (the npz cache), then
  for a folder that TFDS has prepared (ArrayRecord or TFRecord), then for the
  archives. Those come from `manual_dir` or are downloaded; their checksums are
  verified, and they are prepared in `data_dir`. Other data sets of TFDS can be
  read if they have the splits `train` and `test` and images of one size.
  Preparing them needs TensorFlow.

  Args:
    name: 'cifar10', 'cifar100' or 'svhn_cropped' (without its split `extra`).
    data_dir: a folder of prepared data sets, or of this one; default: TFDS's,
      $TFDS_DATA_DIR or ~/tensorflow_datasets.
    manual_dir: folder of archives that were downloaded by hand, under their
      original names; default: `downloads/manual` in `data_dir`.
    cache_dir: default: see `cache.folder`.
    download: whether archives may be downloaded.

  Returns:
    The training and the test split in TFDS's order.

  Raises:
    FileNotFoundError: no data; the message says what to put where.
    ValueError: an unknown name or wrong data.
  """
  root = _root(data_dir)
  if manual_dir is not None:
    manual_dir = files.user_path(manual_dir)
    files.check_folder('config.dataset.manual_dir', manual_dir)

  def find_or_prepare() -> str:
    return prepared.find(name, root) or builders.prepare(
      name, root=root, manual_dir=manual_dir, download=download
    )

  if data_dir is None and name in builders.VERSIONS:
    # Without a folder of the user's own it is the official data, whichever
    # way it comes: the cache file alone will do, also on another machine.
    key, folder = builders.VERSIONS[name], None
  else:
    folder = find_or_prepare()
    key = prepared.fingerprint(folder)
  return cache.read_or_make(
    os.path.join(
      cache.folder(cache_dir), f'tfds_{name.replace("/", "_")}_{key}.npz'
    ),
    lambda: prepared.read(name, folder or find_or_prepare()),
  )


def image_shape(name: str, *, data_dir: str | None = None) -> ImageShape | None:
  """Returns (H, W, C) without reading images; None if that is impossible."""
  if name in builders.IMAGE_SHAPES:
    return builders.IMAGE_SHAPES[name]
  folder = prepared.find(name, _root(data_dir))
  return None if folder is None else prepared.image_shape(folder)


def _root(data_dir: str | None) -> str:
  """Returns TFDS's folder; it need not exist."""
  root = files.user_path(data_dir or prepared.default_root())
  files.check_folder('config.dataset.data_dir', root, new=True)
  return root
