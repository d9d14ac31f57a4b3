"""Reads a workdir, complete or not; damage becomes a sentence, not an error."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dhat_jax.runtime import documents, files

_SAME_ACCURACY = 1e-6  # accuracies that differ by less are of the same images


@dataclasses.dataclass(frozen=True)
class Output:
  """An output of the network that was evaluated.

  Attributes:
    name: its key in the results.
    label: what it is called in sentences, figures and tables.
    trained: whether a stage trains it; others are computed of trained ones.
  """

  name: str
  label: str
  trained: bool = True

  @property
  def phrase(self) -> str:
    """What it is called within a sentence: 'the main head'."""
    # Older results give no label, and some labels are the name itself.
    return f'the {self.label}' + (' output' if self.label == self.name else '')


@dataclasses.dataclass
class Run:
  """One workdir.

  Attributes:
    directory: its path.
    results: of results.json; empty if there is none.
    records: of metrics.jsonl, in order.
    config: of config.json; empty if there is none.
    environment: of environment.json; empty if there is none.
    outputs: those that were evaluated, in the order of the results.
    problems: sentences about what cannot be read.
    name: what it is called, the folder's name by default.
  """

  directory: str
  results: dict[str, Any]
  records: list[dict[str, Any]]
  config: dict[str, Any]
  environment: dict[str, Any]
  outputs: list[Output]
  problems: list[str]
  name: str = ''

  def __post_init__(self):
    self.name = self.name or os.path.basename(os.path.abspath(self.directory))

  @property
  def first_output(self) -> Output | None:
    """The output that the others are compared with: the main one."""
    return self.outputs[0] if self.outputs else None

  @property
  def final_output(self) -> Output | None:
    """What the run is about: the aggregated output if it has one."""
    # Older results do not name it: it is their last one.
    name = self.results.get('final_output')
    named = [output for output in self.outputs if output.name == name]
    return [*self.outputs, *named][-1] if self.outputs else None

  @property
  def is_dual(self) -> bool:
    """Whether the final output is an aggregator's, as in DH-AT."""
    return bool(self.results.get('heads') or self.results.get('audit'))

  @property
  def red_flags(self) -> list[dict[str, Any]]:
    """The audit's red flags; also empty without an audit."""
    audit = self.results.get('audit')
    return audit['flags'] if audit else []

  def label(self, name: str) -> str:
    """Returns what an output is called; the name itself if it is unknown."""
    return next((o.label for o in self.outputs if o.name == name), name)

  @property
  def class_names(self) -> list[str]:
    """The classes, in order; empty without results."""
    rows = self.results.get('per_class', {})
    return list(rows.get(self.final_output.name, ())) if self.outputs else []

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

  def robust(self, output: str, attack: str) -> np.ndarray | None:
    """Returns which images an output gets right under an attack: bool [n].

    Returns:
      None where no such record is readable, or one that is not of the results.
    """
    flags = self.arrays(output, attack).get('robust')
    accuracy = self.results['accuracy'].get(output, {}).get(attack)
    if flags is None or flags.ndim != 1 or not len(flags) or accuracy is None:
      return None
    if abs(float(flags.astype(bool).mean()) - accuracy) > _SAME_ACCURACY:
      return None
    return flags.astype(bool)

  def arrays(self, output: str, attack: str) -> dict[str, np.ndarray]:
    """Returns the arrays stored for an attack; {} if they are not readable."""
    path = os.path.join(self.directory, 'evaluation', output, f'{attack}.npz')
    try:
      with np.load(path) as file:
        return dict(file)
    except Exception:  # NumPy and zipfile raise a great many types
      return {}


