"""What training steps wait for their batches."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from dhat_jax.benchmark import training
from dhat_jax.datasets import batches
from dhat_jax.runtime import devices, documents

# Images of the data set that is made up; all in memory, as in a run.
IMAGES = 50_000


def measure(
  config: ml_collections.ConfigDict,
  stage: str,
  batch_size: int,
  *,
  num_steps: int,
) -> dict[str, Any]:
  """Trains as a run does: shuffled, sharded and prefetched batches.

  Args:
    config: the run's config.
    stage: its name.
    batch_size: global.
    num_steps: how many.

  Returns:
    One row, a JSON document.
  """
  trainer = training.make_trainer(config, stage, batch_size)
  trainer()
  source = batches.ShuffledSplit(
    training.random_split(config, IMAGES), batch_size=batch_size, seed=0
  )
  sharded = batches.prefetch(
    devices.shard(source.batch(step)) for step in range(num_steps)
  )
  waited = 0.0
  started = time.perf_counter()
  for _ in range(num_steps):
    before = time.perf_counter()
    trainer.batch = next(sharded)
    waited += time.perf_counter() - before
    trainer()
  total = time.perf_counter() - started
  return {
    'stage': stage,
    'batch_size': batch_size,
    'steps': num_steps,
    'seconds': total,
    'waited_seconds': waited,
    'share': waited / total,
  }


def run(
  config: ml_collections.ConfigDict,
  stages: tuple[str, ...],
  batch_size: int,
  *,
  num_steps: int = 300,
  report: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Measures stages; returns {'rows': those of `measure`}."""
  rows = []
  for stage in stages:
    row = measure(config, stage, batch_size, num_steps=num_steps)
    rows.append(row)
    report(f'{stage}: {100 * row["share"]:.2f} % of {row["seconds"]:.0f} s')
  return {'rows': rows}


def table(measured: Mapping[str, Any]) -> str:
  """Returns the Markdown table of what `run` returns."""
  headers = (
    'stage',
    'batch',
    'steps',
    'all, s',
    'waited for batches, s',
    'share',
  )
  rows = [
    (
      row['stage'],
      row['batch_size'],
      row['steps'],
      f'{row["seconds"]:.1f}',
      f'{row["waited_seconds"]:.2f}',
      f'{100 * row["share"]:.2f} %',
    )
    for row in measured['rows']
  ]
  return documents.markdown_table(headers, rows)
