"""Training steps: time, memory, arithmetic against the machine's peak."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dhat_jax import build, parallel, steps
from dhat_jax.benchmark import flops, timing
from dhat_jax.datasets.base import Split
from dhat_jax.stages import Stage
from dhat_jax.train_state import TrainState, create_train_state

# Rows and columns of the matrices that measure the peak.
_PEAK_SIZES = {'cpu': 2048, 'gpu': 8192, 'tpu': 8192}


def image_shape(config: ml_collections.ConfigDict) -> tuple[int, int, int]:
  """Returns the shape of a config's images, without loading them."""
  return (8, 8, 1) if config.dataset.name == 'digits' else (32, 32, 3)


def random_split(config: ml_collections.ConfigDict, count: int) -> Split:
  """Returns random images with labels: what they show costs no time."""
  rng = np.random.default_rng(0)
  return Split(
    rng.integers(256, size=(count, *image_shape(config)), dtype=np.uint8),
    rng.integers(config.dataset.num_classes, size=count, dtype=np.int32),
  )


@dataclasses.dataclass
class Trainer:
  """A stage's training step as the run compiles it, ready to be called.

  Attributes:
    stage: what is trained.
    net: the network.
    state: the current state, one copy per device.
    batch: the batch that it is trained on, split over the devices.
    mapped: the compiled step.
    compile_seconds: from the traced step to the compiled one.
    trace_seconds: before that.
  """

  stage: Stage
  net: Any
  state: TrainState
  batch: Mapping[str, jax.Array]
  mapped: Callable
  compile_seconds: float
  trace_seconds: float

  def __call__(self) -> Any:
    """Trains one step and waits for it; returns the metrics."""
    self.state, sums = self.mapped(self.state, self.batch)
    return jax.block_until_ready(sums)


def make_state(
  config: ml_collections.ConfigDict, stage: Stage, variables: Any = None
) -> TrainState:
  """Returns a stage's state at step 0, from random weights by default."""
  return create_train_state(
    net=build.model(config, outputs=stage.role.outputs),
    tx=stage.tx,
    trains=stage.role.trains,
    rng=jax.random.key(config.seed),
    image_shape=image_shape(config),
    variables=variables,
    ema=stage.ema_decay > 0,
  )


def make_stage(
  config: ml_collections.ConfigDict, name: str, batch_size: int
) -> tuple[ml_collections.ConfigDict, Stage]:
  """Returns (the config with that batch size, its stage)."""
  config = ml_collections.ConfigDict(config)
  config[name].batch_size = batch_size
  parallel.check_batch_size('--batch_size', batch_size)
  # A training set of a few batches: schedules do not matter here.
  return config, build.stage(config, name, 50 * batch_size)


def make_trainer(
  config: ml_collections.ConfigDict,
  name: str,
  batch_size: int,
  *,
  variables: Any = None,
) -> Trainer:
  """Compiles a stage's step.

  Args:
    config: the run's config.
    name: of the stage.
    batch_size: global.
    variables: weights, or None for random ones.

  Raises:
    ValueError: bad config, or a batch that does not divide over the devices.
  """
  config, stage = make_stage(config, name, batch_size)
  net = build.model(
    config, outputs=stage.role.outputs, axis_name=build.norm_axis(config)
  )
  step = steps.make_train_step(
    net=net,
    tx=stage.tx,
    loss=stage.loss,
    attack=stage.attack,
    attack_scale=stage.attack_scale,
    trains=stage.role.trains,
    output=stage.role.output,
    augment=build.augment(config),
    ema_decay=stage.ema_decay,
    axis_name=parallel.AXIS,
  )
  state = parallel.replicate(make_state(config, stage, variables))
  split = random_split(config, batch_size)
  batch = parallel.shard(
    {
      'images': split.images,
      'labels': split.labels,
      'mask': np.ones(batch_size, bool),
    }
  )
  mapped = jax.pmap(step, axis_name=parallel.AXIS, donate_argnums=0)
  started = time.perf_counter()
  lowered = mapped.lower(state, batch)
  traced = time.perf_counter()
  compiled = lowered.compile()
  ended = time.perf_counter()
  return Trainer(
    *(stage, net, state, batch, compiled),
    compile_seconds=ended - traced,
    trace_seconds=traced - started,
  )


