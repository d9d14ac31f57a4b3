"""Training steps: time, memory, arithmetic against the machine's peak."""

import copy
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from dhat_jax import from_config
from dhat_jax.benchmark import timing
from dhat_jax.datasets.base import Split
from dhat_jax.runtime import devices, documents, streams
from dhat_jax.training import cost
from dhat_jax.training.stages import Stage, initial_state
from dhat_jax.training.state import TrainState

# Rows and columns of the matrices that measure the peak.
_PEAK_SIZES = {'cpu': 2048, 'gpu': 8192, 'tpu': 8192}


def random_split(config: ml_collections.ConfigDict, count: int) -> Split:
  """Returns random images with labels: what they show costs no time."""
  rng = np.random.default_rng(0)
  shape = count, *from_config.image_shape(config)
  return Split(
    rng.integers(256, size=shape, dtype=np.uint8),
    rng.integers(config.dataset.num_classes, size=count, dtype=np.int32),
  )


def random_batch(
  config: ml_collections.ConfigDict, batch_size: int
) -> dict[str, np.ndarray]:
  """Returns a batch of random images, split over the devices."""
  split = random_split(config, batch_size)
  mask = np.ones(batch_size, bool)
  return devices.shard(
    {'images': split.images, 'labels': split.labels, 'mask': mask}
  )


@dataclasses.dataclass
class Trainer:
  """A stage's training step as the run compiles it, ready to be called.

  Attributes:
    stage: what is trained.
    image_shape: (H, W, C).
    state: the current state, one copy per device.
    batch: the batch that it is trained on, split over the devices.
    mapped: the compiled step.
    compile_seconds: from the traced step to the compiled one.
    trace_seconds: before that.
  """

  stage: Stage
  image_shape: tuple[int, int, int]
  state: TrainState
  batch: Mapping[str, jax.Array]
  mapped: Callable
  compile_seconds: float
  trace_seconds: float

  def __call__(self) -> Any:
    """Trains one step and waits for it; returns the metrics."""
    self.state, sums = self.mapped(self.state, self.batch)
    return jax.block_until_ready(sums)


def make_stage(
  config: ml_collections.ConfigDict, name: str, batch_size: int
) -> Stage:
  """Returns a stage of a config, with another batch size."""
  config = copy.deepcopy(config)
  config[name].batch_size = batch_size
  devices.check_batch_size('--batch_size', batch_size)
  # A training set of a few batches: schedules do not matter here.
  return from_config.make_stage(config, name, 50 * batch_size)


def make_trainer(
  config: ml_collections.ConfigDict, name: str, batch_size: int
) -> Trainer:
  """Compiles a stage's step, from random weights on random images.

  Args:
    config: the run's config.
    name: of the stage.
    batch_size: global.

  Raises:
    ValueError: bad config, or a batch that does not divide over the devices.
  """
  stage = make_stage(config, name, batch_size)
  image_shape = from_config.image_shape(config)
  state = devices.replicate(initial_state(stage, image_shape))
  batch = random_batch(config, batch_size)
  step = devices.mapped_train_step(stage.step)
  started = time.perf_counter()
  lowered = step.lower(state, batch)
  traced = time.perf_counter()
  compiled = lowered.compile()
  ended = time.perf_counter()
  return Trainer(
    stage=stage,
    image_shape=image_shape,
    state=state,
    batch=batch,
    mapped=compiled,
    compile_seconds=ended - traced,
    trace_seconds=traced - started,
  )


@functools.cache
def matrix_product(dtype: str) -> tuple[Callable[[], Any], float]:
  """Returns (a large matrix product, its floating point operations).

  Of random numbers: a GPU multiplies ones faster than what a network holds.
  """
  size = _PEAK_SIZES[jax.default_backend()]
  matrix = jax.random.normal(streams.key(0), (size, size), dtype)
  multiply = jax.jit(lambda x: x @ x)
  return lambda: multiply(matrix), 2 * size**3 * jax.device_count()


def memory(trainer: Trainer) -> dict[str, int]:
  """Returns what a step holds per device, in bytes, as far as XLA tells."""
  analysis = trainer.mapped.memory_analysis()
  sizes = {
    'arguments': analysis.argument_size_in_bytes,
    'temporaries': analysis.temp_size_in_bytes,
    'donated': analysis.alias_size_in_bytes,
  }
  statistics = jax.local_devices()[0].memory_stats() or {}
  if 'peak_bytes_in_use' in statistics:
    sizes['peak'] = statistics['peak_bytes_in_use']
  return sizes


