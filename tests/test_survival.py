"""The short form of `launch/survival.py`, and what it would notice."""

import importlib
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers import processes

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# A folder of scripts, which find each other beside themselves.
sys.path.insert(0, os.path.join(ROOT, 'launch'))
survival = importlib.import_module('survival')
survival_run = importlib.import_module('survival_run')


@pytest.mark.slow
@pytest.mark.campaign
def test_short_campaign(tmp_path):
  path = tmp_path / 'survival.json'
  done = subprocess.run(
    [
      *(sys.executable, 'launch/survival.py', '--kills=3', '--short'),
      *(f'--workdir={tmp_path}/runs', f'--json={path}'),
    ],
    cwd=ROOT,
    env={**processes.optimised(), 'JAX_NUM_CPU_DEVICES': '1'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert path.exists(), done.stderr
  found = json.loads(path.read_text())
  wrong = [row for row in found['rows'] if row['wrong'] or row['differs']]
  assert done.returncode == 0, wrong
  assert not wrong
  assert found['totals']['kills'] == 3
  assert found['totals']['inside_a_write'] >= 1
  names = [row['interruption'] for row in found['rows']]
  assert names.count('SIGTERM') == 1
  if found['skipped']:
    assert 'not possible here' in found['skipped'][0]
  else:
    assert names[-2:] == [
      'disk full, in a checkpoint',
      'read-only, in a checkpoint',
    ]
  assert str(tmp_path) not in path.read_text()
  assert '| kill -9 |' in done.stdout


def test_moments_are_spread_over_the_run():
  runs = survival.plan(20, 5, random.Random(0))
  assert [len(moments) for moments in runs] == [5, 5, 5, 5]
  moments = [moment for run in runs for moment in run]
  assert {moment['stage'] for moment in moments} == {0, 1, 2, 3}
  steps = [m['step'] for m in moments if m['kind'] == 'write']
  assert len(steps) == 10
  # Checkpoints are written at 4, 8, 12, 16 and 20.
  assert max(steps) <= 12
  assert runs == survival.plan(20, 5, random.Random(0))
  assert runs != survival.plan(20, 5, random.Random(1))


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
def test_differences(tmp_path, monkeypatch, kernel, steps, accuracy, expected):
  kernels = {'a': 1.5, 'b': kernel}
  monkeypatch.setattr(
    survival_run,
    'arrays',
    lambda workdir, *_: {'w': np.float64([kernels[os.path.basename(workdir)]])},
  )
  write_run(tmp_path / 'a', 1.5, (1, 2), 0.5)
  write_run(tmp_path / 'b', kernel, steps, accuracy)
  found = survival_run.differences(str(tmp_path / 'b'), str(tmp_path / 'a'))
  assert found == expected


def test_signed_zeros_and_dtypes_differ():
  one = {'w': np.float32([0.0])}
  assert survival_run._same_arrays(one, {'w': np.float32([0.0])})
  for other in ({'w': np.float32([-0.0])}, {'w': np.int32([0])}, {}):
    assert not survival_run._same_arrays(one, other)
