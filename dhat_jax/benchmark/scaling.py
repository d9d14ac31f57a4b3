"""How the cost of a training step, and of AutoAttack, grows."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import ml_collections

from dhat_jax.attacks.autoattack import passes
from dhat_jax.benchmark import autoattack_sides, timing, training
from dhat_jax.runtime import documents

BATCH_SIZES = (8, 16, 32, 64, 128, 256)
ATTACK_STEPS = (1, 2, 5, 10, 20)
BACKBONES = ('wrn10_1', 'wrn10_2', 'wrn10_4', 'wrn16_2', 'wrn28_2')
CLASSES = (10, 100)
AGGREGATORS = ('pairwise', 'classwise')
DEVICES = (1, 2)
IMAGES = (32, 64, 128, 256)
# Of AutoAttack: small, for what grows with it is known.
BUDGET = passes.Budget(n_iter=5, n_queries=40, n_targets=2)
IMAGES_AT_ONCE = 64


def _changed(
  config: ml_collections.ConfigDict, values: dict[str, Any]
) -> ml_collections.ConfigDict:
  """Returns a copy with other values, given as {'dotted.key': value}."""
  config = copy.deepcopy(config)
  config.update_from_flattened_dict(values)
  return config


def _axes(
  config: ml_collections.ConfigDict, stage: str, batch_size: int
) -> Iterator[tuple[str, dict[Any, training.Problem]]]:
  """Yields (axis, {value: problem}) for all that one process can measure."""

  def problem(
    config: ml_collections.ConfigDict,
    stage: str = stage,
    batch_size: int = batch_size,
  ) -> training.Problem:
    return training.Problem(config, stage, batch_size)

  yield (
    'batch_size',
    {size: problem(config, batch_size=size) for size in BATCH_SIZES},
  )
  yield (
    'attack_steps',
    {
      steps: problem(_changed(config, {f'{stage}.attack.steps': steps}))
      for steps in ATTACK_STEPS
    },
  )
  yield (
    'backbone',
    {
      name: problem(_changed(config, {'model.backbone': name}))
      for name in BACKBONES
    },
  )
  yield (
    'classes',
    {
      f'{classes} {name}': problem(
        _changed(
          config, {'dataset.num_classes': classes, 'model.aggregator': name}
        ),
        stage='aggregator',
      )
      for classes in CLASSES
      for name in AGGREGATORS
    },
  )


def _on_devices(
  config: ml_collections.ConfigDict,
  stage: str,
  batch_size: int,
  *,
  devices: int,
  repeats: int,
) -> dict[str, Any]:
  """Measures in a process of its own, which has that many CPU devices."""
  code = (
    'import json, sys\n'
    'from dhat_jax.runtime import processes\n'
    f'processes.initialize(cpu_devices={devices})\n'
    'import ml_collections\n'
    'from dhat_jax.benchmark import training\n'
    'config, stage, size, repeats = json.load(sys.stdin)\n'
    'config = ml_collections.ConfigDict(config)\n'
    'problem = training.Problem(config, stage, size)\n'
    'rows = training.measure([problem], repeats=repeats)\n'
    'print(json.dumps(rows[0]))\n'
  )
  values = json.loads(config.to_json())
  process = subprocess.run(
    [sys.executable, '-c', code],
    input=json.dumps([values, stage, batch_size, repeats]),
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return json.loads(process.stdout.splitlines()[-1])


def _autoattack(
  config: ml_collections.ConfigDict,
) -> dict[int, dict[str, float]]:
  """Times AutoAttack on images of which none breaks: {count: row}."""
  attacks = {}
  for count in IMAGES:
    problem = autoattack_sides.make_problem(config, None, count)
    attacks[count] = autoattack_sides.Ours(
      problem, autoattack_sides.STANDARD, BUDGET, IMAGES_AT_ONCE
    )
  times = timing.alternate(attacks, repeats=2)
  return {
    count: {'step_seconds': timing.summary(values)['median']}
    for count, values in times.items()
  }


def run(
  config: ml_collections.ConfigDict,
  stage: str,
  batch_size: int,
  *,
  repeats: int = 3,
  report: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Measures along every axis, the others held fixed.

  Args:
    config: what is held fixed.
    stage: which is trained.
    batch_size: what is held fixed.
    repeats: timed steps.
    report: called with a line after each measurement.

  Returns:
    A JSON document: {'rows': [{'axis', 'value', 'step_seconds', ...}]}.
  """
  rows = []

  def keep(axis, value, row):
    rows.append({'axis': axis, 'value': value, **row})
    report(f'{axis} {value}: {row["step_seconds"]:.3f} s')

  for axis, problems in _axes(config, stage, batch_size):
    measured = training.measure(list(problems.values()), repeats=repeats)
    for value, row in zip(problems, measured, strict=True):
      keep(axis, value, row)
    jax.clear_caches()
  if jax.default_backend() == 'cpu':
    for devices in DEVICES:
      row = _on_devices(
        config, stage, batch_size, devices=devices, repeats=repeats
      )
      # That process may have read the cache instead of compiling.
      del row['compile_seconds'], row['trace_seconds']
      keep('devices', devices, row)
  for count, row in _autoattack(config).items():
    keep('autoattack_images', count, row)
  return {
    'stage': stage,
    'batch_size': batch_size,
    'rows': rows,
  }


def table(measured: Mapping[str, Any]) -> str:
  """Returns the Markdown table of what `run` returns.

  The ratio is to the row before on the same axis.
  """
  headers = (
    'varied',
    'value',
    'step, s',
    'to the row before',
    'temporaries, MiB',
    'compiling, s',
  )
  rows, before = [], {}
  for row in measured['rows']:
    axis, seconds = row['axis'], row['step_seconds']
    ratio = f'{seconds / before[axis]:.2f}' if axis in before else ''
    before[axis] = seconds
    held = row.get('memory', {}).get('temporaries')
    compiling = row.get('compile_seconds')
    rows.append(
      (
        axis,
        row['value'],
        f'{seconds:.3f}',
        ratio,
        '' if held is None else f'{held / 2**20:.0f}',
        '' if compiling is None else f'{compiling:.1f}',
      )
    )
  return documents.markdown_table(headers, rows, left=2)
