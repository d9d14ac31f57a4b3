"""The evaluator: every image once, one compilation per output."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax import plan
from dhat_jax.attacks import pgd
from dhat_jax.datasets.base import Split
from dhat_jax.evaluation.evaluator import Attack, table
from dhat_jax.runtime import devices
from tests import tiny_suite


@pytest.fixture(scope='module')
def case():
  net, variables = tiny_suite.network()
  split = tiny_suite.self_labelled(net, variables, 'mean')
  return net, devices.replicate(variables), split


def attack(name='pgd_3'):
  return plan.gradient_attack(name, tiny_suite.get_config().evaluation)


def test_flags_agree_with_images_and_logits(case):
  net, variables, split = case
  evaluator = tiny_suite.evaluator(net)
  rng = jax.random.key(0)
  found = evaluator.find(
    variables, split, 'mean', attack(), rng, keep_images=True
  )
  assert 0 < found.robust.sum() < tiny_suite.IMAGES
  correct = found.logits['mean'].argmax(axis=1) == split.labels
  np.testing.assert_array_equal(found.robust, correct)
  # The images are in the ball, and give those logits in the plain network.
  images = np.asarray(split.images, np.float32) / 255
  assert np.abs(found.images_adv - images).max() <= 0.1 + 1e-6
  outputs = net.apply(devices.to_host(variables), found.images_adv)
  for name, logits in found.logits.items():
    np.testing.assert_allclose(logits, outputs.select(name), atol=1e-4)
  # The short form is the same attack, at any batch size.
  other = tiny_suite.evaluator(net, batch_size=42)
  flags = other.robust(variables, split, 'mean', attack(), rng)
  np.testing.assert_array_equal(flags, found.robust)


def test_compiles_once_for_all_attacks(case, monkeypatch):
  net, variables, split = case
  traced = []
  original = pgd.ascend
  monkeypatch.setattr(
    pgd, 'ascend', lambda *a, **k: traced.append(1) or original(*a, **k)
  )
  evaluator = tiny_suite.evaluator(net)
  counts = []
  for name in ('clean', 'fgsm', 'pgd_1', 'pgd_5', 'cw_2'):
    evaluator.find(variables, split, 'main', attack(name), jax.random.key(0))
    counts.append(len(traced))
  assert counts[0] > 0
  assert len(set(counts)) == 1


def test_streams_share_their_start(case):
  net, variables, split = case
  evaluator = tiny_suite.evaluator(net)
  start = attack()
  settings = start.settings._replace(steps=0)

  def images(name, stream):
    return evaluator.find(
      variables,
      split,
      'main',
      Attack(name, settings, stream),
      jax.random.key(0),
      keep_images=True,
    ).images_adv

  same = images('a', 'stream')
  np.testing.assert_array_equal(same, images('b', 'stream'))
  assert np.abs(same - images('c', '')).max() > 0.01


def test_logits_of_float_images(case):
  net, variables, split = case
  images = np.asarray(split.images, np.float32) / 255
  found = tiny_suite.evaluator(net).logits(
    variables, Split(images, split.labels)
  )
  assert tuple(found) == ('main', 'second', 'mean', 'aggregated')
  expected = net.apply(devices.to_host(variables), jnp.asarray(images))
  np.testing.assert_allclose(found['second'], expected.second, atol=1e-5)


def test_table_marks_what_was_not_run():
  text = table({'main': {'clean': 1.0}, 'mean': {'pgd_20': 0.256}})
  head, main, mean = text.split('\n')
  assert head.split() == ['clean', 'pgd_20']
  assert main.split() == ['main', '100.00', '-']
  assert mean.split() == ['mean', '-', '25.60']
