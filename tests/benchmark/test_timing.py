import os
import time

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

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


def test_several_calls_in_a_turn():
  calls = []
  times = timing.alternate(
    {'a': lambda: calls.append(time.sleep(0.01)), 'b': lambda: None},
    repeats=3,
    warmup=0,
    calls=4,
  )
  assert len(calls) == 12
  assert all(0.01 <= value < 0.03 for value in times['a'])


def test_seconds():
  assert 0.05 <= timing.seconds(lambda: time.sleep(0.05)) < 1


def test_summary():
  found = timing.summary([3.0, 1.0, 2.0, 10.0])
  assert found['median'] == pytest.approx(2.5)
  assert (found['min'], found['max']) == (1.0, 10.0)


def test_nothing_is_read_from_the_cache(tmp_path):
  def cached():
    return {path.name for path in tmp_path.iterdir()}

  before = jax.config.jax_compilation_cache_dir
  least = jax.config.jax_persistent_cache_min_compile_time_secs
  jax.config.update('jax_compilation_cache_dir', str(tmp_path))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  compilation_cache.reset_cache()
  try:
    with timing.no_compilation_cache():
      jax.jit(lambda x: x + 12.5)(1.0)
      assert not cached()
    jax.jit(lambda x: x + 13.5)(1.0)
    assert cached()
  finally:
    jax.config.update('jax_compilation_cache_dir', before)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', least)
    compilation_cache.reset_cache()


def test_in_a_new_process():
  assert timing.in_new_process(os.getpid) != os.getpid()
  with pytest.raises(ValueError, match='invalid literal'):
    timing.in_new_process(int, 'x')
