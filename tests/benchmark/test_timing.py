import time

import pytest

from dhat_jax.benchmark import timing


def test_functions_take_turns():
  calls = []
  times = timing.alternate(
    {'a': lambda: calls.append('a'), 'b': lambda: calls.append('b')},
    repeats=2,
    warmup=1,
  )
  assert calls == ['a', 'b'] * 3
  assert [len(times['a']), len(times['b'])] == [2, 2]


def test_seconds():
  assert 0.05 <= timing.seconds(lambda: time.sleep(0.05)) < 1


def test_summary():
  found = timing.summary([3.0, 1.0, 2.0, 10.0])
  assert found['median'] == pytest.approx(2.5)
  assert (found['min'], found['max']) == (1.0, 10.0)


def test_machine_says_what_times_depend_on():
  found = timing.machine()
  assert found['devices'] == 2
  assert found['cores'] >= 1
  assert found['processor']
  assert found['versions']['jax']
