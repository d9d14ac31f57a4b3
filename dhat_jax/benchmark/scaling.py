"""How the cost of a training step, and of AutoAttack, grows."""

import copy
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections

from dhat_jax.attacks.autoattack.budget import Budget
from dhat_jax.benchmark import autoattack_sides, timing, training
from dhat_jax.runtime import documents


@dataclasses.dataclass(frozen=True)
class Axes:
  """What is varied, one at a time.

  Attributes:
    batch_sizes: global.
    attack_steps: of the training attack.
    backbones: by name.
    classes: numbers of them, each with all of
    aggregators: by name; the stage is then the aggregator's.
    devices: simulated ones, on a CPU alone.
    images: under AutoAttack.
    attacks: of AutoAttack.
  """

  batch_sizes: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
  attack_steps: tuple[int, ...] = (1, 2, 5, 10, 20)
  backbones: tuple[str, ...] = (
    'wrn10_1',
    'wrn10_2',
    'wrn10_4',
    'wrn16_2',
    'wrn28_2',
  )
  classes: tuple[int, ...] = (10, 100)
  aggregators: tuple[str, ...] = ('pairwise', 'classwise')
  devices: tuple[int, ...] = (1, 2)
  images: tuple[int, ...] = (32, 64, 128, 256)
  attacks: tuple[str, ...] = autoattack_sides.STANDARD


AXES = Axes()
# Of AutoAttack: small, for what grows with it is known.
BUDGET = Budget(n_iter=5, n_queries=40, n_targets=2)
IMAGES_AT_ONCE = 64


def _changed(
  config: ml_collections.ConfigDict, values: dict[str, Any]
) -> ml_collections.ConfigDict:
  """Returns a copy with other values, given as {'dotted.key': value}."""
  config = copy.deepcopy(config)
  config.update_from_flattened_dict(values)
  return config


def _problems(
  config: ml_collections.ConfigDict, stage: str, batch_size: int, axes: Axes
) -> Iterator[tuple[str, dict[Any, training.Problem]]]:
  """Yields (axis, {value: problem}) for all that one process can measure."""

  def problem(
    values: dict[str, Any],
    stage: str = stage,
    batch_size: int = batch_size,
  ) -> training.Problem:
    return training.Problem(_changed(config, values), stage, batch_size)

  yield (
    'batch_size',
    {size: problem({}, batch_size=size) for size in axes.batch_sizes},
  )
  key = f'{stage}.attack.steps'
  yield (
    'attack_steps',
    {steps: problem({key: steps}) for steps in axes.attack_steps},
  )
  yield (
    'backbone',
    {name: problem({'model.backbone': name}) for name in axes.backbones},
  )
  yield (
    'classes',
    {
      f'{classes} {name}': problem(
        {'dataset.num_classes': classes, 'model.aggregator': name},
        stage='aggregator',
      )
      for classes in axes.classes
      for name in axes.aggregators
    },
  )


def _on_devices(arguments: Sequence[str], num_devices: int) -> dict[str, Any]:
  """Measures in a process of its own, which has that many CPU devices.

  Args:
    arguments: of a benchmark of one training step.
    num_devices: simulated.

  Returns:
    The step's row.
  """
  program = [sys.executable, '-m', 'dhat_jax.benchmark', *arguments]
  process = subprocess.run(
    [*program, '--what=training', f'--cpu_devices={num_devices}', '--json'],
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  row = json.loads(process.stdout.splitlines()[-1])
  # That process may have read the cache instead of compiling.
  del row['compile_seconds'], row['trace_seconds']
  return row


def _autoattack(
  config: ml_collections.ConfigDict, axes: Axes
) -> dict[int, dict[str, float]]:
  """Times AutoAttack on images of which none breaks: {count: row}."""
  attacks = {}
  for count in axes.images:
    problem = autoattack_sides.make_problem(config, None, count)
    attacks[count] = autoattack_sides.Ours(
      problem, axes.attacks, BUDGET, IMAGES_AT_ONCE
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
  arguments: Sequence[str],
  *,
  repeats: int = 3,
  axes: Axes = AXES,
  report: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Measures along every axis, the others held fixed.

  Args:
    config: what is held fixed.
    stage: which is trained.
    batch_size: what is held fixed.
    arguments: the command line that the config is of, for processes with
      another number of devices: '--config=...' and what overrides it.
    repeats: timed steps.
    axes: what is varied.
    report: called with a line after each measurement.

  Returns:
    {'stage', 'batch_size', 'rows': [{'axis', 'value', 'step_seconds', ...}]}.
  """
  rows = []

  def keep(axis: str, value: Any, row: dict[str, Any]) -> None:
    rows.append({'axis': axis, 'value': value, **row})
    report(f'{axis} {value}: {row["step_seconds"]:.3f} s')

  for axis, problems in _problems(config, stage, batch_size, axes):
    measured = training.measure(list(problems.values()), repeats=repeats)
    for value, row in zip(problems, measured, strict=True):
      keep(axis, value, row)
    jax.clear_caches()
  if jax.default_backend() == 'cpu':
    step = f'--stage={stage}', f'--batch_size={batch_size}'
    for num_devices in axes.devices:
      row = _on_devices(
        [*arguments, *step, f'--repeats={repeats}', '--out='], num_devices
      )
      keep('devices', num_devices, row)
  for count, row in _autoattack(config, axes).items():
    keep('autoattack_images', count, row)
  return {'stage': stage, 'batch_size': batch_size, 'rows': rows}


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
