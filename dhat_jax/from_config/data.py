"""From a config to its data set."""

import functools
from collections.abc import Callable

import ml_collections
import numpy as np

from dhat_jax import arguments
from dhat_jax.datasets import batches
from dhat_jax.datasets.base import Dataset, ImageShape, Source, Split
from dhat_jax.datasets.extra import ExtraImages, MixedBatches, count_extra
from dhat_jax.datasets.loaders import DATASETS
from dhat_jax.from_config.values import completed, options_of

ConfigDict = ml_collections.ConfigDict

# What may be in `config.dataset` beside the options of its loader.
_DATASET_KEYS = (
  'loader',
  'validation_size',
  'augmentations',
  'crop_padding',
  'flip',
  'extra',
)
_EXTRA = 'config.dataset.extra'


def make_source(config: ConfigDict) -> Source:
  """Returns the data set of a config, described but not loaded."""
  spec = completed(config).dataset
  options = options_of(spec, without=(*_DATASET_KEYS, *DATASETS.shared))
  return DATASETS.make(
    spec.loader,
    options,
    where='config.dataset.loader',
    **{key: spec.get(key) for key in DATASETS.shared},
  )


def load_dataset(config: ConfigDict, source: Source | None = None) -> Dataset:
  """Loads and validates the data set of a config.

  Args:
    config: the run's config.
    source: of `make_source`, if it was called before.

  Raises:
    ValueError: broken data, or data that the config does not describe.
  """
  data = (source or make_source(config)).dataset
  classes = config.dataset.num_classes
  if len(data.class_names) != classes:
    raise ValueError(
      f'config.dataset.num_classes: got {classes}, but {data.source} has '
      f'{len(data.class_names)} classes'
    )
  channels = data.train.images.shape[-1]
  mean = tuple(config.model.mean)
  if len(mean) not in (0, 1, channels):
    raise ValueError(
      f'config.model.mean: got {mean}, but the images of {data.source} have '
      f'{channels} channels'
    )
  return data


def make_extra(
  config: ConfigDict, shape: ImageShape | None = None
) -> ExtraImages | None:
  """Opens the extra images of a config; None if it has none.

  Args:
    config: the run's config.
    shape: (H, W, C) of the data set's images; None: not known yet.

  Raises:
    ValueError: a wrong file or fraction; see `ExtraImages`, `count_extra`.
  """
  spec = completed(config).dataset.extra
  arguments.number(f'{_EXTRA}.fraction', spec.fraction, above=0, below=1)
  if not spec.files:
    return None
  for name in config.stages:
    try:
      count_extra(spec.fraction, config[name].batch_size)
    except ValueError as error:
      raise ValueError(
        f'{_EXTRA}.{error} (config.{name}.batch_size)'
      ) from error
  try:
    extra = ExtraImages(spec.files, num_classes=config.dataset.num_classes)
    if shape is not None:
      extra.check_shape(shape, 'the data set')
  except ValueError as error:
    raise ValueError(f'{_EXTRA}.files: {error}') from error
  return extra


def check_extra(config: ConfigDict, source: Source) -> None:
  """Raises ValueError for extra images that do not fit; loads no data set.

  Args:
    config: the run's config.
    source: of `make_source`.
  """
  has_extra = completed(config).dataset.extra.files
  make_extra(config, source.described_shape if has_extra else None)


def batch_maker(
  config: ConfigDict, dataset: Dataset, source: Source | None = None
) -> Callable[..., batches.BatchSource]:
  """Returns what makes the training batches of a config.

  Args:
    config: the run's config.
    dataset: of `load_dataset`.
    source: of `make_source`, if it was called before.

  Returns:
    (training split, *, batch_size, seed, process_index, process_count) ->
    `batches.BatchSource`: the data set's own batches, with extra images mixed
    in if the config names any.

  Raises:
    ValueError: as `make_extra`.
  """
  source = source or make_source(config)
  make_batches = source.make_batches or batches.ShuffledSplit
  extra = make_extra(config, dataset.train.images.shape[1:])
  if extra is None:
    return make_batches
  return functools.partial(
    MixedBatches,
    extra=extra,
    fraction=completed(config).dataset.extra.fraction,
    make_batches=make_batches,
  )


def digests(config: ConfigDict, dataset: Dataset) -> dict[str, str]:
  """Returns digests of the content of a run's data: {name: digest}.

  Args:
    config: the run's config.
    dataset: of `load_dataset`.

  Returns:
    The digests of `train` and `test`, and of `extra` images if the config names
    any. A data set that makes its own batches may mix in other images; then
    `batches` is the digest of the first two.
  """
  found = dataset.digests()
  make_batches = make_source(config).make_batches
  if make_batches is not None:
    own_batches = make_batches(
      dataset.train,
      batch_size=config[config.stages[0]].batch_size,
      seed=0,
      process_index=0,
      process_count=1,
    )
    parts = [own_batches.batch(step) for step in range(2)]
    images, labels = (
      np.concatenate([np.asarray(part[key]) for part in parts])
      for key in ('images', 'labels')
    )
    found['batches'] = Split(images, labels).digest()
  extra = make_extra(config)
  if extra is not None:
    found['extra'] = extra.digest()
  return found


def image_shape(config: ConfigDict) -> tuple[int, int, int]:
  """Returns (H, W, C) of the images, without loading them if possible."""
  return make_source(config).shape()
