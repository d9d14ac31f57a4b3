"""Accelerators that programs are compiled for without being there.

A target is a chip and its topology: `h100:2`, `v5e:2x2`, `v5p:2x2x1`. Nothing
can be run on it.
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.experimental import topologies

from dhat_jax import arguments
from dhat_jax.models import cpu_conv

# The GPU as XLA describes it, in openxla/xla:
# xla/backends/gpu/target_config/specs/h100_sxm.txtpb.
_H100_SXM = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84929347584
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 9 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclasses.dataclass(frozen=True)
class Chip:
  """An accelerator's published figures.

  Attributes:
    platform: 'gpu' or 'tpu'.
    dimensions: of its topology.
    most: chips of the largest topology; a TPU's pod.
    memory_bytes: main memory per device.
    peak: operations per second and device in bfloat16, dense.
    float32_peak: likewise in full float32, without TensorFloat-32.
    bandwidth: bytes per second and device of the main memory.
    devices: of a chip, as its compiler divides it.
  """

  platform: str
  dimensions: int
  most: int
  memory_bytes: int
  peak: float
  float32_peak: float
  bandwidth: float
  devices: int = 1

  @property
  def usable_bytes(self) -> int:
    """What programs may fill: of a GPU the 75 % that JAX takes by default."""
    part = 0.75 if self.platform == 'gpu' else 1
    return int(part * self.memory_bytes)


def _tpu(
  dimensions: int, most: int, memory_bytes: int, peak: float, bandwidth: float
) -> Chip:
  # A TPU multiplies in bfloat16 alone; a product at precision 'highest' takes
  # six passes, which jax.lax.DotAlgorithmPreset names BF16_BF16_F32_X6.
  rates = {'peak': peak, 'float32_peak': peak / 6, 'bandwidth': bandwidth}
  return Chip('tpu', dimensions, most, memory_bytes, **rates)


CHIPS = {
  # NVIDIA's data sheet of the H100 SXM: 67 TFLOPS in FP32. Many more GPUs than
  # a run has, so that a slip of the finger takes no minutes.
  'h100': Chip('gpu', 1, 4096, 84_929_347_584, 989e12, 67e12, 3.35e12),
  'v4': dataclasses.replace(
    _tpu(3, 4096, 16 * 2**30, 137.5e12, 0.6e12), devices=2
  ),
  'v5e': _tpu(2, 256, 16 * 2**30, 197e12, 0.82e12),
  'v5p': _tpu(3, 8960, 95 * 2**30, 459e12, 2.77e12),
  'v6e': _tpu(2, 256, 32 * 2**30, 918e12, 1.64e12),
}
# What a platform's compiler comes in: the modules, the extra.
_WHEELS = {
  'gpu': (('jax_plugins.xla_cuda12', 'nvidia.cuda_nvcc'), 'compile-gpu'),
  'tpu': (('libtpu',), 'compile-tpu'),
}
# Other processes may compile too; nothing asks who the TPU's hosts are.
_LIBTPU = {
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
}
_EXAMPLES = 'h100:1, h100:2, v5e:2x2, v6e:2x2, v4:2x2x1, v5p:2x2x1'


@dataclasses.dataclass(frozen=True)
class Target:
  """What is compiled for.

  Attributes:
    name: as it was given.
    chip: its figures.
    sides: of the topology.
  """

  name: str
  chip: Chip
  sides: tuple[int, ...]

  @property
  def num_devices(self) -> int:
    """Number of devices."""
    return math.prod(self.sides) * self.chip.devices

  @contextlib.contextmanager
  def tracing(self) -> Iterator[None]:
    """Traces for the target's platform inside."""
    with cpu_conv.compiling_for(self.chip.platform):
      yield


def parse_all(texts: Sequence[str]) -> list[Target]:
  """Reads one or more targets.

  Raises:
    ValueError: none, or see `parse`.
  """
  if not texts:
    raise ValueError(
      f'--target: got nothing, expected one or more, as {_EXAMPLES}'
    )
  return [parse(text) for text in dict.fromkeys(texts)]


