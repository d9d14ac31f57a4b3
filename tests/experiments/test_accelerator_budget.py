"""Measurements that fit a time and resume; what they depend on."""

import concurrent.futures
import json

import pytest

from dhat_jax.runtime import config_file, documents
from experiments import accelerator_budget, accelerator_identity
from experiments.accelerator_budget import Item


class Clock:
  """Seconds that pass only where an item says so."""

  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now

  def item(self, name, *, estimate, takes, result=None, calls=None):
    def measure():
      self.now += takes
      if calls is not None:
        calls.append(name)
      if isinstance(result, Exception):
        raise result
      return result or {}

    return Item(name, estimate, measure)


@pytest.fixture
def clock():
  return Clock()


@pytest.fixture
def part(clock, tmp_path):
  """Returns what opens the slice again, with so many seconds."""

  def start(seconds, what='speed', identity=None):
    return accelerator_budget.Slice(
      what,
      str(tmp_path / 'out.json'),
      seconds=seconds,
      identity=identity or {'device': 'this', 'repeats': 7},
      command='python -m experiments.accelerator',
      table=lambda rows: [str(len(rows))],
      report=lambda line: None,
      clock=clock,
    )

  return start


def test_what_cannot_end_is_not_started(clock, part):
  slow = [
    # Twice as slow as expected, and so will be the others.
    clock.item('first', estimate=10, takes=20),
    clock.item('too long', estimate=35, takes=70),
    clock.item('short', estimate=10, takes=20),
  ]
  first = part(100)
  first.spend(slow)
  # 80 s are left: 1.2 * 2 * 35 = 84 are not, 1.2 * 2 * 10 = 24 are.
  assert list(first.rows) == ['first', 'short']
  assert first.not_started == ['too long']
  assert first.left() == 60
  assert first.end() == '2 of 3 measured'
  assert first.exit_code == accelerator_budget.LEFT
  assert first.rows['short']['seconds'] == 20


def test_nothing_is_measured_twice(clock, part, tmp_path):
  calls = []
  items = [
    clock.item(name, estimate=1, takes=1, result={'n': name}, calls=calls)
    for name in 'abc'
  ]
  part(1.9).spend(items)  # one item's 1.2 s, and not another one's
  assert calls == ['a']
  part(100).spend(items)
  assert calls == ['a', 'b', 'c']
  last = part(100)
  last.spend(items)
  assert calls == ['a', 'b', 'c']
  assert last.end() == '3 of 3 measured'
  assert last.exit_code == accelerator_budget.DONE
  document = documents.read(str(tmp_path / 'out.json'))
  assert document['what'] == 'accelerator speed'
  assert document['not_started'] == []
  assert document['table'][0] == '3'
  assert [row['n'] for row in document['rows']] == ['a', 'b', 'c']


def test_a_failure_is_recorded_and_tried_again_last(clock, part):
  calls = []

  def items(result):
    return [
      clock.item('a', estimate=1, takes=1, result=result, calls=calls),
      clock.item('b', estimate=1, takes=1, calls=calls),
      clock.item('c', estimate=1, takes=1, calls=calls),
    ]

  first = part(2.5)
  first.spend(items(MemoryError('full')))
  assert first.failed == ['a']
  assert first.rows['a']['error'] == 'MemoryError: full'
  assert first.table()[0] == '1'
  assert 'a: MemoryError: full' in first.table()[-1]
  second = part(100)
  second.spend(items({'fine': True}))
  assert calls == ['a', 'b', 'c', 'a']
  assert second.failed == []
  assert second.rows['a']['fine']


def test_nothing_measured_is_no_success(clock, part, tmp_path):
  short = part(1)
  short.spend([clock.item('a', estimate=10, takes=1)])
  assert short.end() == '0 of 1 measured'
  assert short.exit_code == accelerator_budget.LEFT
  document = documents.read(str(tmp_path / 'out.json'))
  assert document['rows'] == []
  assert document['not_started'] == ['a']


