import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.models.dual_head import PARTS, DualHeadNet
from dhat_jax.models.outputs import Outputs
from dhat_jax.models.resnet import ResNet18
from dhat_jax.models.wide_resnet import WideResNet
from tests.tiny import (
  TinyBackbone,
  flat,
  normal,
  random_variables,
  shapes_of,
)

make_net = functools.partial(
  DualHeadNet, backbone=TinyBackbone(), num_classes=4
)
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
  assert [leaf.shape for leaf in outputs] == [(6, 4)] * 3
  assert np.abs(outputs.main - outputs.second).max() > 0.01
  if aggregator == 'mean':
    assert set(variables_of(net)['params']) == set(PARTS[:3])
    np.testing.assert_allclose(outputs.aggregated, outputs.mean, rtol=1e-5)
  else:
    assert set(variables_of(net)['params']) == set(PARTS)
    assert np.abs(outputs.aggregated - outputs.mean).max() > 0.01


@pytest.mark.parametrize(
  'names', [('main',), ('main', 'second'), ('main', 'second', 'aggregated')]
)
def test_absent_outputs_have_no_parts(names):
  net = make_net(outputs=names)
  parts = PARTS[: len(names) + 1]
  assert net.parts == parts
  whole = variables_of(make_net())
  shapes = shapes_of(net, IMAGES)
  assert set(shapes['params']) == set(shapes['batch_stats']) == set(parts)
  some = {
    kind: {part: tree[part] for part in parts} for kind, tree in whole.items()
  }
  outputs = jax.eval_shape(net.apply, some, IMAGES)
  for name in ('main', 'second', 'aggregated'):
    assert (getattr(outputs, name) is not None) == (name in names)


def test_plain_network_is_trunk_and_main_head():
  dual = make_net()
  whole, backbone = variables_of(dual), dual.backbone
  plain = apply(make_net(outputs=('main',)), whole)

  def by_hand(images):
    def part(module, name, inputs):
      own = {kind: tree[name] for kind, tree in whole.items()}
      return module.apply(own, inputs, train=False)

    features = part(backbone.trunk(backbone, 'block1'), 'trunk', images)
    head = backbone.head(backbone, 'block1', 4)
    return [part(head, name, features) for name in PARTS[1:3]]

  main, second = jax.jit(by_hand)(IMAGES)
  np.testing.assert_allclose(plain.main, main, atol=1e-5)
  outputs = apply(dual, whole)
  np.testing.assert_allclose(outputs.main, main, atol=1e-5)
  np.testing.assert_allclose(outputs.second, second, atol=1e-5)


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
    ({'num_classes': 1}, 'num_classes: got 1, expected at least 2'),
    ({'attach': 'block9'}, "attach: got 'block9', choices are"),
    ({'aggregator': 'max'}, "aggregator: got 'max', choices are"),
    ({'outputs': ('second',)}, 'outputs: got'),
    ({'outputs': ('main', 'aggregated')}, 'outputs: got'),
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
  for logits, expected in zip(
    got, apply(plain, variables, outside), strict=True
  ):
    np.testing.assert_allclose(logits, expected, atol=1e-4)
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
  assert {leaf.dtype for leaf in outputs} == types
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
