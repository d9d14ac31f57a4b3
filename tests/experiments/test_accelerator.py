"""The half hour on an accelerator, rehearsed on the CPU with tiny sizes."""

import itertools
import signal
import time

import numpy as np
import pytest

from dhat_jax.attacks.autoattack.budget import Budget
from dhat_jax.runtime import config_file, documents
from experiments import (
  accelerator,
  accelerator_budget,
  accelerator_cases,
  accelerator_doctor,
  accelerator_speed,
  accelerator_torch,
  accelerator_train,
)
from experiments.accelerator_budget import Item

TINY = 'tests/helpers/tiny_run.py'


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

  def start(seconds, what='speed'):
    return accelerator_budget.Slice(
      what,
      str(tmp_path / 'out.json'),
      seconds=seconds,
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
  document = documents.read(str(tmp_path / 'out.json'))
  assert document['what'] == 'accelerator speed'
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


def test_another_slices_json_is_refused(clock, part):
  part(10).spend([clock.item('a', estimate=1, takes=1)])
  with pytest.raises(ValueError, match="holds 'accelerator speed', expected"):
    part(10, what='doctor')


def test_distance_is_relative_and_counts_flags():
  vector = np.array([3.0, 4.0])
  assert accelerator_doctor.distance(vector * 1.5, vector) == 0.5
  assert accelerator_doctor.distance(vector * np.nan, vector) == np.inf
  flags = np.array([True, True, False, False])
  assert accelerator_doctor.distance(~flags[::-1], flags) == 0
  assert accelerator_doctor.distance(np.ones(4, bool), flags) == 0.5


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['doctor', '--seconds=0'], r'--seconds: got 0\.0, expected more than 0'),
    (['doctor', '--workers=0'], '--workers: got 0'),
    (['speed', '--repeats=-1'], '--repeats: got -1'),
  ],
)
def test_mistakes(arguments, message):
  with pytest.raises(ValueError, match=message):
    accelerator.parse(arguments)


@pytest.fixture
def rehearse(tmp_path):
  """Runs a slice's command; returns (exit code, JSON)."""

  def run(name, *arguments):
    out = str(tmp_path / f'{name}.json')
    code = accelerator.main(
      [name, f'--out={out}', f'--workdir={tmp_path / "work"}', *arguments]
    )
    return code, documents.read(out)

  return run


@pytest.mark.slow
def test_doctor(rehearse, tmp_path, capsys):
  arguments = f'--config={TINY}', '--workers=2'
  code, document = rehearse('doctor', *arguments)
  rows = {row['item']: row for row in document['rows']}
  assert code == 0, capsys.readouterr().out
  assert 'xla_flags' in rows.pop('machine')
  stages = 'main_head', 'second_head', 'aggregator'
  assert rows.keys() == {
    *('logits/highest', 'logits/default'),
    *(f'step/{s}/{d}' for s in stages for d in ('float32', 'bfloat16')),
    *(f'attack/{name}' for name in accelerator_cases.ATTACKS),
  }
  for row in rows.values():
    assert row['agrees']
    assert row['distances'].keys() == row['tolerances'].keys()
  assert '| step/main_head/bfloat16 ' in ''.join(document['table'])
  # About half of the images resist, so that equal flags say something.
  assert 0.3 < rows['attack/pgd_10']['resist'] < 0.7
  assert all('resist' in row for name, row in rows.items() if 'attack/' in name)
  # A wrong value on the CPU's side is noticed, and nothing else is run again.
  path = tmp_path / 'work' / 'reference' / 'logits-highest.npz'
  with np.load(path) as values:
    wrong = 1.1 * values['logits']
  np.savez(path, logits=wrong)
  del rows['logits/highest']
  documents.write(
    str(tmp_path / 'doctor.json'), {**document, 'rows': list(rows.values())}
  )
  code, again = rehearse('doctor', *arguments)
  assert code == 1
  new = {row['item']: row for row in again['rows']}
  assert not new['logits/highest']['agrees']
  assert 'DIFFERS: logits 0.09' in capsys.readouterr().out
  assert all(new[name] == row for name, row in rows.items())


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


def write_images(folder):
  rng = np.random.default_rng(0)
  folder.mkdir()
  arrays = {}
  for split, count in (('train', 60), ('test', 40)):
    arrays[f'x_{split}'] = rng.integers(
      256, size=(count, 8, 8, 1), dtype=np.uint8
    )
    arrays[f'y_{split}'] = np.arange(count) % 10
  np.savez(folder / 'cifar10.npz', **arrays)
  return folder


@pytest.mark.slow
def test_train(rehearse, tmp_path):
  arguments = (
    f'--data_dir={write_images(tmp_path / "data")}',
    *(f'--config={TINY}', '--epochs=100', '--batch_size=10'),
    *('--train_images=50', '--test_images=20', '--autoattack_images=8'),
    *('--pgd_steps=2', '--n_iter=2', '--n_queries=4'),
  )
  code, document = rehearse('train', *arguments)
  assert code == 0
  assert document['kind'] == 'experiment'
  assert document['missing'] == 0
  assert document['data'] == 'CIFAR-10, 50 images'
  assert [row['variant'] for row in document['rows']] == [
    *('single head', 'DH-AT, pairwise', 'DH-AT, mean')
  ]
  for row in document['rows']:
    assert row['n_test'] == 20
    clean, pgd, autoattack = row['accuracy']
    assert (clean, pgd) == ('clean', 'pgd_2')
    assert 'images=8' in autoattack
  results = tmp_path / 'work' / 'dual' / 'results.json'
  before = results.stat().st_mtime_ns
  assert rehearse('train', *arguments)[1]['rows'] == document['rows']
  assert results.stat().st_mtime_ns == before


def test_the_same_images_are_chosen(tmp_path):
  data = str(write_images(tmp_path / 'data'))
  paths = [str(tmp_path / name) for name in ('a.npz', 'b.npz')]
  for path in paths:
    count = accelerator_train.write_images(
      data, path, train_images=20, test_images=0
    )
    assert count == 20
  with np.load(paths[0]) as first, np.load(paths[1]) as second:
    assert len(first['y_test']) == 40
    assert len(set(first['y_train'])) > 5
    for name in first:
      np.testing.assert_array_equal(first[name], second[name])


def test_a_run_is_asked_to_stop_in_time():
  asked = []
  before = signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
  try:
    with accelerator_train.stopped_after(60):
      pass
    with accelerator_train.stopped_after(0.01):
      for _ in itertools.takewhile(lambda _: not asked, range(100)):
        time.sleep(0.05)
    assert asked == [1]
  finally:
    signal.signal(signal.SIGTERM, before)
