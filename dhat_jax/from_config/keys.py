"""Checks the keys of a config and their types.

The section of a registered part may have more keys than are listed here: the
options of the part, which `Registry.check` knows. These sections are the data
set, and a stage's loss, attack, schedule, optimizer and weight perturbation.
"""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from dhat_jax import arguments
from dhat_jax.from_config.values import completed
from dhat_jax.runtime import cli
from dhat_jax.training.stages import all_roles

Check = Callable[[str, Any], Any]

LARGEST_SEED = 2**32 - 1  # larger ones would begin with 0 again


def _optional(check: Check) -> Check:
  """Returns a check that allows None or a missing key."""

  def check_or_none(name: str, got: Any) -> Any:
    return got if got is None else check(name, got)

  check_or_none.optional = True
  return check_or_none


def _tuple_of(check: Check) -> Check:
  return lambda name, got: arguments.sequence(name, got, check)


def _seed(name: str, got: Any) -> int:
  return arguments.integer(name, got, 0, LARGEST_SEED)


def _texts(name: str, got: Any) -> Any:
  if isinstance(got, str) and got:
    return got
  return arguments.sequence(name, got, _text)


def _name(name: str, got: Any) -> str:
  if not arguments.text(name, got):
    raise arguments.mistake(name, got, 'a name')
  return got


def _any(name: str, got: Any) -> Any:
  del name
  return got


_flag, _integer, _number, _text = (
  arguments.flag,
  arguments.integer,
  arguments.number,
  arguments.text,
)
_SECTIONS = {
  'dataset': {
    'name': _text,
    'loader': _text,
    'data_dir': _optional(_text),
    'manual_dir': _optional(_text),
    'cache_dir': _optional(_text),
    'num_classes': _integer,
    'validation_size': _integer,
    'augmentations': _tuple_of(_any),
    'crop_padding': _integer,
    'flip': _flag,
    'extra': {'files': _texts, 'fraction': _number},
  },
  'model': {
    'backbone': _text,
    'attach': _text,
    'aggregator': _text,
    'backbone_options': _optional(_any),
    'aggregator_options': _optional(_any),
    'mean': _tuple_of(_number),
    'std': _tuple_of(_number),
    'dtype': _text,
    'sync_batch_norm': _flag,
    'freeze_statistics': _flag,
    'remat': _flag,
  },
  'validation': {'every_epochs': _integer, 'attack': _text},
  'checkpoint': {'every_steps': _integer, 'keep': _integer},
  'evaluation': {
    'attacks': _tuple_of(_text),
    'epsilon': _optional(_number),
    'epsilon_255': _optional(_number),
    'step_size': _optional(_number),
    'step_size_255': _optional(_number),
    'norm': _text,
    'restarts': _integer,
    'batch_size': _integer,
    'dtype': _text,
    'samples': _integer,
    'autoattack_version': _text,
    'autoattack_outputs': _tuple_of(_text),
    'autoattack_images': _integer,
    'autoattack_n_iter': _integer,
    'autoattack_queries': _integer,
    'autoattack_targets': _integer,
    'autoattack_target_order': _text,
    'autoattack_screening': _text,
    'sweep_epsilons_255': _tuple_of(_number),
    'sweep_steps': _integer,
    'loss_steps': _tuple_of(_integer),
    'audit': _flag,
    'audit_steps': _integer,
    'audit_queries': _integer,
    'audit_mora': _flag,
    'audit_malt': _flag,
    'export_images': _flag,
  },
}
_STAGE = {
  'loss': {'name': _text},
  'attack': {
    'name': _text,
    'epsilon': _optional(_number),
    'epsilon_255': _optional(_number),
    'step_size': _optional(_number),
    'step_size_255': _optional(_number),
    'steps': _integer,
    'norm': _text,
    'start': _text,
    'statistics': _text,
    'warmup_epochs': _number,
    'warmup_start_epoch': _number,
    'warmup_start_fraction': _number,
    'warmup_per_epoch': _flag,
  },
  'epochs': _number,
  'batch_size': _integer,
  'schedule': {'name': _text},
  'optimizer': {'name': _text},
  'weight_perturbation': {'name': _text},
  'ema_decay': _number,
  'ema': {
    'copy_epochs': _number,
    'warm_up': _flag,
    'statistics': _flag,
    'use': _flag,
  },
  'keep': _text,
}
_TOP = {
  'name': _name,
  'seed': _seed,
  'stages': _tuple_of(_text),
  **_SECTIONS,
  'log_every_steps': _integer,
  'debug_nans': _flag,
  'compare_with_natural': _flag,
}
# Whose other keys are options of a registered part.
_OPEN = (
  'dataset',
  'loss',
  'attack',
  'schedule',
  'optimizer',
  'weight_perturbation',
)


def check(config: ConfigDict) -> None:
  """Raises ValueError for a key that is missing, unknown or of a wrong type.

  At the top level, a key is unknown only if it resembles a known one. Values
  that others refer to may stand there.

  Args:
    config: the run's config; may lack what `completed` adds.
  """
  if not isinstance(config, ConfigDict):
    raise arguments.mistake('config', type(config).__name__, 'a ConfigDict')
  if config.get('stages') is None:
    _refuse_missing('config.stages', _TOP['stages'])
  config = completed(config)
  arguments.sequence('config.stages', config.stages, _text)
  roles = all_roles()
  stages = [name for name in roles if name in config.stages and name in config]
  _check_section('config', config, {**_TOP, **dict.fromkeys(stages, _STAGE)})
  known = {**_TOP, **roles}
  for key in config:
    if key not in known:
      _refuse_like(f'config.{key}', str(key), list(known))


def _check_section(
  where: str, section: Any, expected: Mapping[str, Any]
) -> None:
  if not isinstance(section, ConfigDict):
    raise arguments.mistake(where, section, f'a dict with {_listed(expected)}')
  for key, check in expected.items():
    name = f'{where}.{key}'
    if key not in section:
      _refuse_missing(name, check)
    elif isinstance(check, Mapping):
      _check_section(name, section[key], check)
    else:
      check(name, section[key])
  group = where.rpartition('.')[2]
  surplus = [key for key in section if key not in expected]
  if surplus and group != 'config' and group not in _OPEN:
    name = f'{where}.{surplus[0]}'
    _refuse_like(name, str(surplus[0]), list(expected), cutoff=0.0)


def _refuse_missing(name: str, check: Any) -> None:
  """Raises for a missing key, unless it is optional."""
  if isinstance(check, Mapping):
    raise ValueError(
      f'{name}: got nothing, expected a dict with {_listed(check)}'
    )
  if getattr(check, 'optional', False):
    return
  try:
    check(name, None)
  except ValueError as error:
    text = str(error).replace(': got None,', ': got nothing,', 1)
    raise ValueError(text) from None


def _refuse_like(
  name: str, key: str, known: list[str], cutoff: float = 0.75
) -> None:
  """Raises for an unknown key, and names the nearest ones."""
  close = difflib.get_close_matches(
    key.lower(), known, n=3, cutoff=cutoff or 0.5
  )
  group = name.removesuffix(f'.{key}')
  if close:
    names = cli.nearest_are([f'{group}.{match}' for match in close])
    raise ValueError(f'{name}: no such key; {names}')
  if not cutoff:
    raise ValueError(f'{name}: no such key; {group} has {_listed(known)}')


def _listed(keys: Any) -> str:
  return ', '.join(keys)
