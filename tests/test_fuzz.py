"""A small part of `tests.fuzz`, and that it finds what there is to find."""

import sys
import time
import warnings

import pytest

from tests import fuzz


def test_no_finds():
  assert fuzz.fuzz(seed=1, cases=60) == {}


def test_the_same_seed_draws_the_same_cases(tmp_path):
  drawn = [fuzz.Fuzz(3, str(tmp_path)) for _ in range(2)]
  titles = [
    [f.case().title.split(' at 0x')[0] for _ in range(40)] for f in drawn
  ]
  assert titles[0] == titles[1]
  assert len(set(titles[0])) > 35


def fail_in_lines():
  print('one\ntwo', file=sys.stderr)
  sys.exit(2)


def fail_in_one_line():
  print('error: one', file=sys.stderr)
  sys.exit(2)


def raise_error(error):
  raise error


@pytest.mark.parametrize(
  ('call', 'impossible', 'wrong'),
  [
    (lambda: None, False, ''),
    (lambda: None, True, 'accepted'),
    (fail_in_one_line, True, ''),
    (fail_in_lines, False, 'exit code 2'),
    (lambda: sys.exit(1), False, 'exit code 1'),
    (lambda: raise_error(ValueError('one line')), True, ''),
    (lambda: raise_error(ValueError('two\nlines')), False, 'not one line'),
    (lambda: raise_error(KeyError('x')), False, 'KeyError'),
    (lambda: raise_error(TypeError('x')), True, 'TypeError'),
    (lambda: warnings.warn('oh', stacklevel=2), False, 'UserWarning: oh'),
  ],
)
def test_what_counts_as_a_find(call, impossible, wrong):
  found = fuzz.find(fuzz.Case('', call, impossible))
  assert found.startswith(wrong)
  assert bool(found) == bool(wrong)


def test_a_hang_is_a_find(monkeypatch):
  monkeypatch.setattr(fuzz, 'LONGEST_SECS', 0.1)
  case = fuzz.Case('', lambda: time.sleep(20))
  assert 'took more than' in fuzz.find(case)