def parse(text: str) -> Target:
  """Reads a target, CHIP:TOPOLOGY.

  Raises:
    ValueError: unknown, or no topology of that chip.
  """
  name, _, topology = text.partition(':')
  chip = arguments.one_of('--target', name, CHIPS)
  shape = 'x'.join(['N'] * chip.dimensions)
  if not re.fullmatch(r'[1-9]\d*(x[1-9]\d*)*', topology) or (
    topology.count('x') != chip.dimensions - 1
  ):
    raise ValueError(
      f'--target: got {text!r}, expected {name}:{shape}, as in {_EXAMPLES}'
    )
  sides = tuple(map(int, topology.split('x')))
  _check_sides(text, chip, sides)
  return Target(text, chip, sides)


def _check_sides(text: str, chip: Chip, sides: tuple[int, ...]) -> None:
  """Raises ValueError for a topology that the chip does not come in."""
  if math.prod(sides) > chip.most or (chip.dimensions == 2 and max(sides) > 16):
    most = '16x16 chips' if chip.dimensions == 2 else f'{chip.most} chips'
    raise ValueError(
      f'--target: got {arguments.shown(text)}, expected at most {most}'
    )
  # A TPU's host has 2x2 chips.
  hosts = chip.platform == 'tpu' and math.prod(sides) > 1
  if hosts and any(side % 2 for side in sides[:2]):
    raise ValueError(
      f'--target: got {text!r}, expected one chip, or multiples of 2 as the '
      f'first two sides, as in {_EXAMPLES}'
    )


def is_installed(module: str) -> bool:
  """Whether a module could be imported."""
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:  # of its package
    return False


def missing(
  target: Target, is_installed: Callable[[str], bool] = is_installed
) -> str | None:
  """Returns what is not installed for a target, in one line, or None."""
  modules, extra = _WHEELS[target.chip.platform]
  absent = [name for name in modules if not is_installed(name)]
  if absent:
    return (
      f'--target={target.name}: got no {absent[0]}, expected the extra '
      f"{extra}: pip install 'dhat_jax[{extra}]'"
    )
  return None


def prepare() -> None:
  """Keeps JAX on the CPU; call it before JAX starts."""
  jax.config.update('jax_platforms', 'cpu')
  for name, value in _LIBTPU.items():
    os.environ.setdefault(name, value)


def devices(target: Target) -> list[Any]:
  """Returns a target's devices, to be compiled for.

  Raises:
    ValueError: its compiler is not installed, is of another version than JAX,
      or does not know the topology.
  """
  problem = missing(target)
  if problem:
    raise ValueError(problem)
  try:
    return list(_topology(target).devices)
  except (RuntimeError, ValueError, NotImplementedError) as error:
    (line, *_) = str(error).splitlines() or [type(error).__name__]
    raise ValueError(
      f'--target: got {target.name!r}, which the compiler of '
      f'jax {jax.__version__} and {versions([target])} refuses ({line}); '
      f'expected one that it knows, as {_EXAMPLES}'
    ) from error


def _topology(target: Target) -> Any:
  if target.chip.platform == 'gpu':
    # Hosts, processes of a host, devices.
    return topologies.get_topology_desc(
      platform='cuda',
      target_config=_H100_SXM,
      topology=f'1x1x{target.num_devices}',
    )
  # One chip alone is no part of a host that the compiler knows.
  alone = {'chips_per_host_bounds': [1, 1, 1]}
  return topologies.get_topology_desc(
    platform='tpu',
    topology_name=target.name,
    **(alone if math.prod(target.sides) == 1 else {}),
  )


def versions(targets: Sequence[Target]) -> dict[str, str]:
  """Returns {package: version} of the compilers of targets."""
  packages = {
    {'gpu': 'jax-cuda12-pjrt', 'tpu': 'libtpu'}[target.chip.platform]
    for target in targets
  }
  return {name: importlib.metadata.version(name) for name in sorted(packages)}
