"""Speed beside PyTorch, rehearsed on the CPU with tiny sizes."""

import pytest

from dhat_jax.attacks.autoattack.budget import Budget
from dhat_jax.runtime import config_file
from experiments import accelerator_speed, accelerator_torch

SPEED = {'repeats': 2, 'compiled': False, 'images': 4}


def speed_items():
  configs = [config_file.read('configs/digits.py') for _ in range(2)]
  configs[1].model.backbone = 'wrn16_1'
  return {
    item.name: item
    for item in accelerator_speed.items(configs, (4, 8), **SPEED)
  }


def test_speed_begins_with_what_matters_most():
  names = list(speed_items())
  assert [name.removesuffix('/torch') for name in names[:6]] == [
    'wrn10_1/main_head/bfloat16/4',
    'wrn16_1/main_head/bfloat16/4',
    'wrn10_1/second_head/bfloat16/4',
    'wrn10_1/aggregator/bfloat16/4',
    'wrn10_1/main_head/bfloat16/8',
    'wrn16_1/main_head/bfloat16/8',
  ]
  assert len(set(names)) == len(names)


def test_step_alone():
  row = speed_items()['wrn10_1/main_head/float32/4'].measure()
  assert row['network'] == 'wrn10_1'
  assert row['dtype'] == 'float32'
  assert row['batch_size'] == 4
  assert row['images_per_second'] == pytest.approx(4 / row['step_seconds'])
  assert 0 < row['utilisation'] < 1
  assert row['memory']['temporaries'] > 0
  assert row['ratios'] == row['errors'] == {}
  assert 'of the peak' in row['line']


def last_cells(lines):
  """Returns the cells of a table's last row; the first one is empty."""
  return [cell.strip() for cell in lines[-1].splitlines()[-1].split('|')]


@pytest.mark.oracle
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_step_beside_torch(dtype):
  pytest.importorskip('torch')
  config = config_file.read('configs/digits.py')
  config.second_head.attack.steps = 1
  row = accelerator_speed.measure_step(
    config,
    'second_head',
    4,
    dtype,
    repeats=2,
    beside_torch=True,
    compiled=False,  # which takes minutes here
  )
  assert row['errors'] == {}
  assert row['ratios'].keys() == {'optimised', 'published'}
  assert row['first_seconds'].keys() == row['ratios'].keys()
  assert row['agrees'], row['losses']
  cells = last_cells(accelerator_speed.table([row]))
  assert cells[1:5] == ['wrn10_1', 'second_head', dtype, '4']
  assert float(cells[9]) == round(row['ratios']['published'], 2)


@pytest.mark.oracle
def test_autoattack_beside_the_original():
  pytest.importorskip('torch')
  pytest.importorskip('pyautoattack')
  config = config_file.read('configs/digits.py')
  row = accelerator_speed.measure_autoattack(
    config,
    'square',
    tf32=True,
    images=3,
    repeats=1,
    budget=Budget(n_iter=2, n_queries=5, n_targets=2),
  )
  assert row['robust'] == {'ours': 3, 'theirs': 3}
  assert row['tf32']
  assert row['ratio'] > 0
  table = accelerator_speed.table([{**row, 'item': 'wrn10_1/square'}])
  assert last_cells(table)[1:5:3] == ['wrn10_1/square', f'{row["ratio"]:.2f}']


def test_a_side_that_fails_does_not_stop_the_others():
  def broken():
    raise RuntimeError('no compiler')

  steps, losses, seconds, errors = accelerator_torch.ready(
    {'broken': broken, 'whole': lambda: lambda: 2.5}
  )
  assert list(steps) == ['whole']
  assert losses == {'whole': 2.5}
  assert seconds.keys() == {'whole'}
  assert errors == {'broken': 'RuntimeError: no compiler'}