@dataclasses.dataclass(frozen=True)
class Problem:
  """What is measured.

  Attributes:
    config: the run's config.
    stage: its name.
    batch_size: global.
  """

  config: ml_collections.ConfigDict
  stage: str
  batch_size: int


def measure(
  problems: Sequence[Problem], *, repeats: int
) -> list[dict[str, Any]]:
  """Measures training steps that take turns, with each other and the peak.

  The peak is the fastest of as many matrix products of the same precision.

  Args:
    problems: what is trained.
    repeats: timed steps of each.

  Returns:
    A row for each, as JSON can hold it.
  """
  trainers = [make_trainer(p.config, p.stage, p.batch_size) for p in problems]
  dtypes = {problem.config.model.dtype for problem in problems}
  products = {dtype: matrix_product(dtype) for dtype in dtypes}
  times = timing.alternate(
    dict(enumerate(trainers)) | {d: f for d, (f, _) in products.items()},
    repeats=repeats,
    warmup=2,
  )
  rows = []
  for index, problem in enumerate(problems):
    dtype = problem.config.model.dtype
    peak = products[dtype][1] / min(times[dtype])
    summary = timing.summary(times[index])
    rows.append(make_row(problem, trainers[index], summary, peak))
  return rows


def make_row(
  problem: Problem, trainer: Trainer, times: dict[str, Any], peak: float
) -> dict[str, Any]:
  """Returns the row of a problem.

  Args:
    problem: what was measured.
    trainer: its step.
    times: `timing.summary` of the steps.
    peak: floating point operations per second that are possible.
  """
  stage = trainer.stage
  costs = cost.parts(stage.net, trainer.image_shape)
  operations = 2 * cost.needed(
    costs, stage.role, stage.loss, stage.attack_steps, stage.gradients
  )
  rate = problem.batch_size / times['median']
  return {
    'stage': stage.name,
    'batch_size': problem.batch_size,
    'dtype': problem.config.model.dtype,
    'attack_steps': stage.attack_steps,
    'devices': jax.device_count(),
    'step_seconds': times['median'],
    'images_per_second': rate,
    'compile_seconds': trainer.compile_seconds,
    'trace_seconds': trainer.trace_seconds,
    'times': times,
    'gflop_per_image': operations / 1e9,
    'peak_gflops': peak / 1e9,
    # Both at their fastest: the machine's speed changes within seconds.
    'utilisation': operations * problem.batch_size / times['min'] / peak,
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
    {'rows': those of `measure`}.
  """
  problems = []
  for dtype in dtypes:
    typed = copy.deepcopy(config)
    typed.model.dtype = dtype
    problems += [
      Problem(typed, stage, size) for stage in stages for size in batch_sizes
    ]
  rows = measure(problems, repeats=repeats)
  for row in rows:
    report(
      f'{row["stage"]}, {row["batch_size"]} images, {row["dtype"]}: '
      f'{row["step_seconds"]:.3f} s'
    )
  return {'rows': rows}


def table(measured: Mapping[str, Any]) -> str:
  """Returns the Markdown table of what `run` returns."""
  headers = (
    'stage',
    'batch',
    'dtype',
    'step, s',
    'spread',
    'images/s',
    'tracing, s',
    'compiling, s',
    'GFLOP/image',
    'of peak',
    'temporaries, MiB',
  )
  return documents.markdown_table(headers, map(_cells, measured['rows']))


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
  """Formats a row of `measure`."""
  times = row['times']
  spread = (times['max'] - times['min']) / times['median']
  return (
    row['stage'],
    row['batch_size'],
    row['dtype'],
    f'{row["step_seconds"]:.3f}',
    f'{100 * spread:.0f} %',
    f'{row["images_per_second"]:.1f}',
    f'{row["trace_seconds"]:.1f}',
    f'{row["compile_seconds"]:.1f}',
    f'{row["gflop_per_image"]:.1f}',
    f'{100 * row["utilisation"]:.0f} %',
    f'{row["memory"]["temporaries"] / 2**20:.0f}',
  )
