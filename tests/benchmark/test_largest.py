"""The search for the largest batch, on memory that is known."""

import pytest

from dhat_jax.benchmark import largest
from dhat_jax.configs import cifar10

GIB = 2**30
KEY = {
  'target': 'h100:1',
  'backbone': 'wrn16_4',
  'stage': 'main_head',
  'dtype': 'bfloat16',
}


def row(size, gib, fits=True):
  needed = None if gib is None else int(gib * GIB)
  return {
    **KEY,
    'batch_size': size,
    'bytes': needed,
    'fits': fits,
    'compile_seconds': 1.0,
  }


def searched(memory, usable):
  """The sizes that are compiled where `memory(size)` GiB are needed."""
  rows = []
  while size := largest.next_size(rows, usable * GIB):
    rows.append(row(size, memory(size), memory(size) <= usable))
  return rows


def test_a_straight_line_is_found_in_four_compilations():
  # 1 + size / 128 GiB in 12.5: 11 times 128.
  rows = searched(lambda size: 1 + size / 128, 12.5)
  assert [each['batch_size'] for each in rows] == [128, 256, 1408, 1536]
  assert [each['fits'] for each in rows] == [True, True, True, False]


def test_more_than_predicted_fits():
  # Above 1000 images, 100 of them are free.
  rows = searched(lambda size: 1 + (size - 300 * (size > 1000)) / 128, 12.5)
  assert [each['batch_size'] for each in rows][-3:] == [1536, 1664, 1792]
  assert [each['fits'] for each in rows][-3:] == [True, True, False]


def test_less_than_predicted_fits():
  rows = searched(lambda size: 1 + (size + 200 * (size > 1000)) / 128, 12.5)
  assert [each['batch_size'] for each in rows] == [128, 256, 1408, 1280, 1152]
  assert [each['fits'] for each in rows][-3:] == [False, False, True]


def test_the_search_gives_up():
  rows = searched(lambda size: 1 + size / 128 + 100 * (size > 256), 12.5)
  assert len(rows) == len(largest.SAMPLES) + largest.MOST_PROBES


@pytest.mark.parametrize(
  ('usable', 'sizes'), [(1.5, [128]), (2.5, [128, 256]), (3.5, [128, 256, 384])]
)
def test_little_memory(usable, sizes):
  rows = searched(lambda size: 1 + size / 128, usable)
  assert [each['batch_size'] for each in rows] == sizes
  assert not rows[-1]['fits']


def test_bytes_that_the_compiler_does_not_say():
  rows = [row(128, 2), row(256, 3), row(1408, None, False)]
  assert largest.next_size(rows, 12 * GIB) == 1280


def test_needed_bytes_of_a_tpu():
  error = (
    'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 25.50G of '
    '15.75G hbm. Exceeded hbm capacity by 9.75G.'
  )
  assert largest.needed_bytes(error) == 25.5 * GIB
  assert largest.needed_bytes('RESOURCE_EXHAUSTED: too much') is None
  with pytest.raises(ValueError, match='does not compile: INTERNAL: broken'):
    largest.needed_bytes('INTERNAL: broken\nstack')


def test_table():
  rows = [row(128, 2), row(256, 3), row(1408, 12), row(1536, 13, False)]
  rows += [{**each, 'stage': 'aggregator'} for each in (row(128, 20, False),)]
  first, second = largest.table({'rows': rows}).splitlines()[2:]
  cells = [cell.strip() for cell in first.strip('|').split('|')]
  assert cells == [
    *('h100:1', 'wrn16_4', 'main_head', 'bfloat16'),
    *('2.00', '8.0', '1408', '12.0', '1536 needs 13.0 GiB'),
  ]
  cells = [cell.strip() for cell in second.strip('|').split('|')]
  assert cells[2] == 'aggregator'
  assert cells[4:] == ['20.00', '', 'less than 128', '', '128 needs 20.0 GiB']


def test_rows_of_one_network_stand_together():
  rows = [
    {**row(128, 2), 'target': target, 'backbone': backbone}
    for backbone, target in (
      ('wrn16_4', 'h100:1'),
      ('wrn16_4', 'v5e:1x1'),
      ('resnet18', 'h100:1'),
      ('resnet18', 'v5e:1x1'),
    )
  ]
  lines = largest.table({'rows': rows}).splitlines()[2:]
  cells = [line.split('|') for line in lines]
  assert [(cell[1].strip(), cell[2].strip()) for cell in cells] == [
    ('h100:1', 'wrn16_4'),
    ('h100:1', 'resnet18'),
    ('v5e:1x1', 'wrn16_4'),
    ('v5e:1x1', 'resnet18'),
  ]


def test_a_size_that_was_only_predicted_is_named():
  *_, line = largest.table({'rows': [row(128, 2), row(256, 3)]}).splitlines()
  # 2 + 57.32 GiB of the 59.32 GiB that count, 128 images for each.
  assert line.endswith('| 7424 predicted, not compiled |')
  *_, line = largest.table({'rows': [row(128, 2)]}).splitlines()
  assert line.endswith(' not compiled |')


def test_problems_take_turns():
  config = cifar10.get_config()
  listed = largest.problems(
    config,
    ('main_head', 'aggregator'),
    'bfloat16',
    targets=('h100:1',),
    backbones=('wrn16_4',),
  )
  rows, order = [row(128, 2)], []
  for problem, size in largest._turns(listed, rows):
    order.append((problem.stage, size))
    rows.append({**row(size, size / 2), **problem.key})
    if len(order) == 3:
      break
  assert order == [
    ('aggregator', 128),
    ('main_head', 256),
    ('aggregator', 256),
  ]


def test_one_device_is_asked_for():
  with pytest.raises(ValueError, match=r"got 'h100:2', expected one device"):
    largest.run(
      cifar10.get_config(), ('main_head',), 'bfloat16', targets=('h100:2',)
    )


def test_what_is_asked_for_twice_is_looked_for_once():
  listed = largest.problems(
    *(cifar10.get_config(), ('main_head',), 'bfloat16'),
    targets=('h100:1', 'h100:1'),
    backbones=('wrn16_4', 'wrn16_4'),
  )
  assert len(listed) == 1


def test_unknown_network():
  with pytest.raises(ValueError, match=r"got 'wrn', choices are"):
    largest.run(
      cifar10.get_config(),
      ('main_head',),
      'bfloat16',
      targets=('h100:1',),
      backbones=('wrn',),
    )
