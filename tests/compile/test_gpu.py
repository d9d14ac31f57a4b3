"""Two H100: every training step and every attack of AutoAttack compiles."""

import pytest

from dhat_jax.attacks.autoattack import checks
from dhat_jax.runtime import documents
from dhat_jax.training.stages import roles
from tests.compile import compiled

pytestmark = pytest.mark.compile
compiled.skip_without('h100:2')

STAGES = list(roles())
BATCH = 128  # per device
# Temporaries, MiB: a quarter more than they were, 555, 272, 218.
MOST_TEMPORARIES = {'main_head': 690, 'second_head': 340, 'aggregator': 275}
# Batch norms of WRN-16-4 in the trained parts, each in two forward passes; the
# compiler sums the gradients of both passes at once.
BATCH_NORMS = {'main_head': 13, 'second_head': 9, 'aggregator': 2}


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
  return compiled.rows(
    tmp_path_factory.mktemp('gpu'),
    '--config=configs/cifar10.py:trades_wrn16_4',
    '--target=h100:2',
    f'--batch_size={2 * BATCH}',
    '--dtype=bfloat16',
  )


def test_every_program_compiles(rows):
  assert list(rows) == [*STAGES, 'evaluation', *checks.NAMES]
  for name, row in rows.items():
    assert 'error' not in row, (name, row)
    assert row['compile_seconds'] > 0


def test_nothing_moves_between_device_and_host(rows):
  for name, row in rows.items():
    assert row['transfers'] == [], name


def test_every_convolution_has_its_channels_last(rows):
  for name, row in rows.items():
    found = row['convolutions']
    # Attacks hold the network once, Square without its gradient.
    assert found['number'] > 20, name
    assert found['by_fastest'] == {'channels': found['number']}, name


@pytest.mark.parametrize('stage', STAGES)
def test_memory(rows, stage):
  memory = rows[stage]['memory']
  assert 0 < memory['temporaries'] < MOST_TEMPORARIES[stage] * 2**20


@pytest.mark.parametrize('stage', STAGES)
def test_the_state_is_donated_whole(rows, stage):
  row = rows[stage]
  assert row['aliases'] == row['state_leaves'] > 100


@pytest.mark.parametrize('stage', STAGES)
def test_training_is_in_half_precision(rows, stage):
  row = rows[stage]
  found = row['convolutions']
  assert found['by_dtype'] == {'bf16': found['number']}
  assert found['float32_outside'] == []
  # Less than one map of features: what augmentation and aggregator need.
  assert row['float32_features']['bytes'] < 4 * BATCH * 32 * 32 * 64
  assert row['layout_changes']['number'] == 0


@pytest.mark.parametrize('stage', STAGES)
def test_gradients_are_summed_in_one_all_reduce(rows, stage):
  kinds = rows[stage]['all_reduces']
  assert kinds['gradients']['number'] == 1
  assert kinds['batch norm']['number'] <= 3 * BATCH_NORMS[stage]
  assert set(kinds) <= {'gradients', 'batch norm', 'other'}
  # The number of examples.
  assert kinds.get('other', {'bytes': 0})['bytes'] <= 8


@pytest.mark.parametrize('attack', checks.NAMES)
def test_attacks_sum_nothing_over_devices_and_are_in_float32(rows, attack):
  row = rows[attack]
  assert row['all_reduces'] == {}
  found = row['convolutions']
  assert found['by_dtype'] == {'f32': found['number']}
  assert row['loops'] >= 1


# Of the traced programs: sorts, top_k. The DLR loss takes the largest logits.
# The classes are ranked before; FAB's projections and Square do neither.
SELECTIONS = {
  'apgd-ce': (0, 0),
  'apgd-dlr': (0, 1),
  'apgd-t': (0, 1),
  'fab': (0, 0),
  'fab-t': (0, 0),
  'square': (0, 0),
}


@pytest.mark.parametrize('attack', checks.NAMES)
def test_sorts_top_k_and_gathers_of_the_attacks(rows, attack):
  row, traced = rows[attack], rows[attack]['traced']
  assert (traced['sorts'], traced['top_k']) == SELECTIONS[attack]
  # The compiler makes sorts of top_k, and merges or drops none.
  assert (row['sorts'], row['top_k']) == (sum(SELECTIONS[attack]), 0)
  assert traced['gathers'] >= 1
  assert row['gathers'] >= 1
  assert traced['loops'] >= 1


def test_what_did_not_compile_is_the_exit_code(tmp_path):
  """All that is asked for is there already: nothing is compiled."""
  path = tmp_path / 'compiled.json'
  arguments = [
    '--config=tests/helpers/tiny_run.py',
    '--target=h100:2',
    '--programs=square',
    '--batch_size=8',
  ]
  done = compiled.rows(tmp_path, *arguments)['square']
  document = documents.read(str(path))
  document['rows'] = [done, {**done, 'batch_size': 16, 'error': 'too large'}]
  documents.write(str(path), document)
  process = compiled.run(path, *arguments, '--resume')
  assert process.returncode == 1, process.stderr[-2000:]
  assert process.stderr.endswith('error: 1 of 2 do not compile\n')
  assert 'does not compile' in process.stdout
  assert documents.read(str(path))['rows'] == document['rows']


def test_rematerialisation_takes_less_memory(tmp_path):
  plain, remat = (
    compiled.rows(
      tmp_path / str(remat),
      '--config=configs/cifar10.py:trades_wrn16_4',
      f'--config.model.remat={remat}',
      '--target=h100:1',
      '--stage=main_head',
      '--programs=training',
      f'--batch_size={BATCH}',
      '--dtype=bfloat16',
    )['main_head']
    for remat in (False, True)
  )
  temporaries = [row['memory']['temporaries'] for row in (remat, plain)]
  assert temporaries[0] < 0.75 * temporaries[1]
  # The convolutions are computed again.
  assert remat['convolutions']['number'] > plain['convolutions']['number']


def test_all_of_todays_parts_at_once(tmp_path):
  compiled.check_modern_rows(compiled.modern_rows(tmp_path, 'h100:2'))
