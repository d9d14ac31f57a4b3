"""What a workdir holds, whole or not."""

import dataclasses
import json
import os
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

OUTPUTS = ('main', 'second', 'mean', 'aggregated')


@dataclasses.dataclass
class Run:
  """One workdir.

  Attributes:
    directory: its path.
    results: of results.json; empty if there is none.
    records: of metrics.jsonl, in order.
    config: of config.json; empty if there is none.
    environment: of environment.json; empty if there is none.
    problems: sentences about what cannot be read.
    name: what it is called, the folder's name by default.
  """

  directory: str
  results: dict[str, Any]
  records: list[dict[str, Any]]
  config: dict[str, Any]
  environment: dict[str, Any]
  problems: list[str]
  name: str = ''

  def __post_init__(self):
    self.name = self.name or os.path.basename(os.path.abspath(self.directory))

  @property
  def outputs(self) -> list[str]:
    """The outputs that were evaluated."""
    return [o for o in OUTPUTS if o in self.results.get('accuracy', {})]

  @property
  def final_output(self) -> str | None:
    """What the run is about: the aggregated output if it has one."""
    return self.outputs[-1] if self.outputs else None

  @property
  def stages(self) -> list[str]:
    """The stages that have records, in order."""
    return list(dict.fromkeys(record['stage'] for record in self.records))

  def series(self, stage: str, key: str) -> tuple[list[int], list[float]]:
    """Returns the steps and the values of a metric of a stage."""
    points = [
      (record['step'], record[key])
      for record in self.records
      if record['stage'] == stage and key in record
    ]
    return [step for step, _ in points], [value for _, value in points]

  def part(self, output: str, attack: str) -> dict[str, np.ndarray] | None:
    """Returns what an attack on an output left, or None."""
    path = os.path.join(self.directory, 'evaluation', output, f'{attack}.npz')
    try:
      with np.load(path) as file:
        return dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
      return None


def _json(directory: str, name: str, problems: list[str]) -> dict[str, Any]:
  path = os.path.join(directory, name)
  try:
    with open(path, encoding='utf-8') as file:
      value = json.load(file)
  except FileNotFoundError:
    return {}
  except (OSError, ValueError) as error:
    problems.append(f'{name} cannot be read: {error}')
    return {}
  if not isinstance(value, dict):
    problems.append(f'{name} cannot be read: it holds no object')
    return {}
  return value


def _records(directory: str, problems: list[str]) -> list[dict[str, Any]]:
  """Reads metrics.jsonl; a last line that was cut off is left out."""
  path = os.path.join(directory, 'metrics.jsonl')
  records = []
  try:
    with open(path, encoding='utf-8') as file:
      lines = file.readlines()
  except FileNotFoundError:
    return []
  except (OSError, ValueError) as error:
    problems.append(f'metrics.jsonl cannot be read: {error}')
    return []
  for number, line in enumerate(lines, 1):
    try:
      record = json.loads(line)
      record['stage'], record['step']
      records.append(record)
    except (ValueError, KeyError, TypeError):
      if number < len(lines):
        problems.append(f'metrics.jsonl: line {number} cannot be read')
  return records


def load(directory: str) -> Run:
  """Reads a workdir; whatever is missing or broken is left empty.

  Raises:
    ValueError: no such folder.
  """
  if not os.path.isdir(directory):
    raise ValueError(
      f'--workdir: got {directory!r}, which is no folder; expected the '
      'workdir of a run'
    )
  problems = []
  results = _json(directory, 'results.json', problems)
  if results and not isinstance(results.get('accuracy'), dict):
    problems.append('results.json cannot be read: it holds no accuracies')
    results = {}
  return Run(
    directory=directory,
    results=results,
    records=_records(directory, problems),
    config=_json(directory, 'config.json', problems),
    environment=_json(directory, 'environment.json', problems),
    problems=problems,
  )


def load_all(directories: Sequence[str]) -> list[Run]:
  """Reads workdirs; folders of one name are told apart by a number.

  Raises:
    ValueError: no such folder.
  """
  runs, taken = [], set()
  for directory in directories:
    run = load(directory)
    name, number = run.name, 2
    while run.name in taken:
      run.name, number = f'{name}_{number}', number + 1
    taken.add(run.name)
    runs.append(run)
  return runs
