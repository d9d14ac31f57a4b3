"""Small readers of config values, each with one clear error."""

import copy
import json
from collections.abc import Collection
from typing import Any

import ml_collections

from dhat_jax import arguments


def in_unit(
  spec: ml_collections.ConfigDict, name: str, where: str = ''
) -> float:
  """Returns `name` in [0, 1] units; `name_255` has precedence if given.

  Only this and `lengths_255` convert numbers over 255.

  Args:
    spec: has `name` and `name_255`, one of which may be None.
    name: 'epsilon' or 'step_size'.
    where: of `spec`, for the error: 'config.evaluation'.
  """
  path = f'{where}.{name}' if where else name
  over_255 = spec.get(f'{name}_255')
  value = spec.get(name)
  if over_255 is not None:
    value = arguments.number(f'{path}_255', over_255) / 255
  if value is None:
    raise ValueError(f'{path}: got nothing; give {path} or {path}_255')
  if not 0 <= arguments.number(path, value) <= 1:
    raise ValueError(
      f'{path}: got {value}, expected in [0, 1]; for units of 1/255 give '
      f'{path}_255'
    )
  return value


def lengths_255(name: str, values: tuple[float, ...]) -> dict[str, float]:
  """Returns {'8/255': 8 / 255, ...} of different lengths over 255."""
  arguments.sequence(name, values, arguments.number)
  labels = {f'{value:g}/255': value / 255 for value in values}
  if len(labels) < len(values) or not all(0 <= v <= 255 for v in values):
    raise ValueError(
      f'{name}: got {tuple(values)}, expected different numbers in [0, 255]'
    )
  return labels


def options_of(
  spec: ml_collections.ConfigDict, *, without: Collection[str] = ()
) -> dict[str, Any]:
  """Returns a node of a config as a plain dictionary, without some keys."""
  plain = spec.to_dict() if hasattr(spec, 'to_dict') else dict(spec)
  return {key: value for key, value in plain.items() if key not in without}


# What a config need not say: keys that are newer than the configs of some runs.
_DEFAULTS = {
  'dataset': {
    'augmentations': ('crop_flip',),
    'extra': {'files': (), 'fraction': 0.7},
  },
  'model': {'remat': False},
  'evaluation': {
    'autoattack_target_order': 'logits',
    'autoattack_screening': 'none',
    'audit_mora': True,
    'samples': 1,
    'audit_malt': False,
  },
}
_STAGE_DEFAULTS = {
  'attack': {
    'name': 'pgd',
    'statistics': 'running',
    'warmup_start_epoch': 1.0,
    'warmup_start_fraction': 0.0,
    'warmup_per_epoch': False,
  },
  'ema': {
    'copy_epochs': 0.0,
    'warm_up': False,
    'statistics': False,
    'use': True,
  },
  'optimizer': {'name': 'sgd'},
  'weight_perturbation': {'name': 'none'},
}


def completed(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns a copy of a config with the defaults of all missing keys."""
  config = copy.deepcopy(config)
  stages = arguments.sequence('config.stages', config.get('stages'))
  names = [name for name in stages if isinstance(name, str)]
  defaults = {**_DEFAULTS, **dict.fromkeys(names, _STAGE_DEFAULTS)}
  with config.unlocked():
    for group, values in defaults.items():
      if group in config:
        _add_missing(config[group], values)
  return config


def _add_missing(node: Any, values: dict) -> None:
  if not isinstance(node, ml_collections.ConfigDict):
    return  # `keys.check` says so
  for key, value in values.items():
    if key not in node:
      node[key] = copy.deepcopy(value)
    elif isinstance(value, dict):
      _add_missing(node[key], value)


def workdir_defaults() -> dict[str, Any]:
  """Returns {pattern of a dotted key: default} of keys that may be missing."""
  defaults = {**_DEFAULTS, '*': _STAGE_DEFAULTS}
  return json.loads(json.dumps(defaults))


def as_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns a config as plain JSON values (tuples become lists)."""
  return json.loads(config.to_json())
