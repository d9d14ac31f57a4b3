"""The training step against a slow rendering; frozen parts; devices; masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dhat_jax import losses
from dhat_jax.attacks import balls, pgd
from dhat_jax.models.dual_head import DualHeadNet
from dhat_jax.training.stages import all_roles, roles
from dhat_jax.training.state import create_train_state
from dhat_jax.training.step import make_train_step
from tests.helpers.tiny import (
  TinyBackbone,
  random_like,
  shapes_of,
)

ALL_ROLES, ROLES = all_roles(), roles()
SHAPE = (6, 6, 1)
CLASSES = 4
BATCH = 8
HALVES = (slice(0, 4), slice(4, 8))


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


def flip(rngs, images):
  """Mirrors about half of the images, by their own keys."""
  mirrored = jax.vmap(jax.random.bernoulli)(rngs)
  return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


# In L2 a rounding error moves no pixel by a whole step, as a sign would.
ATTACK = {'epsilon': 0.8, 'step_size': 0.5, 'steps': 2, 'norm': 'l2'}


def make(
  stage,
  *,
  loss=None,
  axis_name=None,
  shared=True,
  decay=0.0,
  dtype=None,
  freeze_statistics=True,
  augment=flip,
  rate=0.1,
  value_and_grad=jax.value_and_grad,
):
  """Returns (state, step) of a stage on random variables.

  `shared` says whether batch norm sees the whole batch under `axis_name`.
  """
  role = ALL_ROLES[stage]
  tx = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(rate, 0.9))
  network = make_net(
    role.outputs, axis_name=axis_name if shared else None, dtype=dtype
  )
  shapes = shapes_of(network.clone(axis_name=None), jnp.zeros((1, *SHAPE)))
  state = create_train_state(
    net=network,
    tx=tx,
    trains=role.trains,
    rng=jax.random.key(0),
    image_shape=SHAPE,
    variables=random_like(shapes, 1),
    ema=decay > 0,
  )
  step = make_train_step(
    net=network,
    tx=tx,
    loss=loss or losses.trades(beta=6.0),
    attack=pgd.make_attack(**ATTACK),
    trains=role.trains,
    output=role.output,
    ema_decay=decay,
    freeze_statistics=freeze_statistics,
    axis_name=axis_name,
    augment=augment,
    value_and_grad=value_and_grad,
    attack_scale=lambda step: 0.5 * (step + 1),
  )
  return state, step


@functools.cache
def compiled(stage):
  """(state, jitted TRADES step) of a stage."""
  state, step = make(stage)
  return state, jax.jit(step)


@functools.cache
def trained(stage):
  """(state before, state after two steps)."""
  before, step = compiled(stage)
  after, _ = step(before, make_batch())
  after, _ = step(after, make_batch(1))
  return before, after


@pytest.mark.parametrize('stage', list(ALL_ROLES))
def test_frozen_means_bitwise_frozen(stage):
  before, after = trained(stage)
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
      if part in ALL_ROLES[stage].trains:
        assert not any(equal), (group, part)
      else:
        assert all(equal), (group, part)
  assert int(after.step) == 2


def test_statistics_of_frozen_parts_can_drift():
  """As in the published code; the weights are frozen all the same."""
  before, step = make('second_head', freeze_statistics=False)
  after, _ = jax.jit(step)(before, make_batch())
  for part in ('trunk', 'main_head'):
    for name in ('params', 'batch_stats'):
      old, new = (getattr(state, name)[part] for state in (before, after))
      equal = jax.tree.leaves(jax.tree.map(np.array_equal, old, new))
      assert all(equal) if name == 'params' else not any(equal), (name, part)
  # The clean images' statistics, then the adversarial ones', move the mean.
  frozen, _ = compiled('second_head')[1](before, make_batch())
  assert not np.allclose(
    *(
      state.params['second_head']['classifier']['dense']['kernel']
      for state in (after, frozen)
    )
  )


def keys_by_hand(rng, step, purpose):
  rng = jax.random.fold_in(rng, step)
  rngs = [jax.random.fold_in(rng, place) for place in range(BATCH)]
  return jnp.stack([jax.random.fold_in(key, purpose) for key in rngs])


def attack_by_hand(logits_fn, rngs, images, scale):
  """Projected ascent in L2 on the KL divergence from the clean prediction."""
  epsilon, step_size = ATTACK['epsilon'] * scale, ATTACK['step_size'] * scale
  target = jax.nn.log_softmax(logits_fn(images))

  def divergence(inputs):
    log_q = jax.nn.log_softmax(logits_fn(inputs))
    return (jnp.exp(target) * (target - log_q)).sum()

  def norms(arrays):
    return jnp.sqrt((arrays**2).sum(axis=(1, 2, 3), keepdims=True))

  images_adv = balls.random_start(rngs, images, epsilon, 'l2', 'uniform')
  for _ in range(ATTACK['steps']):
    gradient = jax.grad(divergence)(images_adv)
    delta = images_adv + step_size * gradient / norms(gradient) - images
    delta = delta * jnp.minimum(1, epsilon / norms(delta))
    images_adv = jnp.clip(images + delta, 0, 1)
  return images_adv


def rendering(stage, state, batch):
  """One TRADES step written out: loss, terms, gradient, statistics."""
  role = ROLES[stage]
  net = make_net(role.outputs)
  mask = batch['mask'].astype(jnp.float32)
  images = jnp.asarray(batch['images'], jnp.float32) / 255
  images = flip(keys_by_hand(state.rng, 0, 0), images)
  images_adv = attack_by_hand(
    lambda inputs: net.apply(state.variables(), inputs).select(role.output),
    keys_by_hand(state.rng, 0, 1),
    images,
    0.5,
  )

  def mean_loss(trained):
    stats, logits = state.batch_stats, []
    # Clean first, then adversarial: the order of the running averages.
    for inputs in (images, images_adv):
      outputs, updated = net.apply(
        {'params': {**state.params, **trained}, 'batch_stats': stats},
        inputs,
        training_parts=role.trains,
        mutable=['batch_stats'],
      )
      stats = updated['batch_stats']
      logits.append(jax.nn.log_softmax(outputs.select(role.output)))
    clean, adversarial = logits
    own = -clean[jnp.arange(BATCH), batch['labels']]
    kl = (jnp.exp(clean) * (clean - adversarial)).sum(axis=1)
    terms = {
      'loss': own + 6 * kl,
      'natural_loss': own,
      'robust_loss': kl,
      'clean_accuracy': clean.argmax(axis=1) == batch['labels'],
      'robust_accuracy': adversarial.argmax(axis=1) == batch['labels'],
    }
    means = {k: (v * mask).sum() / mask.sum() for k, v in terms.items()}
    return means['loss'], (means, stats)

  trained = {part: state.params[part] for part in role.trains}
  (_, aux), grads = jax.value_and_grad(mean_loss, has_aux=True)(trained)
  return (*aux, grads)


@pytest.mark.parametrize('stage', list(ROLES))
def test_first_step_equals_a_slow_rendering(stage):
  """Augmentation, attack, loss, gradient, statistics, mask; every stage."""
  before, step = compiled(stage)
  batch = make_batch()
  batch['mask'][6:] = False
  after, metrics = step(before, batch)
  means, stats, grads = jax.jit(functools.partial(rendering, stage))(
    before, batch
  )
  assert means['robust_loss'] > 1e-3
  assert metrics.keys() == {*means, 'grad_norm'}
  for name, mean in means.items():
    total, count = metrics[name]
    assert count == 6
    np.testing.assert_allclose(total / count, mean, rtol=1e-4, err_msg=name)
  norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads)))
  np.testing.assert_allclose(metrics['grad_norm'][0], norm, rtol=1e-3)
  assert metrics['grad_norm'][1] == 1
  close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
  jax.tree.map(close, after.batch_stats, stats)
  for part in ROLES[stage].trains:
    expected = jax.tree.map(
      lambda p, g: p - 0.1 * (g + 0.1 * p), before.params[part], grads[part]
    )
    jax.tree.map(close, after.params[part], expected)


def test_masked_examples_have_no_weight():
  """Whatever their labels: in loss, gradients and metrics."""
  before, step = compiled('main_head')
  batch = make_batch()
  batch['mask'][5:] = False
  other = {**batch, 'labels': batch['labels'].copy()}
  other['labels'][5:] = (other['labels'][5:] + 1) % CLASSES
  first, metrics = step(before, batch)
  second, again = step(before, other)
  assert metrics['loss'][1] == 5
  for name, (total, count) in metrics.items():
    np.testing.assert_array_equal(total, again[name][0], err_msg=name)
    np.testing.assert_array_equal(count, again[name][1], err_msg=name)
  jax.tree.map(np.testing.assert_array_equal, first.params, second.params)


def test_float_images_are_taken_as_they_are():
  before, step = compiled('main_head')
  batch = make_batch()
  floats = {**batch, 'images': batch['images'].astype(np.float32) / 255}
  del floats['mask']
  _, expected = step(before, batch)
  _, actual = step(before, floats)
  np.testing.assert_allclose(actual['loss'][0], expected['loss'][0], rtol=1e-6)


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
  'loss', [losses.sat(), losses.mart(beta=5.0), losses.reverse_smoothing()]
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
    make_train_step(
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


def test_own_images_count_separately():
  """As if the others only padded the batch, also what the loss lacks."""
  state, step = make('main_head', loss=losses.sat())
  step = jax.jit(step)
  batch = make_batch() | {'own': np.arange(BATCH) % 3 < 2}
  batch['mask'][4] = False
  _, metrics = step(state, batch)
  _, alone = step(state, batch | {'mask': batch['mask'] & batch['own']})
  for name in ('loss', 'clean_accuracy', 'robust_accuracy'):
    own_sum, own_count = metrics[f'own_{name}']
    assert (own_count, metrics[name][1]) == (5, 7)
    np.testing.assert_allclose(own_sum, alone[name][0], rtol=1e-5)
  assert metrics['own_loss'][0] < metrics['loss'][0]