def load(directory: str) -> Run:
  """Reads a workdir; whatever is missing or damaged is left empty.

  Raises:
    ValueError: no such folder, or nothing of a run in it.
  """
  if not os.path.isdir(directory):
    raise ValueError(
      f'--workdir: got {directory!r}, which is no folder; expected the '
      'workdir of a run'
    )
  problems: list[str] = []
  results = _results(directory, problems)
  records = _records(directory, problems)
  config = _object(directory, 'config.json', files.read_json, problems)
  # Other programs have a config.json, too. What is damaged was there once.
  if not (results or records or problems or 'stages' in config):
    raise ValueError(
      f'--workdir: got {directory!r}, which holds no run; expected a folder '
      'with the config.json, metrics.jsonl or results.json of one'
    )
  return Run(
    directory=directory,
    results=results,
    records=records,
    config=config,
    environment=_object(
      directory, 'environment.json', files.read_json, problems
    ),
    outputs=_outputs(results, problems),
    problems=problems,
  )


def load_all(directories: Sequence[str]) -> list[Run]:
  """Reads workdirs; a number is added to the name of a second such folder.

  Raises:
    ValueError: no such folder, or nothing of a run in one.
  """
  runs: list[Run] = []
  names: set[str] = set()
  for directory in directories:
    run = load(directory)
    name, number = run.name, 2
    while run.name in names:
      run.name, number = f'{name}_{number}', number + 1
    names.add(run.name)
    runs.append(run)
  return runs


def _object(
  directory: str,
  name: str,
  reader: Callable[[str], Any],
  problems: list[str],
) -> dict[str, Any]:
  """Reads a file that holds a JSON object; {} if it is not there."""
  try:
    value = reader(os.path.join(directory, name))
  except FileNotFoundError:
    return {}
  except (OSError, ValueError) as error:
    problems.append(f'{name} cannot be read: {error}')
    return {}
  if not isinstance(value, dict):
    problems.append(f'{name} cannot be read: it holds no object')
    return {}
  return value


def _results(directory: str, problems: list[str]) -> dict[str, Any]:
  results = _object(directory, 'results.json', documents.read, problems)
  if results and not isinstance(results.get('accuracy'), dict):
    problems.append('results.json cannot be read: it holds no accuracies')
    return {}
  return results


def _outputs(results: Mapping[str, Any], problems: list[str]) -> list[Output]:
  """Returns the evaluated outputs; older results list their names alone."""
  evaluated = results.get('accuracy', {})
  try:
    listed = [_output(row) for row in results.get('outputs', ())]
  except (AttributeError, KeyError, TypeError) as error:
    reason = f'{type(error).__name__}: {error}'
    problems.append(f'results.json: its outputs cannot be read ({reason})')
    listed = []
  names = {output.name for output in listed}
  return [output for output in listed if output.name in evaluated] + [
    _output({'name': name}) for name in evaluated if name not in names
  ]


def _output(row: Mapping[str, Any]) -> Output:
  name, label = row['name'], row.get('label', row['name'])
  if not isinstance(name, str) or not isinstance(label, str):
    raise TypeError(f'got {name!r} and {label!r}, expected text')
  # Results that say nothing of stages: the mean of the heads has none.
  trained = row['stage'] is not None if 'stage' in row else name != 'mean'
  return Output(name, label, trained)


def _records(directory: str, problems: list[str]) -> list[dict[str, Any]]:
  """Reads metrics.jsonl, without the lines that are no record."""
  path = os.path.join(directory, 'metrics.jsonl')

  def on_damage(number: int) -> None:
    problems.append(f'metrics.jsonl: line {number} cannot be read')

  try:
    lines = files.read_json_lines(path, on_damage)
  except FileNotFoundError:
    return []
  except (OSError, ValueError) as error:
    problems.append(f'metrics.jsonl cannot be read: {error}')
    return []
  records = []
  for line in lines:
    if isinstance(line, dict) and {'stage', 'step'} <= line.keys():
      records.append(line)
    else:
      problems.append(
        f'metrics.jsonl: got {line!r:.40}, expected an object with stage and '
        'step'
      )
  return records
