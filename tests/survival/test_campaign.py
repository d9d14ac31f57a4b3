"""The short campaign of interruptions, and what it would notice."""

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest

from dhat_jax.runtime import documents
from tests.helpers import processes
from tests.survival import campaign, run, table


@pytest.mark.slow
@pytest.mark.campaign
def test_short_campaign(tmp_path):
  path = tmp_path / 'survival.json'
  process = subprocess.run(
    [
      sys.executable,
      '-m',
      'tests.survival.campaign',
      # All of today's parts at once: whatever a step remembers is resumed.
      '--config=tests/helpers/modern_run.py:wrn10_1',
      '--kills=3',
      '--short',
      f'--workdir={tmp_path}/runs',
      f'--json={path}',
    ],
    cwd=run.ROOT,
    env={**processes.optimised(), 'JAX_NUM_CPU_DEVICES': '1'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert path.exists(), process.stderr
  document = documents.read(str(path))
  wrong = [row for row in document['rows'] if row['wrong'] or row['differs']]
  assert process.returncode == 0, wrong
  assert not wrong
  assert document['totals']['kills'] == 3
  assert document['totals']['inside_a_write'] >= 1
  names = [row['interruption'] for row in document['rows']]
  assert names.count('SIGTERM') == 1
  if document['skipped']:
    assert 'not possible here' in document['skipped'][0]
  else:
    assert names[-2:] == [
      'disk full, in a checkpoint',
      'read-only, in a checkpoint',
    ]
  assert str(tmp_path) not in path.read_text()
  assert '\n| kill -9 ' in process.stdout
  assert document['kind'] == 'survival'
  assert document['command'].startswith('python -m tests.survival.campaign ')


def test_moments_are_spread_over_the_run():
  runs = campaign.plan(20, 5, random.Random(0))
  assert [len(moments) for moments in runs] == [5, 5, 5, 5]
  moments = [moment for run in runs for moment in run]
  assert {moment['stage'] for moment in moments} == {0, 1, 2, 3}
  steps = [m['step'] for m in moments if m['kind'] == 'write']
  assert len(steps) == 10
  # Checkpoints are written at 4, 8, 12, 16 and 20.
  assert max(steps) <= 12
  assert runs == campaign.plan(20, 5, random.Random(0))
  assert runs != campaign.plan(20, 5, random.Random(1))


def write_run(folder, kernel, steps, accuracy):
  """What `differences` reads of a run, but for the checkpoints."""
  folder.mkdir()
  records = [
    {
      'stage': 'main_head',
      'step': step,
      'train/loss': kernel * step,
      'train/images_per_second': np.random.default_rng().uniform(),
    }
    for step in steps
  ]
  (folder / 'metrics.jsonl').write_text(
    ''.join(json.dumps(record) + '\n' for record in records)
  )
  results = {'accuracy': accuracy, 'seconds': {'main_head': kernel}}
  (folder / 'results.json').write_text(json.dumps(results))
  (folder / 'checkpoints' / 'main_head' / '20').mkdir(parents=True)


@pytest.mark.parametrize(
  ('kernel', 'steps', 'accuracy', 'expected'),
  [
    (1.5, (1, 2), 0.5, []),
    (
      np.nextafter(1.5, 2),
      (1, 2),
      0.5,
      ['main_head: arrays of step 20', 'metrics.jsonl'],
    ),
    (1.5, (1, 2, 2), 0.5, ['metrics.jsonl']),
    (1.5, (2,), 0.5, ['metrics.jsonl']),
    (1.5, (1, 2), 0.6, ['results.json']),
  ],
)
def test_differences(tmp_path, kernel, steps, accuracy, expected):
  kernels = {'a': 1.5, 'b': kernel}

  def read_arrays(workdir, stage, step):
    assert (stage, step) == ('main_head', 20)
    return {'w': np.float64([kernels[os.path.basename(workdir)]])}

  write_run(tmp_path / 'a', 1.5, (1, 2), 0.5)
  write_run(tmp_path / 'b', kernel, steps, accuracy)
  differing = run.differences(
    str(tmp_path / 'b'), str(tmp_path / 'a'), read_arrays
  )
  assert differing == expected


def test_signed_zeros_and_dtypes_differ():
  one = {'w': np.float32([0.0])}
  assert run._same_arrays(one, {'w': np.float32([0.0])})
  for other in ({'w': np.float32([-0.0])}, {'w': np.int32([0])}, {}):
    assert not run._same_arrays(one, other)


def test_table_of_a_campaign():
  kill = {
    'interruption': 'kill -9',
    'run': 1,
    'moment': '9.7 s',
    'stage': 'main_head',
    'step': 14,
    'inside a write': True,
    'steps lost': 2,
    'exit code': -9,
    'wrong': [],
    'differs': [],
  }
  full = {
    'interruption': 'disk full',
    'run': 2,
    'stage': 'evaluation',
    'step': 1,
    'exit code': 0,
    'wrong': ['exit code 0'],
    'differs': ['results.json'],
  }
  document = {
    'seconds': 61.4,
    'totals': table.totals([kill, full]),
    'skipped': ['something: not possible here'],
    'rows': [kill, full],
    'machine': {
      'device': 'cpu',
      'cores': 2,
      'processor': 'a CPU',
      'versions': {'jax': '1.2'},
    },
  }
  text, _, caption = table.lines(document)
  rows = [
    [cell.strip() for cell in line.strip('|').split('|')]
    for line in text.split('\n')
  ]
  assert rows[2] == (
    ['kill -9', '1', '9.7 s', 'main_head', '14', 'yes', '2', '-9', 'yes']
  )
  assert rows[3] == (
    [
      'disk full',
      '2',
      '',
      'evaluation',
      '1',
      '',
      '',
      '0',
      'exit code 0; results.json',
    ]
  )
  assert caption == (
    '2 interruptions, 1 of them kills (1 in main_head; 1 inside the write of a '
    'checkpoint); 2 steps trained again; 1 rows not as they should be; 61 s on '
    '2 cores of a CPU, jax 1.2. something: not possible here'
  )
