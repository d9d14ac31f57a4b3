"""Four TPU v5e: a training step and attacks of a tiny network compile."""

import pytest

from tests.compile import compiled

pytestmark = pytest.mark.compile
compiled.skip_without('v5e:2x2')


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
  return compiled.rows(
    tmp_path_factory.mktemp('tpu'),
    '--config=tests/helpers/tiny_run.py',
    '--target=v5e:2x2',
    '--stage=aggregator',
    '--programs=training,fab-t,square',
    '--batch_size=32',
    '--dtype=bfloat16',
  )


def test_every_program_compiles(rows):
  assert list(rows) == ['aggregator', 'fab-t', 'square']
  for name, row in rows.items():
    assert 'error' not in row, (name, row)
    assert row['transfers'] == [], name
    assert row['loops'] >= 1, name
    assert row['cost_analysis']['bytes_accessed'] > 0, name


def test_the_state_is_donated_whole(rows):
  assert rows['aggregator']['aliases'] == rows['aggregator']['state_leaves']


def test_training_is_in_half_precision(rows):
  found = rows['aggregator']['convolutions']
  assert found['by_dtype']['bf16'] > 10
  # Some products of classifier and aggregator are written as convolutions.
  assert found['float32_outside'] == []


def test_gradients_are_summed_in_one_all_reduce(rows):
  kinds = rows['aggregator']['all_reduces']
  assert kinds['gradients']['number'] == 1
  assert kinds['batch norm']['number'] <= 6


def test_memory(rows):
  # Two state copies of some 100 kB, and features that are smaller.
  assert rows['aggregator']['memory']['temporaries'] < 2**20


def test_sorts_and_gathers_of_the_attacks(rows):
  # Classes are ranked before; FAB's projections and Square sort nothing.
  traced = {name: rows[name]['traced'] for name in ('fab-t', 'square')}
  assert {name: t['sorts'] for name, t in traced.items()} == {
    'fab-t': 0,
    'square': 0,
  }
  for name, before in traced.items():
    assert before['top_k'] == 0
    assert before['gathers'] >= 1
    assert rows[name]['gathers'] >= 1
    assert rows[name]['sorts'] >= before['sorts']


def test_all_of_todays_parts_at_once(tmp_path):
  compiled.check_modern_rows(compiled.modern_rows(tmp_path, 'v5e:2x2'))
