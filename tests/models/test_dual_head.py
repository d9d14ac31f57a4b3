import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.models import cpu_conv
from dhat_jax.models import outputs as output_table
from dhat_jax.models.dual_head import (
  DualHeadNet,
  Head,
  Trunk,
  part_variables,
)
from dhat_jax.models.outputs import OUTPUTS, Output, Outputs
from dhat_jax.models.resnet import ResNet18
from dhat_jax.models.wide_resnet import WideResNet
from tests.helpers.tiny import (
  TinyBackbone,
  flat,
  normal,
  random_variables,
  shapes_of,
)

make_net = functools.partial(
  DualHeadNet, backbone=TinyBackbone(), num_classes=4
)
PARTS = ('trunk', 'main_head', 'second_head', 'aggregator')
IMAGES = np.random.default_rng(0).random((6, 8, 8, 3), np.float32)


@functools.cache
def variables_of(net):
  return random_variables(net, IMAGES)


def apply(net, variables, images=IMAGES, **kwargs):
  return jax.jit(functools.partial(net.apply, **kwargs))(variables, images)


@pytest.mark.parametrize('aggregator', ['pairwise', 'classwise', 'mean'])
def test_all_outputs(aggregator):
  net = make_net(aggregator=aggregator)
  outputs = apply(net, variables_of(net))
  assert isinstance(outputs, Outputs)
  assert tuple(outputs) == ('main', 'second', 'aggregated')
  assert [logits.shape for logits in outputs.values()] == [(6, 4)] * 3
  assert np.abs(outputs.main - outputs.second).max() > 0.01
  if aggregator == 'mean':
    assert set(variables_of(net)['params']) == set(PARTS[:3])
    np.testing.assert_allclose(outputs.aggregated, outputs.mean, rtol=1e-5)
  else:
    assert set(variables_of(net)['params']) == set(PARTS)
    assert np.abs(outputs.aggregated - outputs.mean).max() > 0.01


def subsets():
  """All non-empty choices of outputs, each with its parts."""
  for names in (
    names
    for count in (1, 2, 3)
    for names in itertools.combinations(output_table.trained(), count)
  ):
    needed = {part for name in names for part in OUTPUTS[name].parts}
    yield names, tuple(part for part in PARTS if part in needed)


@pytest.mark.parametrize(('names', 'parts'), list(subsets()))
def test_any_subset_of_the_outputs(names, parts):
  net = make_net(outputs=names)
  assert net.parts == parts
  whole = variables_of(make_net())
  shapes = shapes_of(net, IMAGES)
  assert set(shapes['params']) == set(shapes['batch_stats']) == set(parts)
  some = {
    kind: {part: tree[part] for part in parts} for kind, tree in whole.items()
  }
  outputs = apply(net, some)
  assert tuple(outputs) == names
  expected = apply(make_net(), whole)
  for name in names:
    np.testing.assert_allclose(outputs[name], expected[name], atol=1e-5)


def test_heads_of_one_part_equal_the_network():
  dual = make_net()
  whole = variables_of(dual)

  def by_hand(images):
    def part(module, name, inputs):
      return module.apply(part_variables(whole, name), inputs, train=False)

    features = part(Trunk(dual.backbone, 'block1'), 'trunk', images)
    head = Head(dual.backbone, 'block1', 4)
    return [part(head, name, features) for name in PARTS[1:3]]

  main, second = jax.jit(by_hand)(IMAGES)
  outputs = apply(dual, whole)
  np.testing.assert_allclose(outputs.main, main, atol=1e-5)
  np.testing.assert_allclose(outputs.second, second, atol=1e-5)


def test_head_that_is_added_to_the_table_is_built(monkeypatch):
  third = Output(('trunk', 'third_head'), 'third head', stage='third_head')
  monkeypatch.setitem(OUTPUTS, 'third', third)
  net = make_net(outputs=('main', 'third'))
  assert net.parts == ('trunk', 'main_head', 'third_head')
  variables = random_variables(net, IMAGES)
  outputs, updated = apply(
    net, variables, training_parts=('third_head',), mutable=['batch_stats']
  )
  assert outputs.third.shape == (6, 4)
  assert not np.allclose(outputs.third, outputs.main)
  head, trunk = 'third_head/norm/mean', 'trunk/norm/mean'
  before, after = flat(variables['batch_stats']), flat(updated['batch_stats'])
  assert np.all(before[head] != after[head])
  np.testing.assert_array_equal(before[trunk], after[trunk])


