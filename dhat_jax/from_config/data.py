"""From a config to its data set."""

import ml_collections
import numpy as np

from dhat_jax.datasets.base import Dataset, Source, Split
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
)


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


def digests(config: ConfigDict, dataset: Dataset) -> dict[str, str]:
  """Returns digests of the content of a run's data: {name: digest}.

  Args:
    config: the run's config.
    dataset: of `load_dataset`.

  Returns:
    The digests of `train` and `test`. A data set that makes its own batches may
    mix in other images; then `batches` is the digest of the first two.
  """
  found = dataset.digests()
  make_batches = make_source(config).make_batches
  if make_batches is not None:
    batches = make_batches(
      dataset.train,
      batch_size=config[config.stages[0]].batch_size,
      seed=0,
      process_index=0,
      process_count=1,
    )
    parts = [batches.batch(step) for step in range(2)]
    images, labels = (
      np.concatenate([np.asarray(part[key]) for part in parts])
      for key in ('images', 'labels')
    )
    found['batches'] = Split(images, labels).digest()
  return found


def image_shape(config: ConfigDict) -> tuple[int, int, int]:
  """Returns (H, W, C) of the images, without loading them if possible."""
  return make_source(config).shape()
