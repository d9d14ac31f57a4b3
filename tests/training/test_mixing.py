"""Augmentations that mix images: partners, labels, the training step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dhat_jax import losses
from dhat_jax.datasets.batches import prepare
from dhat_jax.models.dual_head import DualHeadNet
from dhat_jax.models.outputs import Outputs
from dhat_jax.runtime import devices, streams
from dhat_jax.training import augment
from dhat_jax.training.forward import adversarial_images
from dhat_jax.training.stages import all_roles
from dhat_jax.training.state import create_train_state
from dhat_jax.training.step import make_train_step
from tests.helpers.tiny import TinyBackbone, random_variables

CLASSES, SHAPE, BATCH = 4, (6, 5, 1), 8


@augment.register('blend')
def blend(*, share=0.75):
  """Adds a share of each image and the rest of its partner."""

  def mix(rngs, images, partners):
    mixed = share * images + (1 - share) * partners
    return mixed, jnp.full(len(images), share)

  return augment.Mixing(mix)


@augment.register('rank')
def rank():
  """Adds 100: seen where something runs before or after it."""
  return lambda rngs, images: images + 100


def make_batch(seed=0):
  rng = np.random.default_rng(seed)
  return {
    'images': rng.integers(0, 256, (BATCH, *SHAPE), dtype=np.uint8),
    'labels': rng.integers(0, CLASSES, BATCH).astype(np.int32),
    'mask': np.ones(BATCH, bool),
  }


def keys(count=BATCH):
  return jax.random.split(jax.random.key(0), count)


def simple_batch(mask=(1, 1, 1)):
  return {
    'images': jnp.array([0.0, 4.0, 8.0])[:, None, None, None],
    'labels': jnp.array([5, 6, 7]),
    'mask': jnp.array(mask, jnp.float32),
    'own': jnp.array([1.0, 0.0, 1.0]),
  }


def test_the_partner_is_the_next_image():
  mixing = augment.make_augmentation(('blend',))
  batch = augment.augment_batch(mixing, keys(3), simple_batch())
  np.testing.assert_allclose(batch['images'].ravel(), [1, 5, 6])
  np.testing.assert_array_equal(batch['labels'], [5, 6, 7])
  np.testing.assert_array_equal(batch['other_labels'], [6, 7, 5])
  np.testing.assert_array_equal(batch['label_share'], [0.75] * 3)
  np.testing.assert_array_equal(batch['own'], [1, 0, 1])


def test_padding_is_not_mixed_in():
  mixing = augment.make_augmentation(('blend',))
  batch = augment.augment_batch(mixing, keys(3), simple_batch((1, 1, 0)))
  np.testing.assert_allclose(batch['images'].ravel(), [1, 4, 6])
  np.testing.assert_array_equal(batch['other_labels'], [6, 6, 5])
  np.testing.assert_array_equal(batch['label_share'], [0.75, 1, 0.75])


@pytest.mark.parametrize(
  ('names', 'expected'),
  [
    (('rank', 'blend'), [101, 105, 106]),
    (('blend', 'rank'), [101, 105, 106]),
    (('rank', {'name': 'blend', 'share': 0.5}, 'rank'), [202, 206, 204]),
  ],
)
def test_what_runs_before_and_after(names, expected):
  mixing = augment.make_augmentation(names)
  batch = augment.augment_batch(mixing, keys(3), simple_batch())
  np.testing.assert_allclose(batch['images'].ravel(), expected)


def test_partners_are_augmented_and_streams_are_those_of_the_names():
  images = jnp.asarray(make_batch()['images'], jnp.float32) / 255
  batch = {**make_batch(), 'images': images}
  options = {'crop_padding': 2, 'flip': True}
  whole = augment.make_augmentation(('crop_flip', 'cutmix'), **options)
  moved = augment.make_augmentation(('crop_flip',), **options)(keys(), images)
  alone = augment.make_augmentation(('cutmix',))
  got = augment.augment_batch(whole, keys(), batch)
  expected = augment.augment_batch(alone, keys(), {**batch, 'images': moved})
  for name, array in expected.items():
    np.testing.assert_array_equal(got[name], array, err_msg=name)
  rngs = streams.fold_in_each(keys(), 'augment/cutmix')
  mixed, share = augment.cutmix().mix(rngs, moved, jnp.roll(moved, -1, axis=0))
  np.testing.assert_array_equal(got['images'], mixed)
  np.testing.assert_array_equal(got['label_share'], share)
  assert (share < 1).any()


def test_two_devices_mix_as_one():
  mixing = augment.make_augmentation(
    ('crop_flip', 'cutmix', {'name': 'cutout', 'size': 2}),
    crop_padding=1,
    flip=True,
  )
  rng = jax.random.key(0)

  def run(batch, axis_name):
    batch = prepare(batch)
    rngs = devices.example_rngs(rng, len(batch['images']), axis_name)
    return augment.augment_batch(mixing, rngs, batch, axis_name)

  batch = make_batch()
  batch['mask'][3] = False
  expected = jax.jit(functools.partial(run, axis_name=None))(batch)
  mapped = devices.pmap_eval_step(
    functools.partial(run, axis_name=devices.AXIS), (0,)
  )(devices.shard(batch))
  assert expected.keys() == mapped.keys()
  for name, array in expected.items():
    got = devices.unshard(mapped[name])
    np.testing.assert_array_equal(got, array, err_msg=name)


def soft_cross_entropy(logits, batch):
  """Cross entropy with the mixed target, in float64."""
  logits = np.float64(logits)
  log_q = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
  share = np.float64(batch['label_share'])[:, None]
  one_hot = np.eye(logits.shape[1])
  target = share * one_hot[batch['labels']]
  target += (1 - share) * one_hot[batch['other_labels']]
  return -(target * log_q).sum(axis=1)


def test_the_attack_ascends_on_both_labels():
  logits = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
  mixing = augment.make_augmentation(('blend',))
  batch = augment.augment_batch(mixing, keys(3), simple_batch())
  batch['images'] = jnp.asarray(logits)
  objective, _ = adversarial_images(
    lambda images: Outputs(main=images),
    batch,
    keys(3),
    loss=losses.sat(),
    attack=lambda objective, rngs, images, scale: objective(images),
    output='main',
  )
  np.testing.assert_allclose(
    objective, soft_cross_entropy(logits, batch), rtol=1e-5
  )


def make_step(axis_name):
  role = all_roles()['main_head']
  net = DualHeadNet(
    backbone=TinyBackbone(),
    num_classes=CLASSES,
    outputs=role.outputs,
    axis_name=axis_name,
  )
  tx = optax.sgd(0.1)
  local = net.clone(axis_name=None)
  state = create_train_state(
    net=net,
    tx=tx,
    trains=role.trains,
    rng=jax.random.key(0),
    image_shape=SHAPE,
    variables=random_variables(local, jnp.zeros((1, *SHAPE)), seed=1),
  )
  step = make_train_step(
    net=net,
    tx=tx,
    loss=losses.natural(),
    attack=None,
    trains=role.trains,
    output=role.output,
    augment=augment.make_augmentation(('cutmix',)),
    axis_name=axis_name,
  )
  return local, state, step


def test_step_on_one_and_two_devices_is_the_mixed_cross_entropy():
  net, state, step = make_step(None)
  batch = make_batch()
  after, metrics = jax.jit(step)(state, batch)
  rng = jax.random.fold_in(state.rng, 0)
  rngs = streams.fold_in_each(
    devices.example_rngs(rng, BATCH, None), 'step/augment'
  )
  mixing = augment.make_augmentation(('cutmix',))
  mixed = jax.tree.map(
    np.asarray, augment.augment_batch(mixing, rngs, prepare(batch))
  )
  outputs, _ = jax.jit(
    lambda images: net.apply(
      state.variables(),
      images,
      training_parts=('trunk', 'main_head'),
      mutable=['batch_stats'],
    )
  )(mixed['images'])
  np.testing.assert_allclose(
    metrics['loss'][0],
    soft_cross_entropy(outputs.main, mixed).sum(),
    rtol=1e-4,
  )
  share, right = mixed['label_share'], np.argmax(outputs.main, axis=1)
  accuracy = share * (right == mixed['labels'])
  accuracy += (1 - share) * (right == mixed['other_labels'])
  np.testing.assert_allclose(
    metrics['clean_accuracy'][0], accuracy.sum(), rtol=1e-4
  )
  _, state, step = make_step(devices.AXIS)
  two, sums = devices.pmap_train_step(step)(
    devices.replicate(state), devices.shard(batch)
  )
  np.testing.assert_allclose(
    devices.to_host(sums)['loss'][0], metrics['loss'][0], rtol=1e-4
  )
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4),
    devices.to_host(two).params,
    after.params,
  )