def count_convolutions(jaxpr):
  """Counts convolutions, those in inner jaxprs included."""
  count = 0
  for equation in jaxpr.eqns:
    count += equation.primitive.name == 'conv_general_dilated'
    for value in jax.tree.leaves(
      list(equation.params.values()),
      is_leaf=lambda v: hasattr(v, 'jaxpr') or hasattr(v, 'eqns'),
    ):
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        count += count_convolutions(inner)
  return count


@pytest.mark.parametrize(
  ('backbone', 'attach', 'trunk', 'head'),
  [
    # A unit has two convolutions, and a shortcut where the width changes.
    (WideResNet(10, 2), 'block1', 1 + 3, 3 + 3),
    (WideResNet(10, 2), 'block2', 1 + 3 + 3, 3),
    (ResNet18(), 'block1', 1 + 4, 5 + 5 + 5),
    (ResNet18(preact=True), 'block3', 1 + 4 + 5 + 5, 5),
  ],
)
def test_trunk_runs_once(backbone, attach, trunk, head):
  net = make_net(backbone=backbone, attach=attach)
  shapes = shapes_of(net, IMAGES)
  # The CPU's form has several convolutions for a wide one.
  with cpu_conv.compiling_for('tpu'):
    jaxpr = jax.make_jaxpr(net.apply)(shapes, IMAGES).jaxpr
  assert count_convolutions(jaxpr) == trunk + 2 * head


@pytest.mark.parametrize(
  'training',
  [(), ('trunk', 'main_head'), ('second_head',), ('aggregator',), PARTS],
)
def test_only_training_parts_change_statistics(training):
  net = make_net()
  variables = variables_of(net)
  outputs, updated = apply(
    net, variables, training_parts=training, mutable=['batch_stats']
  )
  before, after = flat(variables['batch_stats']), flat(updated['batch_stats'])
  assert before.keys() == after.keys()
  for name, values in before.items():
    if name.split('/')[0] in training:
      assert np.all(values != after[name]), name
    else:
      np.testing.assert_array_equal(values, after[name], err_msg=name)
  evaluated = apply(net, variables)
  # A part in training mode changes its own output; a frozen trunk and main
  # head answer as in evaluation.
  same_main = np.allclose(outputs.main, evaluated.main, atol=1e-5)
  assert same_main == ('trunk' not in training)
  same = np.allclose(outputs.aggregated, evaluated.aggregated, atol=1e-5)
  assert same == (not training)


def test_unknown_training_part():
  net = make_net(outputs=('main',))
  variables = variables_of(net)
  for part in ('head', 'second_head'):  # a part that this network lacks
    with pytest.raises(ValueError, match='choices') as error:
      net.apply(variables, IMAGES, training_parts=(part,))
    assert f"got '{part}'" in str(error.value)
    assert "('trunk', 'main_head')" in str(error.value)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'num_classes': 1}, 'num_classes: got 1, expected an integer >= 2'),
    ({'attach': 'block9'}, "attach: got 'block9', choices are"),
    ({'aggregator': 'max'}, "aggregator: got 'max', choices are"),
    ({'aggregator': 'pairwice'}, "did you mean 'pairwise'"),
    ({'aggregator_options': {'size': 3}}, r"aggregator: got \('size',\)"),
    ({'outputs': ()}, r'outputs: got \(\), choices are one or more of'),
    ({'outputs': ('main', 'mean')}, r"outputs: got \('main', 'mean'\)"),
    ({'mean': (0.5,)}, 'mean and std need one number per channel'),
  ],
)
def test_wrong_options(options, message):
  with pytest.raises(ValueError, match=message):
    make_net(**options)


def test_heads_start_from_different_weights():
  net = make_net(outputs=('main', 'second'))
  params = jax.jit(net.init)(jax.random.key(0), IMAGES)['params']
  first, second = flat(params['main_head']), flat(params['second_head'])
  assert first.keys() == second.keys()
  for name in ('conv/kernel', 'classifier/dense/kernel'):
    assert np.abs(first[name] - second[name]).max() > 0.01