def peak_flops(dtype: Any, repeats: int = 10) -> float:
  """Measures the fastest matrix product: floating point operations / s."""
  size = _PEAK_SIZES[jax.default_backend()]
  matrix = jnp.ones((size, size), dtype)
  multiply = jax.jit(lambda x: x @ x)
  times = timing.alternate({'': lambda: multiply(matrix)}, repeats=repeats)['']
  return 2 * size**3 / min(times) * jax.device_count()


def memory(trainer: Trainer) -> dict[str, int]:
  """Returns what a step holds per device, in bytes, as far as XLA tells."""
  found = trainer.mapped.memory_analysis()
  sizes = {
    'arguments': found.argument_size_in_bytes,
    'temporaries': found.temp_size_in_bytes,
    'donated': found.alias_size_in_bytes,
  }
  statistics = jax.local_devices()[0].memory_stats() or {}
  if 'peak_bytes_in_use' in statistics:
    sizes['peak'] = statistics['peak_bytes_in_use']
  return sizes


def measure(
  config: ml_collections.ConfigDict,
  name: str,
  batch_size: int,
  *,
  repeats: int,
  peak: float,
) -> dict[str, Any]:
  """Measures one stage at one batch size.

  Args:
    config: the run's config.
    name: of the stage.
    batch_size: global.
    repeats: timed steps.
    peak: from `peak_flops`.

  Returns:
    One row of the benchmark, a JSON document.
  """
  trainer = make_trainer(config, name, batch_size)
  times = timing.summary(
    timing.alternate({name: trainer}, repeats=repeats, warmup=2)[name]
  )
  costs = flops.parts(trainer.net, image_shape(config))
  steps_ = config[name].attack.steps
  operations = 2 * flops.needed(costs, name, trainer.stage.loss, steps_)
  rate = batch_size / times['median']
  return {
    'stage': name,
    'batch_size': batch_size,
    'dtype': config.model.dtype,
    'attack_steps': steps_,
    'devices': jax.device_count(),
    'step_seconds': times['median'],
    'images_per_second': rate,
    'compile_seconds': trainer.compile_seconds,
    'trace_seconds': trainer.trace_seconds,
    'times': times,
    'gflop_per_image': operations / 1e9,
    'utilisation': operations * rate / peak,
    'memory': memory(trainer),
  }


def run(
  config: ml_collections.ConfigDict,
  stages: tuple[str, ...],
  batch_sizes: tuple[int, ...],
  dtypes: tuple[str, ...] = ('float32',),
  *,
  repeats: int = 5,
  report: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Measures stages at several batch sizes and precisions.

  Returns:
    A JSON document; its rows are those of `measure`.
  """
  build.check(config)
  rows, peaks = [], {}
  for dtype in dtypes:
    own = ml_collections.ConfigDict(config)
    own.model.dtype = dtype
    peaks[dtype] = peak_flops(dtype)
    for stage in stages:
      for size in batch_sizes:
        row = measure(own, stage, size, repeats=repeats, peak=peaks[dtype])
        rows.append(row)
        report(f'{stage}, {size} images, {dtype}: {row["step_seconds"]:.3f} s')
  return {
    'what': 'training',
    'config': config.name,
    'repeats': repeats,
    'peak_gflops': {dtype: peak / 1e9 for dtype, peak in peaks.items()},
    'machine': timing.machine(),
    'rows': rows,
  }


def table(found: Mapping[str, Any]) -> str:
  """Returns what `run` found as a Markdown table."""
  lines = [
    '| stage | batch | dtype | step, s | spread | images/s | compiling, s '
    '| GFLOP/image | of peak | temporaries, MiB |',
    '|---|---:|---|' + '---:|' * 7,
  ]
  for row in found['rows']:
    times = row['times']
    spread = (times['max'] - times['min']) / times['median']
    lines.append(
      f'| {row["stage"]} | {row["batch_size"]} | {row["dtype"]} '
      f'| {row["step_seconds"]:.3f} | {100 * spread:.0f} % '
      f'| {row["images_per_second"]:.1f} | {row["compile_seconds"]:.1f} '
      f'| {row["gflop_per_image"]:.1f} | {100 * row["utilisation"]:.0f} % '
      f'| {row["memory"]["temporaries"] / 2**20:.0f} |'
    )
  return '\n'.join(lines)
