"""The training step against a slow rendering; frozen parts; devices; masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dhat_jax import losses, parallel, steps
from dhat_jax.attacks import pgd
from dhat_jax.models.dual_head import DualHeadNet
from dhat_jax.stages import ROLES
from dhat_jax.train_state import create_train_state
from tests.tiny import TinyBackbone

SHAPE = (6, 6, 1)
CLASSES = 4
BATCH = 8


def make_net(outputs=('main', 'second', 'aggregated'), **kwargs):
  return DualHeadNet(
    backbone=TinyBackbone(), num_classes=CLASSES, outputs=outputs, **kwargs
  )


def make_batch(seed=0, size=BATCH):
  rng = np.random.default_rng(seed)
  return {
    'images': rng.integers(0, 256, (size, *SHAPE), dtype=np.uint8),
    'labels': rng.integers(0, CLASSES, size).astype(np.int32),
    'mask': np.ones(size, bool),
  }


def make(stage, *, loss=None, axis_name=None, steps_=2, decay=0.0, **net):
  """Returns (state, step) of a stage on random variables."""
  role = ROLES[stage]
  tx = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, 0.9))
  network = make_net(role.outputs, axis_name=axis_name, **net)
  state = create_train_state(
    net=network,
    tx=tx,
    trains=role.trains,
    rng=jax.random.key(0),
    image_shape=SHAPE,
    ema=decay > 0,
  )
  step = steps.make_train_step(
    net=network,
    tx=tx,
    loss=loss or losses.trades(beta=6.0),
    attack=pgd.make_attack(epsilon=0.1, step_size=0.05, steps=steps_),
    trains=role.trains,
    output=role.output,
    ema_decay=decay,
    axis_name=axis_name,
  )
  return state, step


@functools.cache
def trained(stage):
  """(state before, state after two steps, metrics of the first)."""
  before, step = make(stage)
  step = jax.jit(step)
  after, metrics = step(before, make_batch())
  after, _ = step(after, make_batch(1))
  return before, after, metrics


@pytest.mark.parametrize('stage', list(ROLES))
def test_frozen_means_bitwise_frozen(stage):
  before, after, _ = trained(stage)
  for group in ('params', 'batch_stats'):
    old, new = getattr(before, group), getattr(after, group)
    assert old.keys() == new.keys()
    for part in old:
      equal = [
        np.array_equal(a, b)
        for a, b in zip(
          jax.tree.leaves(old[part]), jax.tree.leaves(new[part]), strict=True
        )
      ]
      if part in ROLES[stage].trains:
        assert not any(equal), (group, part)
      else:
        assert all(equal), (group, part)
  assert int(after.step) == 2


def test_first_step_equals_a_slow_rendering():
  """Loss, gradient and statistics of TRADES, written out."""
  before, step = make('main_head', steps_=0)
  after, metrics = jax.jit(step)(before, make_batch())
  net = make_net(('main',))
  batch = make_batch()
  images = jnp.asarray(batch['images'], jnp.float32) / 255
  rng = jax.random.fold_in(before.rng, 0)
  attack = pgd.make_attack(epsilon=0.1, step_size=0.05, steps=0)
  keys = jax.vmap(lambda i: jax.random.fold_in(rng, i))(jnp.arange(BATCH))
  keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
  images_adv = attack(None, keys, images)
  parts = ('trunk', 'main_head')

  def mean_loss(params):
    stats, logits = before.batch_stats, []
    # Clean first, then adversarial: the order of the running averages.
    for inputs in (images, images_adv):
      outputs, updated = net.apply(
        {'params': params, 'batch_stats': stats},
        inputs,
        training_parts=parts,
        mutable=['batch_stats'],
      )
      stats = updated['batch_stats']
      logits.append(jax.nn.log_softmax(outputs.main))
    clean, adversarial = logits
    own = clean[jnp.arange(BATCH), batch['labels']]
    kl = (jnp.exp(clean) * (clean - adversarial)).sum(axis=1)
    return (-own + 6 * kl).mean(), stats

  (loss, stats), grads = jax.value_and_grad(mean_loss, has_aux=True)(
    before.params
  )
  total, count = metrics['loss']
  assert count == BATCH
  np.testing.assert_allclose(total / count, loss, rtol=1e-5)
  expected = jax.tree.map(
    lambda p, g: p - 0.1 * (g + 0.1 * p), before.params, grads
  )
  for actual, wanted in (
    (after.params, expected),
    (after.batch_stats, stats),
  ):
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
      actual,
      wanted,
    )


def test_masked_examples_have_no_weight():
  """Whatever their labels: in loss, gradients and metrics."""
  before, step = make('main_head')
  batch = make_batch()
  batch['mask'][5:] = False
  other = {**batch, 'labels': batch['labels'].copy()}
  other['labels'][5:] = (other['labels'][5:] + 1) % CLASSES
  step = jax.jit(step)
  first, metrics = step(before, batch)
  second, again = step(before, other)
  assert metrics['loss'][1] == 5
  for name, (total, count) in metrics.items():
    np.testing.assert_array_equal(total, again[name][0], err_msg=name)
    np.testing.assert_array_equal(count, again[name][1], err_msg=name)
  jax.tree.map(np.testing.assert_array_equal, first.params, second.params)


def test_float_images_are_taken_as_they_are():
  before, step = make('main_head')
  batch = make_batch()
  floats = {**batch, 'images': batch['images'].astype(np.float32) / 255}
  del floats['mask']
  _, expected = jax.jit(step)(before, batch)
  _, actual = jax.jit(step)(before, floats)
  np.testing.assert_allclose(actual['loss'][0], expected['loss'][0], rtol=1e-6)


def test_two_devices_equal_one():
  """Same noise, synchronised batch norm, one gradient."""
  state, step = make('main_head', axis_name=parallel.AXIS)
  mapped = parallel.pmap_train_step(step)
  replicated = parallel.replicate(state)
  one, plain = make('main_head')
  plain = jax.jit(plain)
  for seed in range(2):
    replicated, sums = mapped(replicated, parallel.shard(make_batch(seed)))
    one, expected = plain(one, make_batch(seed))
    host = parallel.to_host(sums)
    for name in ('loss', 'clean_accuracy', 'robust_accuracy'):
      np.testing.assert_allclose(host[name], expected[name], rtol=1e-4)
  two = parallel.to_host(replicated)
  for group in ('params', 'batch_stats'):
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-4),
      getattr(two, group),
      getattr(one, group),
    )


def test_examples_have_their_keys_on_any_number_of_devices():
  rng = jax.random.key(3)
  whole = steps.example_rngs(rng, 4, None)
  halves = jax.pmap(
    lambda _: steps.example_rngs(rng, 2, 'batch'), axis_name='batch'
  )(jnp.zeros(2))
  np.testing.assert_array_equal(
    jax.random.key_data(whole),
    np.asarray(jax.random.key_data(halves)).reshape(4, -1),
  )
  shifted = steps.example_rngs(rng, 2, None, offset=2)
  np.testing.assert_array_equal(
    jax.random.key_data(shifted), jax.random.key_data(whole)[2:]
  )


def test_moving_average_of_the_weights():
  before, step = make('second_head', decay=0.9)
  after, _ = jax.jit(step)(before, make_batch())
  assert after.ema_params.keys() == {'second_head'}
  jax.tree.map(
    lambda average, old, new: np.testing.assert_allclose(
      average, 0.9 * old + 0.1 * new, rtol=1e-5, atol=1e-7
    ),
    after.ema_params['second_head'],
    before.params['second_head'],
    after.params['second_head'],
  )
  used = after.variables()['params']
  jax.tree.map(
    np.testing.assert_array_equal,
    used['second_head'],
    after.ema_params['second_head'],
  )


@pytest.mark.parametrize(
  'loss', [losses.sat(), losses.mart(5.0), losses.reverse_smoothing()]
)
def test_other_losses_train(loss):
  before, step = make('second_head', loss=loss)
  after, metrics = jax.jit(step)(before, make_batch())
  assert {'loss', 'clean_accuracy', 'robust_accuracy'} <= metrics.keys()
  assert np.isfinite(metrics['loss'][0])
  moved = jax.tree.map(
    lambda a, b: bool((a != b).any()),
    before.params['second_head'],
    after.params['second_head'],
  )
  assert all(jax.tree.leaves(moved))


def test_natural_needs_no_attack_and_others_do():
  with pytest.raises(ValueError, match="loss 'sat' needs an attack, got None"):
    steps.make_train_step(
      net=make_net(),
      tx=optax.sgd(0.1),
      loss=losses.sat(),
      attack=None,
      trains=('aggregator',),
      output='aggregated',
    )


def test_bfloat16_keeps_float32_parameters():
  before, step = make('main_head', dtype=jnp.bfloat16)
  after, metrics = jax.jit(step)(before, make_batch())
  assert np.isfinite(metrics['loss'][0])
  for leaf in jax.tree.leaves((after.params, after.batch_stats)):
    assert leaf.dtype == jnp.float32


@functools.cache
def eval_parts():
  net = make_net()
  variables = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, *SHAPE)))
  step = steps.make_eval_step(
    net=net, output='mean', attack=pgd.make_evaluation_attack()
  )
  return net, variables, step


def test_eval_step_counts_masked_images_out():
  net, variables, step = eval_parts()
  batch = make_batch()
  batch['mask'][6:] = False
  clean = pgd.Settings(0.0, 0.0, 0, start_scale=0.0)
  robust = jax.jit(step)(variables, batch, jax.random.key(0), 0, clean)
  logits = net.apply(variables, batch['images'] / np.float32(255)).mean
  expected = (logits.argmax(axis=1) == batch['labels']) & batch['mask']
  np.testing.assert_array_equal(robust, expected)


def test_eval_step_does_not_depend_on_batches_or_devices():
  net, variables, step = eval_parts()
  batch, rng = make_batch(), jax.random.key(5)
  settings = pgd.Settings(0.3, 0.1, 3)
  traces = []

  def counted(*args):
    traces.append(1)
    return step(*args)

  jitted = jax.jit(counted)
  whole = jitted(variables, batch, rng, 0, settings)
  halves = [
    jitted(
      variables,
      {name: array[first : first + 4] for name, array in batch.items()},
      rng,
      first,
      settings,
    )
    for first in (0, 4)
  ]
  np.testing.assert_array_equal(whole, np.concatenate(halves))
  # Other settings compile nothing.
  before = len(traces)
  jitted(variables, batch, rng, 0, pgd.Settings(0.1, 0.05, 1, restarts=2))
  assert len(traces) == before
  mapped = parallel.pmap_eval_step(
    steps.make_eval_step(
      net=net,
      output='mean',
      attack=pgd.make_evaluation_attack(),
      axis_name=parallel.AXIS,
    ),
    in_axes=(0, 0, None, None, None),
  )
  flags = mapped(
    parallel.replicate(variables), parallel.shard(batch), rng, 0, settings
  )
  np.testing.assert_array_equal(parallel.first_copy(flags), whole)