def test_wrong_rank_of_images():
  net = make_net()
  with pytest.raises(ValueError, match='rank'):
    net.apply(variables_of(net), IMAGES[0])


@pytest.mark.parametrize('attach', ['block1', 'block2'])
def test_attach_points(attach):
  net = make_net(backbone=WideResNet(10, 1), attach=attach)
  shapes = shapes_of(net, IMAGES)['params']
  in_trunk = {f'{block}_unit1' for block in ('block1', 'block2')}
  if attach == 'block1':
    in_trunk = {'block1_unit1'}
  blocks = {f'block{i}_unit1' for i in (1, 2, 3)}
  assert set(shapes['trunk']['blocks']) == in_trunk
  for head in ('main_head', 'second_head'):
    assert set(shapes[head]['blocks']) == blocks - in_trunk


def test_attach_point_does_not_change_the_plain_network():
  first, second = (
    make_net(backbone=WideResNet(10, 1), attach=attach, outputs=('main',))
    for attach in ('block1', 'block2')
  )
  variables = variables_of(first)
  moved = {}
  for kind, tree in variables.items():
    blocks = dict(tree['main_head']['blocks'])
    block2 = {'block2_unit1': blocks.pop('block2_unit1')}
    trunk_blocks = {**tree['trunk']['blocks'], **block2}
    moved[kind] = {
      'trunk': {**tree['trunk'], 'blocks': trunk_blocks},
      'main_head': {**tree['main_head'], 'blocks': blocks},
    }
  np.testing.assert_allclose(
    apply(second, moved).main, apply(first, variables).main, atol=1e-4
  )


def test_normalisation_equals_normalising_outside():
  mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
  net, plain = make_net(mean=mean, std=std), make_net()
  variables = variables_of(plain)
  outside = ((IMAGES - np.array(mean)) / np.array(std)).astype(np.float32)
  got = apply(net, variables)
  expected = apply(plain, variables, outside)
  for name, logits in got.items():
    np.testing.assert_allclose(logits, expected[name], atol=1e-4)
  assert np.abs(got.main - apply(plain, variables).main).max() > 0.01


def test_bfloat16_computes_float32_logits():
  low, full = make_net(dtype=jnp.bfloat16), make_net()
  variables = variables_of(full)
  types = {leaf.dtype for leaf in jax.tree.leaves(shapes_of(low, IMAGES))}
  assert types == {jnp.dtype(jnp.float32)}
  outputs, updated = apply(
    low, variables, training_parts=PARTS, mutable=['batch_stats']
  )
  assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == types
  assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == types
  jaxpr = str(jax.make_jaxpr(low.apply)(variables, IMAGES))
  assert 'bf16[6,8,8,4]' in jaxpr  # the trunk's features
  evaluated, expected = apply(low, variables), apply(full, variables)
  difference = np.abs(evaluated.main - expected.main).max()
  assert 0 < difference < 0.05 * np.abs(expected.main).max()


def test_gradient_reaches_the_images_through_both_heads():
  net = make_net()
  variables = variables_of(net)

  @jax.jit
  def gradients(images):
    def first_class(x):
      outputs = net.apply(variables, x)
      return [outputs.select(name)[:, 0] for name in ('main', 'second', 'mean')]

    _, vjp = jax.vjp(first_class, images)
    ones, zeros = jnp.ones(6), jnp.zeros(6)
    rows = ([ones, zeros, zeros], [zeros, ones, zeros], [zeros, zeros, ones])
    return [vjp(row)[0] for row in rows]

  main, second, mean = gradients(IMAGES)
  np.testing.assert_allclose(mean, (main + second) / 2, atol=1e-5)
  assert np.abs(main - second).max() > 1e-3


def test_odd_sizes_one_channel_two_classes():
  images = normal(2, 9, 11, 1)
  net = make_net(num_classes=2)
  outputs = apply(net, random_variables(net, images), images)
  assert outputs.aggregated.shape == (2, 2)
  assert np.all(np.isfinite(outputs.aggregated))
