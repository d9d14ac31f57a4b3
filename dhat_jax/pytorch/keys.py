"""Keys of a PyTorch state dict without the additions of wrappers."""

import logging
import re
from collections.abc import Collection, Mapping

import numpy as np

from dhat_jax.pytorch.names import Entry, counters

_logger = logging.getLogger(__name__)

_HEAD = re.compile(r'WRN[0-9]+')
# What DataParallel, torch.compile, DeepSpeed and FSDP put into keys, anywhere.
_WRAPPERS = (
  'module',
  '_orig_mod',
  '_forward_module',
  '_fsdp_wrapped_module',
  '_checkpoint_wrapped_module',
)
# How many calls an averaged model has seen (torch.optim.swa_utils).
_AVERAGED = 'n_averaged'
_NORMALISATION = {
  'mean': 'mean',
  'mu': 'mean',
  'image_mean': 'mean',
  'pixel_mean': 'mean',
  'std': 'std',
  'sigma': 'std',
  'image_std': 'std',
  'pixel_std': 'std',
}


def plain_keys(
  arrays: Mapping[str, np.ndarray], entries: Mapping[str, Entry]
) -> dict[str, np.ndarray]:
  """Removes from keys what wrappers of a network add, and logs it.

  These are names of wrappers (`module`, `_orig_mod`, ...) anywhere, a prefix
  that all keys share (`model.`, `backbone.`, ...), and the counter of an
  averaged model. Entries with the images' mean and standard deviation (`mu`,
  `normalize.std`, ...) need not share the prefix.

  Args:
    arrays: {PyTorch's key: array}.
    entries: of `names.entries`.
  """
  renamed = {key: _unwrapped(key) for key in arrays if key != _AVERAGED}
  if len(arrays) > len(renamed):
    _logger.info('left out: %s, the counter of an averaged model', _AVERAGED)
  if len(set(renamed.values())) < len(renamed):
    renamed = {key: key for key in renamed}
  wrapped = sorted(
    {part for key in renamed for part in key.split('.') if part in _WRAPPERS}
    if any(key != name for key, name in renamed.items())
    else ()
  )
  if wrapped:
    _logger.info(
      'left out of the keys: %s', ', '.join(f'{w}.' for w in wrapped)
    )
  prefix = _shared_prefix(
    [name for name in renamed.values() if not role(name)], entries
  )
  if prefix:
    _logger.info('left out of the keys: %s, which all of them share', prefix)
  return {
    name.removeprefix(prefix): arrays[key] for key, name in renamed.items()
  }


def _unwrapped(key: str) -> str:
  *groups, leaf = key.split('.')
  return '.'.join([*(name for name in groups if name not in _WRAPPERS), leaf])


def _shared_prefix(names: Collection[str], entries: Mapping[str, Entry]) -> str:
  """Returns the shared prefix without which most keys are expected.

  Keys of a network with another number of heads count too, so that the error
  names that.
  """
  expected = {_bare(key) for key in (*entries, *counters(entries))}
  best, most, prefix = '', -1, ''
  while names:
    fitting = sum(
      _bare(name.removeprefix(prefix)) in expected for name in names
    )
    if fitting > most:
      best, most = prefix, fitting
    rests = [name.removeprefix(prefix).partition('.') for name in names]
    if len({first for first, _, _ in rests}) > 1 or not all(
      dot for _, dot, _ in rests
    ):
      break
    prefix += f'{rests[0][0]}.'
  return best


def _bare(key: str) -> str:
  """Returns a key without the prefix of a head."""
  prefix, _, rest = key.partition('.')
  return rest if _HEAD.fullmatch(prefix) else key


def role(key: str) -> str | None:
  """Returns 'mean' or 'std' for an entry with such a name, else None."""
  return _NORMALISATION.get(key.rpartition('.')[2])
