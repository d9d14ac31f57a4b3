"""Evaluated runs, made of which images each output gets right."""

import json

import numpy as np

from dhat_jax.report import read
from tests.report.workdirs import OUTPUTS


def right(*counts):
  """Flags of images: `right(3, 2, 1)` is 3 right, 2 wrong, 1 right ones."""
  return np.concatenate(
    [np.full(count, place % 2 == 0) for place, count in enumerate(counts)]
  )


def make(directory, records, stored=True, **results):
  """Writes results.json and the records that it follows from; returns its run.

  Args:
    directory: the workdir.
    records: {output: {attack: which images are right}}.
    stored: whether the records are written.
    **results: further keys of the results, or others in place of theirs.
  """
  directory.mkdir(parents=True, exist_ok=True)
  worst = {
    output: np.logical_and.reduce(
      [flags[: min(map(len, row.values()))] for flags in row.values()]
    )
    for output, row in records.items()
  }
  content = {
    'dataset': 'pets',
    'n_test': max(len(row['clean']) for row in records.values()),
    'seed': 3,
    'epsilon': 0.2,
    'outputs': [
      {'name': name, 'label': OUTPUTS[name][0], 'stage': OUTPUTS[name][1]}
      for name in records
    ],
    'accuracy': {
      output: {attack: float(np.mean(flags)) for attack, flags in row.items()}
      for output, row in records.items()
    },
    'worst_case': {name: float(np.mean(f)) for name, f in worst.items()},
    'worst_case_images': {name: len(flags) for name, flags in worst.items()},
  }
  if 'aggregated' in records:
    content['heads'] = {'influence': {'main': [0.5], 'second': [0.5]}}
  content |= results
  (directory / 'results.json').write_text(json.dumps(content))
  for output, row in records.items():
    folder = directory / 'evaluation' / output
    folder.mkdir(parents=True, exist_ok=True)
    for attack, flags in row.items():
      if stored:
        np.savez(folder / f'{attack}.npz', robust=flags)
  return read.load(str(directory))
