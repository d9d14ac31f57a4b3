"""What a killed evaluation left is read, what does not fit is made again."""

import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from dhat_jax.evaluation.store import Store
from tests.evaluation.spies import Killed, spied
from tests.helpers import tiny_suite

ROOT = pathlib.Path(__file__).parents[2]
FULL = tiny_suite.FULL


@pytest.fixture(scope='module')
def case():
  return tiny_suite.case()


def run(case, folder, stop_after=None, **overrides):
  """Returns (results, what really ran)."""
  calls = []
  plan = spied(tiny_suite.make_plan(case[0], **overrides), calls, stop_after)
  try:
    return tiny_suite.run(*case, folder, plan=plan, **overrides), calls
  except Killed:
    return None, calls


def test_resumes_and_repeats_nothing(case, tmp_path):
  results, everything = run(case, tmp_path / 'whole', **FULL)
  folder = tmp_path / 'killed'
  nothing, first = run(case, folder, stop_after=9, **FULL)
  assert nothing is None
  # A record that was cut off counts as missing.
  path = folder / 'main' / 'pgd_3.npz'
  path.write_bytes(path.read_bytes()[:200])
  again, second = run(case, folder, **FULL)
  assert again == results
  assert set(first) & set(second) == {('main', 'pgd_3')}
  assert len(first) == 9
  assert set(first) | set(second) == set(everything)
  # Now everything is there.
  again, third = run(case, folder, **FULL)
  assert again == results
  assert third == []


def test_other_settings_and_weights_invalidate(case, tmp_path):
  net, variables, split = case
  few = {'attacks': ('clean', 'pgd_3')}
  _, calls = run(case, tmp_path, **few)
  assert len(calls) == 8
  # What does not depend on the radius is still good.
  _, calls = run(case, tmp_path, **few, epsilon=0.05)
  assert [name for _, name in calls] == ['pgd_3'] * 4
  _, calls = run(case, tmp_path, **few, epsilon=0.05, norm='l2')
  assert len(calls) == 8
  other = {**variables, 'params': dict(variables['params'])}
  other['params']['main_head'] = tiny_suite.network(seed=1)[1]['params'][
    'main_head'
  ]
  _, calls = run((net, other, split), tmp_path, **few, epsilon=0.05)
  assert len(calls) == 8


def test_a_record_that_was_edited_is_an_error(case, tmp_path):
  run(case, tmp_path, attacks=('clean',))
  path = tmp_path / 'main' / 'clean.npz'
  with np.load(path) as file:
    arrays = dict(file)
  arrays['robust'] = ~arrays['robust']
  np.savez(path, **arrays)
  with pytest.raises(ValueError, match='disagree on 42 of 42'):
    run(case, tmp_path, attacks=('clean',))


@pytest.mark.slow
def test_what_an_earlier_version_began_is_begun_anew(tmp_path):
  """Its attack could not go on, and would refuse the folder."""
  store = Store(str(tmp_path), 'identity')
  folder = pathlib.Path(store.folder('aggregated/autoattack', {'steps': 1}))
  (folder / 'problem.json').touch()
  store.folder('aggregated/autoattack', {'steps': 1})
  assert (folder / 'problem.json').exists()
  label = folder / 'evaluation.json'
  owner = json.loads(label.read_text())
  del owner['version']  # as the first version wrote it
  label.write_text(json.dumps(owner))
  store.folder('aggregated/autoattack', {'steps': 1})
  assert sorted(path.name for path in folder.iterdir()) == ['evaluation.json']


def test_killed_inside_autoattack_ends_with_the_same_flags(tmp_path):
  whole = tiny_suite.autoattack(tmp_path / 'whole')
  folder = tmp_path / 'killed'

  def start():
    return subprocess.Popen(
      [sys.executable, '-m', 'tests.helpers.tiny_suite', str(folder)],
      cwd=ROOT,
      env={**os.environ, 'JAX_NUM_CPU_DEVICES': '2'},
      stdout=subprocess.PIPE,
      text=True,
    )

  def pieces():
    return {
      str(path): path.stat().st_mtime_ns
      for path in folder.rglob('*/autoattack*/apgd*.npz')
    }

  process = start()
  deadline = time.monotonic() + 120
  while len(pieces()) < 2 and time.monotonic() < deadline:
    time.sleep(0.01)
  process.kill()
  process.communicate()
  before = pieces()
  assert before
  assert not list(folder.glob('aggregated/autoattack*.npz'))
  output, _ = start().communicate(timeout=240)
  after = pieces()
  assert {path: after[path] for path in before} == before
  assert json.loads(output.strip().split('\n')[-1]) == whole
