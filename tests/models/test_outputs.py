import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.models import outputs as output_table
from dhat_jax.models.outputs import OUTPUTS, Output, Outputs
from dhat_jax.training.stages import all_roles

MAIN = np.array([[1.0, 2.0], [3.0, -4.0]])
SECOND = np.array([[5.0, 0.0], [-3.0, 4.0]])
AGGREGATED = np.array([[0.5, 0.25], [7.0, 8.0]])
MEAN = [[3.0, 1.0], [0.0, 0.0]]
ALL = Outputs(MAIN, SECOND, AGGREGATED)


# The table.


@pytest.fixture
def third(monkeypatch):
  row = Output(('trunk', 'third_head'), 'third head', stage='third_head')
  monkeypatch.setitem(OUTPUTS, 'third', row)


def test_table():
  assert output_table.trained() == ('main', 'second', 'aggregated')
  assert output_table.heads() == {'main': 'main_head', 'second': 'second_head'}
  assert output_table.required('mean') == ('main', 'second')
  assert output_table.required('second') == ('second',)
  for name, row in OUTPUTS.items():
    assert set(row.aggregates) | set(row.mean_of) <= set(OUTPUTS)
    assert bool(row.stage) != bool(row.mean_of), name


@pytest.mark.parametrize(
  ('names', 'expected'),
  [
    (('main',), 'main'),
    (('main', 'second', 'mean'), 'mean'),
    (('main', 'second', 'aggregated'), 'aggregated'),
    (('main', 'second', 'aggregated', 'third'), 'aggregated'),
    (('main', 'third'), 'third'),
  ],
)
def test_final_output(third, names, expected):
  assert output_table.final(names) == expected


def test_joint_stage_trains_what_the_final_output_needs(third):
  role = all_roles()['joint']
  assert role.output == 'aggregated'
  assert role.outputs == ('main', 'second', 'aggregated')
  assert role.trains == ('trunk', 'main_head', 'second_head', 'aggregator')


@pytest.mark.parametrize(
  ('names', 'parts'),
  [
    (('main',), ('trunk', 'main_head')),
    (('second',), ('trunk', 'second_head')),
    (('second', 'main'), ('trunk', 'main_head', 'second_head')),
    (('mean',), ('trunk', 'main_head', 'second_head')),
    (
      ('aggregated',),
      ('trunk', 'main_head', 'second_head', 'aggregator'),
    ),
    ((), ()),
  ],
)
def test_parts_of(names, parts):
  assert output_table.parts_of(names) == parts


# The mapping.


def test_each_output_by_name():
  for outputs in (
    ALL,
    Outputs(aggregated=AGGREGATED, second=SECOND, main=MAIN),
  ):
    assert tuple(outputs) == ('main', 'second', 'aggregated')
    assert outputs.main is outputs['main'] is outputs.select('main') is MAIN
    assert outputs.second is outputs.get('second') is SECOND
    assert outputs.aggregated is AGGREGATED
    np.testing.assert_array_equal(outputs.mean, MEAN)
    np.testing.assert_array_equal(outputs.select('mean'), MEAN)


def test_mean_is_computed_and_no_key():
  assert 'mean' not in ALL
  assert len(ALL) == 3
  assert 'mean' in dir(ALL)
  assert 'mean' not in dir(Outputs(MAIN))


def test_absent_is_absent():
  plain = Outputs(MAIN)
  assert tuple(plain) == ('main',)
  assert not hasattr(plain, 'second')
  assert getattr(plain, 'mean', None) is None
  with pytest.raises(AttributeError, match=r"got 'second', .* \('main',\)"):
    _ = plain.second
  with pytest.raises(KeyError, match='second'):
    plain['second']
  assert not hasattr(Outputs(main=MAIN, aggregated=AGGREGATED), 'mean')


@pytest.mark.parametrize(
  ('outputs', 'name', 'choices'),
  [
    (Outputs(MAIN), 'mean', "('main',)"),
    (Outputs(MAIN), 'second', "('main',)"),
    (Outputs(MAIN, SECOND), 'aggregated', "('main', 'second', 'mean')"),
    (ALL, 'third', "('main', 'second', 'mean', 'aggregated')"),
  ],
)
def test_select_names_got_and_choices(outputs, name, choices):
  with pytest.raises(ValueError, match='choices') as error:
    outputs.select(name)
  assert repr(name) in str(error.value)
  assert str(error.value).endswith(choices)


def test_wrong_construction():
  with pytest.raises(ValueError, match="got 'third', choices are"):
    Outputs(MAIN, third=SECOND)
  with pytest.raises(ValueError, match='expected one each of'):
    Outputs(MAIN, main=MAIN)
  with pytest.raises(ValueError, match='got 4 logits by place'):
    Outputs(MAIN, MAIN, MAIN, MAIN)


def test_replace_leaves_the_original_alone():
  replaced = ALL.replace(aggregated=MAIN)
  assert replaced.aggregated is MAIN
  assert replaced.second is SECOND
  assert ALL.aggregated is AGGREGATED
  with pytest.raises(AttributeError):
    ALL.aggregated = MAIN


def test_copies_and_pickles():
  for outputs in (
    copy.copy(ALL),
    copy.deepcopy(ALL),
    pickle.loads(pickle.dumps(ALL)),
  ):
    np.testing.assert_array_equal(outputs.second, SECOND)


def test_repr_shows_shapes():
  text = 'Outputs(main=float64[2, 2], second=float64[2, 2])'
  assert repr(Outputs(MAIN, SECOND)) == text


# The JAX tree.


def test_tree_round_trip():
  leaves, structure = jax.tree.flatten(Outputs(second=SECOND, main=MAIN))
  assert leaves == [MAIN, SECOND] or leaves[0] is MAIN
  assert structure == jax.tree.structure(Outputs(MAIN, SECOND))
  assert structure != jax.tree.structure(Outputs(MAIN))
  restored = structure.unflatten(leaves)
  assert isinstance(restored, Outputs)
  assert restored.second is SECOND
  paths = [
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, _ in jax.tree_util.tree_leaves_with_path(restored)
  ]
  assert paths == ['main', 'second']


def test_leaves_may_be_anything():
  shapes = jax.tree.map(np.shape, ALL)
  assert shapes.main == (2, 2)
  nothing = jax.tree.map(lambda _: None, ALL)
  assert nothing.main is None


def test_jit_vmap_and_grad():
  doubled = jax.jit(lambda o: jax.tree.map(lambda x: 2 * x, o))(Outputs(MAIN))
  assert isinstance(doubled, Outputs)
  assert not hasattr(doubled, 'second')
  np.testing.assert_array_equal(doubled.main, 2 * MAIN)
  rows = jax.vmap(lambda o: o.replace(second=o.main - o.mean))(ALL)
  np.testing.assert_array_equal(rows.second, MAIN - MEAN)
  gradient = jax.grad(lambda o: jnp.sum(o.mean * o.main))(
    Outputs(jnp.asarray(MAIN), jnp.asarray(SECOND))
  )
  np.testing.assert_allclose(gradient.main, MAIN + SECOND / 2)
  np.testing.assert_allclose(gradient.second, MAIN / 2)