@pytest.mark.parametrize(
  'result', [{'agrees': False}, {'errors': {'compiled': 'no compiler'}}]
)
def test_what_differs_or_lacks_a_side_is_tried_again(clock, part, result):
  first = part(100)
  first.spend([clock.item('a', estimate=1, takes=1, result=result)])
  assert first.end() == '0 of 1 measured'
  assert first.exit_code == accelerator_budget.WRONG
  fine = {'agrees': True, 'errors': {}}
  second = part(100)
  second.spend([clock.item('a', estimate=1, takes=1, result=fine)])
  assert second.rows['a']['agrees']
  assert second.exit_code == accelerator_budget.DONE


def test_rows_of_something_else_are_refused(clock, part):
  part(100).spend([clock.item('a', estimate=1, takes=1)])
  message = r'another repeats: got 7, expected 3; give another --out'
  with pytest.raises(ValueError, match=message):
    part(100, identity={'device': 'this', 'repeats': 3})
  with pytest.raises(ValueError, match="another device: got 'this', expected"):
    part(100, identity={'device': 'that', 'repeats': 7})


def test_the_caption_is_of_the_machine_that_measured(clock, part, tmp_path):
  path = str(tmp_path / 'out.json')
  part(100).spend([clock.item('a', estimate=1, takes=1)])
  document = documents.read(path)
  document['machine']['device'] = 'Abacus 3000'
  documents.write(path, document)
  again = part(100)
  assert again.table()[-1].startswith('Measured on Abacus 3000, jax')
  again.spend([clock.item('b', estimate=1, takes=1)])
  assert documents.read(path)['machine'] == document['machine']


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    ({'rows': None}, 'is damaged: its rows are no list of measured items'),
    ({'rows': [{'seconds': 1}]}, 'is damaged: its rows are no list'),
    ({'rows': [{'item': 'a', 'seconds': '1'}]}, 'is damaged: its rows'),
    ({'identity': None}, 'does not say what measured it; give another --out'),
  ],
)
def test_a_damaged_json_is_one_line(clock, part, tmp_path, damage, message):
  part(100).spend([clock.item('a', estimate=1, takes=1)])
  path = str(tmp_path / 'out.json')
  documents.write(path, {**documents.read(path), **damage})
  with pytest.raises(ValueError, match=message) as error:
    part(100)
  assert '\n' not in str(error.value)


def test_rows_are_not_read_while_they_change(part):
  # A dict that grows under an iterator is an error, a rare one with threads.
  open_one = part(100)
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    with open_one._lock:
      readings = [
        pool.submit(lambda: open_one.failed),
        pool.submit(open_one._factor),
      ]
      done, _ = concurrent.futures.wait(readings, timeout=0.2)
    assert not done
    assert [reading.result(10) for reading in readings] == [[], 1.0]


def test_identity_changes_with_what_rows_depend_on():
  config = config_file.read('configs/digits.py')
  path = 'configs/digits.py'
  one = accelerator_identity.identity([path], [config], flags={'repeats': 7})
  assert one == json.loads(json.dumps(one))
  assert one['device'] != 'cpu'  # which processor it is
  assert one['versions'].keys() == {'jax', 'jaxlib', 'flax'}
  config.main_head.attack.steps = 1
  other = accelerator_identity.identity([path], [config], flags={'repeats': 7})
  assert {name for name in one if one[name] != other[name]} == {'configs'}


def test_the_committed_documents_are_no_rows_of_this_machine(tmp_path):
  for name in ('doctor', 'speed'):
    with pytest.raises(ValueError, match='give another --out'):
      accelerator_budget.Slice(
        name,
        f'docs/results/accelerator_{name}.json',
        seconds=1,
        identity={'device': 'this'},
        command='',
        table=lambda rows: [],
      )


def test_another_slices_json_is_refused(clock, part):
  part(10).spend([clock.item('a', estimate=1, takes=1)])
  with pytest.raises(ValueError, match="holds 'accelerator speed', expected"):
    part(10, what='doctor')
