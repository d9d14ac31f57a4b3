"""The evaluation step: masks, devices, settings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dhat_jax.attacks import pgd
from dhat_jax.evaluation.step import make_eval_step
from dhat_jax.models.dual_head import DualHeadNet
from dhat_jax.runtime import devices
from tests.helpers.tiny import TinyBackbone, random_variables

SHAPE = (6, 6, 1)
CLASSES = 4
BATCH = 8
HALVES = (slice(0, 4), slice(4, 8))
NET = DualHeadNet(backbone=TinyBackbone(), num_classes=CLASSES)


def make_batch():
  rng = np.random.default_rng(0)
  return {
    'images': rng.integers(0, 256, (BATCH, *SHAPE), dtype=np.uint8),
    'labels': rng.integers(0, CLASSES, BATCH).astype(np.int32),
    'mask': np.ones(BATCH, bool),
  }


TRACES = []


def small_eval_step(**kwargs):
  """(variables, batch, rng, offset, settings) -> (robust, images_adv)."""
  return make_eval_step(
    net=NET,
    output='mean',
    attack=pgd.make_evaluation_attack(),
    returns_images=True,
    **kwargs,
  )


@functools.cache
def eval_parts():
  """(variables, batch, jitted step that counts its traces).

  The labels are what the network predicts, which differs from image to image.
  """
  net, batch = NET, make_batch()
  variables = random_variables(net, jnp.zeros((1, *SHAPE)))
  images = batch['images'] / np.float32(255)
  outputs = jax.jit(net.apply)(variables, images)
  for part, logits in (
    ('main_head', outputs.main),
    ('second_head', outputs.second),
  ):
    variables['params'][part]['classifier']['dense']['bias'] -= logits.mean(0)
  predicted = outputs.mean - outputs.mean.mean(axis=0, keepdims=True)
  batch['labels'] = np.asarray(predicted.argmax(axis=1), np.int32)
  assert len(np.unique(batch['labels'])) > 2
  step = small_eval_step()

  def counted(*args):
    TRACES.append(1)
    return step(*args)

  return variables, batch, jax.jit(counted)


def test_eval_step_counts_masked_images_out():
  variables, batch, step = eval_parts()
  batch = {name: array.copy() for name, array in batch.items()}
  # Two are wrong; one of them and one that is right are masked.
  batch['labels'][[1, 6]] = (batch['labels'][[1, 6]] + 1) % CLASSES
  batch['mask'][5:7] = False
  clean = pgd.Settings(0.0, 0.0, 0, start_scale=0.0)
  robust, images = step(variables, batch, jax.random.key(0), 0, clean)
  np.testing.assert_array_equal(np.flatnonzero(robust), [0, 2, 3, 4, 7])
  np.testing.assert_allclose(images, batch['images'] / 255, atol=1e-6)


def test_eval_step_does_not_depend_on_batches_or_devices():
  variables, batch, step = eval_parts()
  rng = jax.random.key(5)
  # Random starts alone: each image's fate depends on its own noise.
  settings = pgd.Settings(0.6, 0.0, 0)
  robust, images_adv = step(variables, batch, rng, 0, settings)
  assert robust.any()
  assert not robust.all()
  # Not the same in both halves, or their order would not show.
  assert (robust[:4] != robust[4:]).any()
  for part in HALVES:
    flags, images = step(
      variables,
      {name: array[part] for name, array in batch.items()},
      rng,
      part.start,
      settings,
    )
    np.testing.assert_array_equal(flags, robust[part])
    np.testing.assert_allclose(images, images_adv[part], atol=1e-6)
  mapped = devices.pmap_eval_step(
    small_eval_step(axis_name=devices.AXIS), in_axes=(0, 0, None, None, None)
  )
  flags, images = mapped(
    devices.replicate(variables), devices.shard(batch), rng, 0, settings
  )
  for copy in np.asarray(flags):
    np.testing.assert_array_equal(copy, robust)
  np.testing.assert_allclose(
    np.asarray(images).reshape(images_adv.shape), images_adv, atol=1e-6
  )


def test_other_evaluation_settings_compile_nothing():
  variables, batch, step = eval_parts()
  rng = jax.random.key(5)
  step(variables, batch, rng, 0, pgd.Settings(0.6, 0.0, 0))
  before = len(TRACES)
  robust, _ = step(
    variables, batch, rng, 0, pgd.Settings(0.9, 0.3, 4, restarts=2)
  )
  assert len(TRACES) == before
  assert not robust.any()
