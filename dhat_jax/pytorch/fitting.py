"""Checks whether a state dict fits a network: keys, shapes, numbers.

One error lists everything that does not fit, and the likely reason.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from dhat_jax.models.dual_head import DualHeadNet
from dhat_jax.pytorch import keys, names
from dhat_jax.pytorch.names import COUNTER, Entry, counters

_logger = logging.getLogger(__name__)

_HEAD = re.compile(r'WRN[0-9]+')
_MAX_LISTED = 8


def _normalisation(
  arrays: Mapping[str, np.ndarray],
  entries: Mapping[str, Entry],
  channels: int,
) -> dict[str, tuple[float, ...]]:
  """Finds the entries that normalise images: {key: a number per channel}."""
  return {
    key: tuple(
      np.broadcast_to(array.ravel(), channels).astype(float).round(6).tolist()
    )
    for key, array in arrays.items()
    if keys.role(key) and key not in entries and array.size in (1, channels)
  }


def _same_normalisation(
  numbers: Mapping[str, tuple[float, ...]], model: DualHeadNet
) -> bool:
  """Whether the network normalises by these numbers already."""
  of_model = {'mean': model.mean or 0.0, 'std': model.std or 1.0}
  return all(
    np.allclose(values, of_model[keys.role(key)], atol=1e-4)
    for key, values in numbers.items()
  )


def check_numbers(arrays: Mapping[str, np.ndarray]) -> None:
  """Raises one ValueError that names the arrays with impossible numbers.

  Args:
    arrays: {name: array}; NaN, infinity and negative running variances are
      refused.
  """
  wrong = []
  for name, array in arrays.items():
    count = array.size - np.count_nonzero(np.isfinite(array))
    if count:
      wrong.append(f'{name} ({count} of {array.size} are NaN or infinite)')
    elif name.endswith('running_var') and array.min(initial=0) < 0:
      wrong.append(f'{name} (a variance below zero)')
  if wrong:
    more = len(wrong) - _MAX_LISTED
    rest = f' and {more} more' if more > 0 else ''
    raise ValueError(
      f'{len(wrong)} arrays hold no weights that can be used: '
      f'{", ".join(wrong[:_MAX_LISTED])}{rest}'
    )


def check_state_dict(
  arrays: Mapping[str, np.ndarray],
  entries: Mapping[str, Entry],
  model: DualHeadNet,
  image_channels: int,
) -> None:
  """Raises one ValueError that lists missing, surplus and misshapen keys.

  Some unused keys are accepted: batch norm's counters, and copies of the trunk
  under `WRN2.` that equal the one under `WRN1.`. So are a mean and standard
  deviation of images that the network has too. `sub_block1`, which TRADES'
  published WideResNet stores but never runs, is accepted with a warning.

  Args:
    arrays: {PyTorch's key: array}, of `plain_keys`.
    entries: of `names.entries`.
    model: the network.
    image_channels: of the images.
  """
  numbers = _normalisation(arrays, entries, image_channels)
  if _same_normalisation(numbers, model):
    ignored_numbers, numbers = numbers, {}
  else:
    ignored_numbers = {}
  copies = _trunk_copies(arrays, entries)
  unused = _unused_blocks(arrays, entries)
  if unused:
    _logger.warning(
      'left out, because the published network never runs it: sub_block1 '
      '(%d arrays)',
      len(unused),
    )
  ignored = {*copies, *unused, *counters(entries), *ignored_numbers}
  check_shapes(
    {key: a.shape for key, a in arrays.items() if key not in ignored},
    {key: entry.torch_shape for key, entry in entries.items()},
    wrong=[
      f'  surplus: {key}, which is not equal to the trunk in WRN1, and that is '
      'what feeds the second head'
      for key, same in copies.items()
      if not same
    ],
    hint=lambda: (
      _normalisation_hint(numbers)
      + (
        _backbone_hint(arrays.keys(), model)
        or _hint(arrays.keys(), entries.keys())
      )
    ),
  )


def _other_heads(key: str, entries: Mapping[str, Entry]) -> list[str]:
  """Returns a key under the other heads' prefixes."""
  prefix, _, name = key.partition('.')
  heads = {other.partition('.')[0] for other in entries} - {prefix}
  return [f'{head}.{name}' for head in heads if _HEAD.fullmatch(head)]


def _trunk_copies(
  arrays: Mapping[str, np.ndarray], entries: Mapping[str, Entry]
) -> dict[str, bool]:
  """Finds the trunk's keys under other heads: {key: whether it is the same}."""
  trunk = {k: e for k, e in entries.items() if e.path[1] == 'trunk'}
  copies = {}
  for key in [*trunk, *counters(trunk)]:
    for copy in _other_heads(key, entries):
      if copy in arrays and copy not in entries:
        copies[copy] = key.endswith(COUNTER) or (
          key in arrays and np.array_equal(arrays[copy], arrays[key])
        )
  return copies


def _unused_blocks(
  arrays: Mapping[str, np.ndarray], entries: Mapping[str, Entry]
) -> set[str]:
  """Finds the keys of `sub_block1` whose shapes are those of `block1`."""
  shapes = {key: entry.torch_shape for key, entry in entries.items()}
  shapes |= dict.fromkeys(counters(entries), ())
  unused = set()
  for key, shape in shapes.items():
    if 'block1.' not in key:
      continue
    for name in (key, *_other_heads(key, entries)):
      name = name.replace('block1.', 'sub_block1.', 1)
      if name in arrays and arrays[name].shape == shape:
        unused.add(name)
  return unused


def check_shapes(
  got: Mapping[str, tuple[int, ...]],
  expected: Mapping[str, tuple[int, ...]],
  *,
  wrong: Sequence[str] = (),
  hint: Callable[[], str] = str,
) -> None:
  """Raises one ValueError that lists everything that does not fit.

  Args:
    got: {name: shape}.
    expected: {name: shape}.
    wrong: further lines of the error.
    hint: returns its last lines; called only if there is an error.
  """
  missing = [
    f'  missing: {key}, expected {tuple(expected[key])}'
    for key in sorted(expected.keys() - got.keys())
  ]
  surplus = [
    f'  surplus: {key}, got {tuple(got[key])}'
    for key in sorted(got.keys() - expected.keys())
  ]
  misshapen = [
    f'  misshapen: {key}, got {tuple(got[key])}, '
    f'expected {tuple(expected[key])}'
    for key in sorted(got.keys() & expected.keys())
    if tuple(got[key]) != tuple(expected[key])
  ]
  lines = [*missing, *surplus, *misshapen, *wrong]
  if lines:
    _logger.debug('what does not fit:\n%s', '\n'.join(lines))
    raise ValueError(
      '\n'.join(
        [
          f'{len(lines)} arrays do not fit the network:',
          *_cut(missing, 'missing'),
          *_cut(surplus, 'surplus'),
          *_cut(misshapen, 'misshapen'),
          *wrong,
        ]
      )
      + hint()
    )


def _cut(lines: Sequence[str], kind: str) -> list[str]:
  """Shortens a long list."""
  more = len(lines) - _MAX_LISTED
  if more <= 1:
    return list(lines)
  return [*lines[:_MAX_LISTED], f'  ... and {more} more {kind}']


def _normalisation_hint(numbers: Mapping[str, tuple[float, ...]]) -> str:
  """Says where the mean and the standard deviation of images belong."""
  if not numbers:
    return ''
  flags = ' '.join(
    f"--config.model.{keys.role(key)}='{values}'"
    for key, values in numbers.items()
  )
  return (
    f'\nThe images are normalised by {", ".join(numbers)}, which the config '
    f'holds: {flags}'
  )


def _backbone_hint(arrays: Collection[str], model: DualHeadNet) -> str:
  """Says which other backbone the keys are of, if they are."""
  theirs, ours = names.named_backbone(arrays), type(model.backbone)
  if theirs in (None, ours):
    return ''
  return (
    f'\nThe keys are of {theirs.__name__} (config.model.backbone: '
    f'{names.SCHEMES[theirs].config}), the model has {ours.__name__} '
    f'({names.SCHEMES[ours].config}); the weights of one do not fit the other.'
  )


def _hint(arrays: Collection[str], expected: Collection[str]) -> str:
  """Says the likely reason, if there is one."""
  missing = set(expected) - set(arrays)
  dual, dual_expected = (
    any(key.startswith('WRN1.') for key in some) for some in (arrays, expected)
  )
  if arrays and dual != dual_expected:
    kinds = ('a network with one head', "DH-AT's network with two heads")
    return (
      f'\nThe state dict is of {kinds[dual]}, the model is '
      f"{kinds[dual_expected]}: config.stages=('main_head',) "
      'makes one head, all three make two.'
    )
  if missing and all(re.match(r'(WRN[0-9]+\.)?bn\.', key) for key in missing):
    return (
      '\nThis network has batch norm and ReLU before the pooling (bn.*), as '
      'adversarial training code has; the state dict is of the other '
      'PreActResNet-18, without them, which computes something else.'
    )
  if not set(arrays) & set(expected):
    groups = Counter(key.partition('.')[0] for key in arrays).most_common(4)
    listed = ', '.join(f'{name} ({count})' for name, count in groups)
    return f'\nNo key is of this network; they begin with {listed}.'
  return ''
