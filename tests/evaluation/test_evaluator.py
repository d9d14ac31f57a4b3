"""The evaluator: every image once, one compilation per output."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.attacks import balls
from dhat_jax.datasets.base import Split
from dhat_jax.evaluation import attacks
from dhat_jax.evaluation.records import Workspace
from dhat_jax.runtime import devices
from tests.helpers import tiny_suite

SHARED = {'epsilon': 0.1, 'step_size': 0.05, 'norm': 'linf', 'restarts': 1}


@pytest.fixture(scope='module')
def case():
  net, variables = tiny_suite.network()
  split = tiny_suite.self_labelled(net, variables, 'mean')
  return net, devices.replicate(variables), split


def test_records_agree_with_images_and_logits(case):
  net, variables, split = case
  target = tiny_suite.make_evaluator(net).target(variables, 'mean')
  attack = attacks.make('pgd_3', **SHARED)
  rng = jax.random.key(0)
  record = attack.run(target, split, rng, Workspace(keep_images=True))
  assert 0 < record.robust.sum() < tiny_suite.IMAGES
  # The images are in the ball, and predicted so by the plain network.
  images = np.asarray(split.images, np.float32) / 255
  assert np.abs(record.images_adv - images).max() <= 0.1 + 1e-6
  outputs = net.apply(devices.to_host(variables), record.images_adv)
  assert tuple(record.predictions) == ('main', 'second', 'mean', 'aggregated')
  for name, predictions in record.predictions.items():
    expected = outputs.select(name).argmax(axis=1)
    np.testing.assert_array_equal(predictions, expected)
  right = outputs.mean.argmax(axis=1) == split.labels
  np.testing.assert_array_equal(record.robust, right)
  # The attack's own verdict is the same, at any batch size.
  other = tiny_suite.make_evaluator(net, batch_size=42)
  flags = attack.robust(other.target(variables, 'mean'), split, rng)
  np.testing.assert_array_equal(flags, record.robust)
  images_adv = attack.images_adv(target, split, rng)
  np.testing.assert_array_equal(images_adv, record.images_adv)


def test_compiles_once_for_all_settings(case):
  net, variables, split = case
  traced = []

  def function(logits_fn, images, labels, rngs, settings):
    traced.append(1)
    images_adv = jnp.clip(images + settings, 0, 1)
    return balls.is_right(logits_fn(images_adv), labels), images_adv

  evaluator = tiny_suite.make_evaluator(net)
  accuracies = set()
  for shift in (0.0, 0.2, 0.5):
    attack = attacks.on_logits(function, shift, title=f'shift_{shift}')
    target = evaluator.target(variables, 'main')
    record = attack.run(target, split, jax.random.key(0))
    accuracies.add(record.robust.mean())
  assert len(traced) == 1
  assert len(accuracies) > 1


def test_gradient_attacks_are_one_function():
  made = [
    attacks.make(name, **SHARED)
    for name in ('clean', 'fgsm', 'pgd_1', 'pgd_50', 'cw_2')
  ]
  assert len({attack.function for attack in made}) == 1
  other = attacks.make('pgd_1', **{**SHARED, 'norm': 'l2'})
  assert other.function is not made[0].function


def test_streams_share_their_start(case):
  net, variables, split = case
  target = tiny_suite.make_evaluator(net).target(variables, 'main')
  settings = attacks.make('pgd_3', **SHARED).settings._replace(steps=0)

  def images(title, stream):
    attack = attacks.gradient(settings, norm='linf', title=title, stream=stream)
    return attack.images_adv(target, split, jax.random.key(0))

  same = images('a', 'stream')
  np.testing.assert_array_equal(same, images('b', 'stream'))
  assert np.abs(same - images('c', '')).max() > 0.01


def test_logits_of_float_images(case):
  net, variables, split = case
  images = np.asarray(split.images, np.float32) / 255
  logits = tiny_suite.make_evaluator(net).logits(
    variables, Split(images, split.labels)
  )
  assert tuple(logits) == ('main', 'second', 'mean', 'aggregated')
  expected = net.apply(devices.to_host(variables), jnp.asarray(images))
  size = np.abs(expected.second).max()
  np.testing.assert_allclose(
    logits['second'] / size, expected.second / size, atol=1e-5
  )


def test_batch_size_is_rounded_up_to_the_devices(case):
  evaluator = tiny_suite.make_evaluator(case[0], batch_size=15)
  assert evaluator.batch_size == 16


def test_float32_is_not_rounded_on_accelerators(case):
  net, variables, split = case
  target = tiny_suite.make_evaluator(net).target(variables, 'mean')
  texts = []

  def attack(logits_fn, images, labels, rngs, settings):
    texts.append(str(jax.make_jaxpr(logits_fn)(images)))
    return balls.is_right(logits_fn(images), labels), images

  list(target.attacked(attack, 0.0, split, jax.random.key(0)))
  assert 'conv_general_dilated' in texts[0]
  assert 'Precision.HIGHEST' in texts[0]
  assert 'precision=None' not in texts[0]
