"""Starts JAX's backend; a failure is one line.

JAX itself shows tracebacks of its internals here. XLA ends the whole process at
an unknown flag.
"""

import functools
import os
import re
import warnings

import jax
import jax.extend
from jaxlib import xla_client

_GPU = "a GPU needs NVIDIA's driver and pip install 'dhat_jax[gpu]'"
_HOW_TO_GET = {
  'cuda': _GPU,
  'gpu': _GPU,
  'tpu': "a TPU needs a TPU VM and pip install 'dhat_jax[tpu]'",
}
_UNSET = -1  # JAX's own, of the number of CPU devices


def use_cpu(count: int) -> None:
  """Runs on a number of simulated CPU devices.

  Raises:
    ValueError: JAX already runs on other devices.
  """
  try:
    jax.config.update('jax_num_cpu_devices', count)
  except RuntimeError as error:
    raise ValueError(
      f'cpu_devices: got {count}, but JAX runs already, on '
      f'{len(jax.devices())} devices; give it before anything uses JAX'
    ) from error
  jax.config.update('jax_platforms', 'cpu')


def check_xla_flags() -> None:
  """Raises ValueError for flags in XLA_FLAGS that XLA does not know.

  XLA would end the process, so another process tries them.
  """
  flags = os.environ.get('XLA_FLAGS', '').strip()
  if flags and hasattr(os, 'fork'):
    _try_xla_flags(flags)


@functools.cache
def _try_xla_flags(flags: str) -> None:
  reader, writer = os.pipe()
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # of threads, which the child does not use
    child = os.fork()
  if not child:
    os.dup2(writer, 2)
    xla_client.CompileOptions()  # which parses the flags
    os._exit(0)
  os.close(writer)
  with os.fdopen(reader, errors='replace') as pipe:
    output = pipe.read()
  _, status = os.waitpid(child, 0)
  if status:
    reasons = re.findall(r'parse_flags_from_env.*?\] (.*)', output)
    reason = reasons[0] if reasons else 'a flag with a value that is none'
    raise ValueError(f'XLA_FLAGS: got {flags!r}: {reason}')


def start() -> None:
  """Starts the backend.

  Raises:
    ValueError: a requested platform cannot start; with its name, the reason and
      the available platforms.
  """
  count = jax.config.jax_num_cpu_devices
  if count < 1 and count != _UNSET:
    raise ValueError(f'JAX_NUM_CPU_DEVICES: got {count}, expected at least 1')
  try:
    jax.devices()
  except (AssertionError, RuntimeError) as error:
    raise ValueError(_refusal(error)) from error


def _refusal(error: Exception) -> str:
  """Returns the line of a platform that cannot start."""
  where, asked = 'JAX_PLATFORMS', jax.config.jax_platforms
  if not asked:
    where, asked = 'JAX_PLATFORM_NAME', os.environ.get('JAX_PLATFORM_NAME')
  reason = (str(error).splitlines() or ['no plugin for it is installed'])[0]
  reason = reason.partition(' (set JAX_')[0].partition(' (you may')[0]
  parts = [
    f'{where}: got {asked!r}, which does not start here ({reason})',
    f'there is {_available()}',
  ]
  name = (asked or '').split(',')[0].lower()
  if name in _HOW_TO_GET:
    parts.append(_HOW_TO_GET[name])
  return '; '.join([*parts, f'to take what there is, unset {where}'])


def _available() -> str:
  """Returns 'cpu', or the platform that JAX finds itself."""
  before = {
    'jax_platforms': jax.config.jax_platforms,
    'jax_platform_name': os.environ.get('JAX_PLATFORM_NAME', ''),
  }
  for name in before:
    jax.config.update(name, '')
  try:
    platforms = {device.platform for device in jax.devices()}
    return ', '.join(sorted({*platforms, 'cpu'}))
  except Exception:  # whatever it is: nothing starts
    return 'nothing that starts'
  finally:
    jax.extend.backend.clear_backends()
    for name, value in before.items():
      jax.config.update(name, value)
