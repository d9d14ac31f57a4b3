import jax
import numpy as np
import pytest

from dhat_jax.models.outputs import Outputs

MAIN = np.array([[1.0, 2.0], [3.0, -4.0]])
SECOND = np.array([[5.0, 0.0], [-3.0, 4.0]])
AGGREGATED = np.array([[0.5, 0.25], [7.0, 8.0]])


def test_select_returns_each_output():
  outputs = Outputs(MAIN, SECOND, AGGREGATED)
  assert outputs.select('main') is MAIN
  assert outputs.select('second') is SECOND
  assert outputs.select('aggregated') is AGGREGATED
  np.testing.assert_array_equal(
    outputs.select('mean'), [[3.0, 1.0], [0.0, 0.0]]
  )


def test_absent_outputs_are_none():
  plain = Outputs(MAIN)
  assert plain.second is None
  assert plain.aggregated is None
  assert plain.mean is None
  assert Outputs(MAIN, SECOND).aggregated is None
  np.testing.assert_array_equal(
    Outputs(MAIN, SECOND).mean, [[3.0, 1.0], [0.0, 0.0]]
  )


@pytest.mark.parametrize(
  ('outputs', 'name', 'choices'),
  [
    (Outputs(MAIN), 'mean', "('main',)"),
    (Outputs(MAIN), 'second', "('main',)"),
    (Outputs(MAIN, SECOND), 'aggregated', "('main', 'second', 'mean')"),
    (
      Outputs(MAIN, SECOND, AGGREGATED),
      'third',
      "('main', 'second', 'mean', 'aggregated')",
    ),
  ],
)
def test_select_names_got_and_choices(outputs, name, choices):
  with pytest.raises(ValueError, match='choices') as error:
    outputs.select(name)
  assert repr(name) in str(error.value)
  assert str(error.value).endswith(choices)


def test_outputs_pass_through_jit_with_absent_ones():
  doubled = jax.jit(lambda o: jax.tree.map(lambda x: 2 * x, o))(Outputs(MAIN))
  assert isinstance(doubled, Outputs)
  assert doubled.second is None
  np.testing.assert_array_equal(doubled.main, 2 * MAIN)
