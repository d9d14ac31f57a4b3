"""What the rows of a slice depend on: machine, versions, code, config."""

import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from dhat_jax import from_config
from dhat_jax.runtime import provenance

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = 'dhat_jax', 'experiments'


def _digest(*parts: bytes) -> str:
  total = hashlib.sha256()
  for part in parts:
    total.update(hashlib.sha256(part).digest())
  return total.hexdigest()[:16]


@functools.cache
def code() -> str:
  """Returns a digest of this package's and the experiments' code."""
  paths = sorted(
    path for package in PACKAGES for path in (ROOT / package).rglob('*.py')
  )
  names = [str(path.relative_to(ROOT)).encode() for path in paths]
  return _digest(*names, *(path.read_bytes() for path in paths))


def config_digest(config: ml_collections.ConfigDict) -> str:
  """Returns a digest of a config's values."""
  values = from_config.as_json(config)
  return _digest(json.dumps(values, sort_keys=True, default=str).encode())


def identity(
  paths: Sequence[str],
  configs: Sequence[ml_collections.ConfigDict],
  *,
  peers: Sequence[str] = (),
  flags: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Returns what rows depend on, as JSON gives it back.

  Args:
    paths: of the configs, as `--config` gives them.
    configs: what is there.
    peers: packages that are compared with, whether installed or not.
    flags: of the command, those that change rows.
  """
  import jax

  device = jax.devices()[0].device_kind
  return {
    'device': provenance.processor() if device == 'cpu' else device,
    'devices': jax.device_count(),
    'versions': {
      name: provenance.version(name)
      for name in ('jax', 'jaxlib', 'flax', *peers)
    },
    'code': code(),
    'configs': {
      path: config_digest(config)
      for path, config in zip(paths, configs, strict=True)
    },
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
    **(flags or {}),
  }
