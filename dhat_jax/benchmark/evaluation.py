"""A whole evaluation with its records: memory by the number of images."""

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from dhat_jax import from_config
from dhat_jax.benchmark import timing, training
from dhat_jax.datasets.base import Split
from dhat_jax.evaluation.evaluator import Evaluator
from dhat_jax.evaluation.results import evaluate
from dhat_jax.models.outputs import final
from dhat_jax.runtime import devices, documents, memory, processes
from dhat_jax.training.stages import initial_state

# What an evaluation of few images is compared with.
SMALLER = 10


def correct_split(
  config: ml_collections.ConfigDict,
  evaluator: Evaluator,
  variables: Any,
  count: int,
) -> Split:
  """Returns random images of which the final output has all right.

  So there every image is attacked.

  Args:
    config: the run's config.
    evaluator: of the network.
    variables: on the host.
    count: number of images.
  """
  split = training.random_split(config, count)
  logits = evaluator.logits(devices.replicate(variables), split)
  labels = logits[final(evaluator.outputs)].argmax(axis=1)
  return Split(split.images, labels.astype(np.int32))


def evaluate_twice(
  config: ml_collections.ConfigDict, count: int, directory: str
) -> dict[str, Any]:
  """Evaluates an untrained network twice, each time in a new folder.

  Args:
    config: the run's config.
    count: number of images, all of which the network has right.
    directory: a new folder.

  Returns:
    `images`, and `images_mib` of them; `first_seconds`, in which it compiles
    or reads what is compiled, and `second_seconds`; `first_peak_mib` and
    `second_peak_mib`, the most memory that the process held until then (Linux);
    `records` and `records_mib` on disk.
  """
  processes.initialize()
  name = config.stages[-1]
  stage = from_config.make_stage(config, name, 50 * config[name].batch_size)
  state = initial_state(stage, from_config.image_shape(config))
  variables = jax.tree.map(np.asarray, state.variables())
  evaluator = from_config.make_evaluator(config, stage.net)
  plan = from_config.make_plan(config, stage.net)
  split = correct_split(config, evaluator, variables, count)
  row = {'images': count, 'images_mib': split.images.nbytes / 2**20}
  for turn in ('first', 'second'):
    folder = os.path.join(directory, turn)
    started = time.perf_counter()
    evaluate(
      evaluator,
      variables,
      split,
      plan,
      class_names=tuple(map(str, range(config.dataset.num_classes))),
      seed=config.seed,
      directory=folder,
    )
    row[f'{turn}_seconds'] = time.perf_counter() - started
    row[f'{turn}_peak_mib'] = memory.peak_mib()
  sizes = [
    os.path.getsize(os.path.join(where, name))
    for where, _, names in os.walk(folder)
    for name in names
    if name.endswith('.npz')
  ]
  return row | {'records': len(sizes), 'records_mib': sum(sizes) / 2**20}


def run(
  config: ml_collections.ConfigDict,
  images: int,
  *,
  report: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Measures evaluations of a tenth of the images and of all.

  Args:
    config: the run's config; its parts are the package's.
    images: their number.
    report: called with a line after each.

  Returns:
    {'rows': those of `evaluate_twice`, each of a process of its own}.
  """
  rows = []
  for count in (max(1, images // SMALLER), images):
    with tempfile.TemporaryDirectory() as folder:
      rows.append(timing.in_new_process(evaluate_twice, config, count, folder))
    report(
      f'{count} images: {rows[-1]["first_seconds"]:.1f} and '
      f'{rows[-1]["second_seconds"]:.1f} s'
    )
  return {'rows': rows}


def table(measured: Mapping[str, Any]) -> str:
  """Returns the Markdown table of what `run` returns."""
  columns = {
    'peak memory, MiB': ('first_peak_mib', 0),
    'after the second, MiB': ('second_peak_mib', 0),
    'the images, MiB': ('images_mib', 1),
    'records': ('records', 0),
    'their files, MiB': ('records_mib', 2),
  }
  rows = [
    (
      f'{row["images"]:,}',
      *(
        '' if row[key] is None else f'{row[key]:,.{digits}f}'
        for key, digits in columns.values()
      ),
    )
    for row in measured['rows']
  ]
  return documents.markdown_table(('images', *columns), rows)
