"""The door for numbers, flags and texts: what passes, and what is said."""

import fractions
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhat_jax import arguments

JUNK = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(),
  st.floats(),
  st.complex_numbers(),
  st.text(),
  st.binary(),
  st.lists(st.integers(), max_size=3),
  st.dictionaries(st.text(), st.integers(), max_size=2),
  st.sampled_from([np.float32(2), np.int8(3), np.bool_(True), np.zeros(2)]),
)


@given(JUNK, st.integers(-3, 3))
def test_integers(got, least):
  valid = type(got) is int or isinstance(got, np.integer)
  if valid and least <= got <= 2**31 - 1:
    assert arguments.integer('x', got, least) is got
    return
  with pytest.raises(
    ValueError, match=r'x: got .*, expected an integer'
  ) as error:
    arguments.integer('x', got, least)
  assert '\n' not in str(error.value)


@given(JUNK, st.floats(-3, 3))
def test_numbers(got, least):
  real = int | float | np.floating | np.integer
  valid = isinstance(got, real) and not isinstance(got, bool)
  most = 2**31 - 1 if isinstance(got, int) else arguments.LARGEST_NUMBER
  if valid and math.isfinite(got) and least <= got <= most:
    assert arguments.number('x', got, least) is got
    return
  with pytest.raises(ValueError, match=r'x: got .*, expected') as error:
    arguments.number('x', got, least)
  assert '\n' not in str(error.value)


@given(JUNK)
def test_others(got):
  for check, kinds in (
    (arguments.flag, bool | np.bool_),
    (arguments.text, str),
    (arguments.sequence, tuple | list),
  ):
    if isinstance(got, kinds):
      assert check('x', got) is got
    else:
      with pytest.raises(ValueError, match=r'x: got .*, expected'):
        check('x', got)


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: arguments.number('x', 2, 0, 1), 'x: got 2, expected in [0, 1]'),
    (
      lambda: arguments.number('x', 1.0, 0, below=1),
      'x: got 1.0, expected in [0, 1)',
    ),
    (
      lambda: arguments.number('x', 0, above=0),
      'x: got 0, expected a finite number > 0',
    ),
    (
      lambda: arguments.number('x', 3, most=2),
      'x: got 3, expected a finite number <= 2',
    ),
    (
      lambda: arguments.number('x', 2, below=2),
      'x: got 2, expected a finite number < 2',
    ),
    (
      lambda: arguments.number('x', 1e39),
      'x: got 1e+39, expected a finite number',
    ),
    (
      lambda: arguments.number('x', 2**31, 0),
      'x: got 2147483648, expected an integer <= 2147483647, or a float',
    ),
    (
      lambda: arguments.number('x', 10**400, 0),
      f'x: got 1{"0" * 116}..., expected a finite number >= 0',
    ),
    (
      lambda: arguments.integer('x', 3.0, 1),
      'x: got 3.0, expected an integer >= 1',
    ),
    (
      lambda: arguments.integer('x', 4, 1, 3),
      'x: got 4, expected an integer in [1, 3]',
    ),
    (lambda: arguments.flag('x', 1), 'x: got 1, expected true or false'),
    (
      lambda: arguments.sequence('x', (1, 'a'), arguments.number),
      "x[1]: got 'a', expected a finite number",
    ),
    (
      lambda: arguments.one_of('x', [], {'a': 1, 'b': 2}),
      "x: got [], choices are ('a', 'b')",
    ),
    (
      lambda: arguments.one_of('x', np.zeros(2), ('a',)),
      "x: got array([0., 0.]), choices are ('a',)",
    ),
    (
      lambda: arguments.function('x', 'f'),
      "x: got 'f', expected a function",
    ),
  ],
)
def test_messages(call, message):
  with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole is compared
    call()
  assert str(error.value) == message


def test_arrays_of_one_number():
  assert arguments.number('x', jnp.float32(0.5), 0, 1) == 0.5
  assert arguments.integer('x', jnp.int32(3), 1) == 3
  assert arguments.number('x', fractions.Fraction(1, 2), 0, 1) == 0.5
  for got in (jnp.zeros(1), jnp.bool_(True), jnp.array(jnp.nan)):
    with pytest.raises(ValueError, match='x: got'):
      arguments.number('x', got)


def test_choices():
  assert arguments.one_of('x', 'a', {'a': 1}) == 1
  assert arguments.one_of('x', 'a', ('a', 'b')) == 'a'
