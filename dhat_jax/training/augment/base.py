"""What an augmentation is, and how several make a chain."""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import jax.numpy as jnp

from dhat_jax import arguments
from dhat_jax.registry import Registry
from dhat_jax.runtime import devices, streams

Augmentation = Callable[[chex.PRNGKey, chex.Array], chex.Array]

AUGMENTATIONS = Registry('augmentation', shared=('crop_padding', 'flip'))
register = AUGMENTATIONS.register

# What every config of this project has; it draws from an image's key itself.
STANDARD = 'crop_flip'


@dataclasses.dataclass(frozen=True)
class Mixing:
  """An augmentation that mixes each image with a partner, and their labels.

  The partner is the next image of the global batch; the last one's is the
  first. Batches are shuffled, so that the partner is a random image.

  Attributes:
    mix: (rngs [B], images float [B, H, W, C], partners [B, H, W, C]) ->
      (images, share float [B] in [0, 1] of an image's own label).
    before: what runs before partners are taken, or None.
  """

  mix: Callable
  before: Augmentation | None = None


def augment_batch(
  augmentation: Augmentation | Mixing,
  rngs: chex.PRNGKey,
  batch: Mapping[str, chex.Array],
  axis_name: str | None = None,
) -> dict[str, chex.Array]:
  """Augments a batch, inside the compiled step.

  A partner that only pads the batch is not mixed in. Where the data set's own
  images are marked, the mark stays with the image itself.

  Args:
    augmentation: as `make_augmentation` returns it.
    rngs: typed keys [B].
    batch: as `batches.prepare` returns it, this replica's share.
    axis_name: the mapped axis, or None.

  Returns:
    The batch with other images; from a `Mixing` with `other_labels` int [B] and
    `label_share` float [B], as `forward.with_labels` takes them.
  """
  images = batch['images']
  if not isinstance(augmentation, Mixing):
    return {**batch, 'images': augmentation(rngs, images)}
  if augmentation.before is not None:
    images = augmentation.before(rngs, images)
  partners, labels, mask = devices.next_examples(
    (images, batch['labels'], batch['mask']), axis_name
  )
  mixed, share = augmentation.mix(rngs, images, partners)
  counts = mask > 0
  return {
    **batch,
    'images': jnp.where(counts[:, None, None, None], mixed, images),
    'other_labels': jnp.where(counts, labels, batch['labels']),
    'label_share': jnp.where(counts, share, 1.0),
  }


def make_augmentation(
  names: Sequence[str | dict[str, Any]],
  *,
  crop_padding: int = 0,
  flip: bool = False,
  where: str = 'augmentations',
) -> Augmentation | Mixing | None:
  """Chains augmentations.

  Args:
    names: keys of `AUGMENTATIONS`, or {'name': key, **its options}.
    crop_padding: see `crop_flip`.
    flip: see `crop_flip`.
    where: what gives them, for errors: 'config.dataset.augmentations'.

  Returns:
    (rngs [B], images) -> images, or a `Mixing` if one of them is, or None where
    nothing changes. Each but `crop_flip` draws from a stream of its name; the
    second of the same name from another one.

  Raises:
    ValueError: unknown name or option; several that mix images.
  """
  chain, counts = [], collections.Counter()
  for spec in arguments.sequence(where, names):
    name, options = spec, None
    if not isinstance(spec, str | Mapping):
      raise arguments.mistake(where, spec, 'a name, or a dict with name')
    if not isinstance(spec, str):
      options = dict(spec)
      name = options.pop('name', None)
    augmentation = AUGMENTATIONS.make(
      name, options, where=where, crop_padding=crop_padding, flip=flip
    )
    if augmentation is not None:
      counts[name] += 1
      stream = name if counts[name] == 1 else f'{name}/{counts[name]}'
      chain.append((stream, augmentation))
  mixing = [
    stream.partition('/')[0]
    for stream, part in chain
    if isinstance(part, Mixing)
  ]
  if len(mixing) > 1:
    raise arguments.mistake(where, mixing, 'at most one that mixes images')
  return _around_mixing(chain) if mixing else _chained(chain)


def _keys(rngs: chex.PRNGKey, stream: str) -> chex.PRNGKey:
  """Returns the keys [B] of an augmentation."""
  if stream == STANDARD:
    return rngs
  return streams.fold_in_each(rngs, f'augment/{stream}')


def _chained(chain: Sequence[tuple[str, Augmentation]]) -> Augmentation | None:
  """Composes (stream, augmentation) in order; None of none."""

  def augment(rngs, images):
    for stream, augmentation in chain:
      images = augmentation(_keys(rngs, stream), images)
    return images

  return augment if chain else None


def _around_mixing(
  chain: Sequence[tuple[str, Augmentation | Mixing]],
) -> Mixing:
  """Composes a chain with one `Mixing`: partners are taken in its place."""
  (place,) = [
    index for index, (_, part) in enumerate(chain) if isinstance(part, Mixing)
  ]
  stream, mixing = chain[place]
  first = [] if mixing.before is None else [(stream, mixing.before)]
  after = _chained(chain[place + 1 :])

  def mix(rngs, images, partners):
    images, share = mixing.mix(_keys(rngs, stream), images, partners)
    return images if after is None else after(rngs, images), share

  return Mixing(mix, before=_chained([*chain[:place], *first]))
