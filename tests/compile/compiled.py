"""Programs compiled for accelerators that are not there, in another process.

The command is the user's; a process of its own because JAX must not have
started with the flags of the other tests.
"""

import functools
import os
import subprocess
import sys

import pytest

from dhat_jax.benchmark import compile_targets
from dhat_jax.runtime import documents


def skip_without(target):
  """Skips the tests of a file where the target's compiler is missing.

  With DHAT_REQUIRE_COMPILERS=1 in the environment they fail.
  """
  problem = compile_targets.missing(compile_targets.parse(target))
  if problem and os.environ.get('DHAT_REQUIRE_COMPILERS') == '1':
    pytest.fail(problem, pytrace=False)
  if problem:
    pytest.skip(problem, allow_module_level=True)


def run(path, *arguments):
  """Runs the command; returns the finished process, its output as text."""
  env = {key: v for key, v in os.environ.items() if key != 'XLA_FLAGS'}
  command = [sys.executable, '-m', 'dhat_jax.benchmark', '--what=compile']
  return subprocess.run(
    [*command, *arguments, f'--out={path}'],
    capture_output=True,
    env=env,
    text=True,
  )


@functools.cache
def rows(folder, *arguments):
  """Compiles; returns {program: row}."""
  folder.mkdir(exist_ok=True)
  path = folder / 'compiled.json'
  process = run(path, *arguments)
  assert process.returncode == 0, process.stderr[-2000:]
  return {row['program']: row for row in documents.read(str(path))['rows']}


def modern_rows(folder, target):
  """Compiles a step with all of today's parts, and a mixed evaluation."""
  return rows(
    folder,
    '--config=tests/helpers/modern_run.py:dm_wrn10_1',
    '--config.model.aggregator=mixed',
    f'--target={target}',
    '--stage=main_head',
    '--programs=training,evaluation',
    '--batch_size=32',
    '--dtype=bfloat16',
  )


def check_modern_rows(rows):
  """Asserts on `modern_rows` what holds for every target."""
  for name, row in rows.items():
    assert 'error' not in row, (name, row)
    assert row['transfers'] == [], name
  step = rows['main_head']
  # The attack's; cropping, boxes and CutMix have none.
  assert step['loops'] == 1
  assert (step['sorts'], step['top_k']) == (0, 0)
  # One for the weights' perturbation, before its norms, one for the update.
  assert step['all_reduces']['gradients']['number'] == 2
  # Counters that are always equal share their memory.
  assert step['state_leaves'] - step['aliases'] <= 1
