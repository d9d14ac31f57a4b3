"""Augmentations by name, inside the compiled step.

An augmentation is (rngs [B], images float [B, H, W, C]) -> images, or a
`Mixing`, which changes the labels too. An image depends on its own key and, in
a `Mixing`, on its partner, not on the split of a batch over devices. A factory
takes its own options and, where it names them, the config's `crop_padding` and
`flip`. A user's config file adds one with `@augment.register('name')` and names
it in `config.dataset.augmentations`.
"""

from dhat_jax.training.augment.base import (
  AUGMENTATIONS,
  STANDARD,
  Augmentation,
  Mixing,
  augment_batch,
  make_augmentation,
  register,
)
from dhat_jax.training.augment.boxes import cutmix, cutout, random_erasing
from dhat_jax.training.augment.shifts import crop_flip, window

__all__ = [
  'AUGMENTATIONS',
  'STANDARD',
  'Augmentation',
  'Mixing',
  'augment_batch',
  'crop_flip',
  'cutmix',
  'cutout',
  'make_augmentation',
  'random_erasing',
  'register',
  'window',
]
