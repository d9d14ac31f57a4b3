"""Attacks that see a cheaper network; the network itself is the judge."""

import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.attacks.autoattack import autoattack
from tests.attacks import linear


def _bfloat16(images):
  weights = jnp.asarray(linear.SLOPE, jnp.bfloat16)
  flat = images.reshape(len(images), -1).astype(jnp.bfloat16)
  return (flat - 0.5) @ weights


def _blind(images):
  """Logits that say nothing of the images."""
  return jnp.zeros((len(images), 5)) + 0 * images.sum()


def test_every_broken_image_fools_the_network_itself(standard):
  result = linear.standard(screening_fn=_bfloat16)
  images, labels = linear.problem()
  wrong = np.argmax(linear.logits_of(result.images_adv), axis=1) != labels
  np.testing.assert_array_equal(wrong, ~result.robust)
  assert abs(result.images_adv - images).max() <= 0.01 + 1e-6
  # Nearly as strong: the two networks round differently.
  assert abs(int(result.robust.sum()) - int(standard.robust.sum())) <= 2
  (line,) = [line for line in result.differences if 'screening' in line]
  assert line in result.warnings
  assert not [line for line in standard.differences if 'screening' in line]


@pytest.mark.parametrize('name', ['apgd-ce', 'fab-t', 'square'])
def test_attacks_see_the_screening_network_alone(name):
  blind = linear.attack(name, screening_fn=_blind)
  _, labels = linear.problem()
  clean = np.argmax(linear.logits_of(linear.problem()[0]), axis=1) == labels
  seeing = linear.attack(name)
  assert seeing.robust.sum() < clean.sum()
  assert blind.robust.sum() > seeing.robust.sum()


def test_networks_that_disagree_are_warned_of(standard):
  other = linear.standard(screening_fn=lambda x: -linear.logits_of(x))
  (line,) = [w for w in other.warnings if 'screening_fn predicts' in w]
  assert 'on 20 of 20 clean images' in line
  alike = linear.standard(screening_fn=_bfloat16)
  assert not [w for w in alike.warnings if 'screening_fn predicts' in w]


def test_mistakes_are_named():
  with pytest.raises(TypeError, match='screening_fn: got str, expected a func'):
    linear.standard(screening_fn='bfloat16')
  images, labels = linear.problem()
  with pytest.raises(ValueError, match='screening_fn: got 3 logits'):
    autoattack(
      linear.logits_of,
      images,
      labels,
      epsilon=0.01,
      screening_fn=lambda x: linear.logits_of(x)[:, :3],
    )


def test_a_journal_belongs_to_one_screening_network(tmp_path):
  options = {'state_dir': tmp_path, 'n_targets': 1, 'n_iter': 2}
  linear.attack('fab-t', screening_fn=_bfloat16, **options)
  linear.attack('fab-t', screening_fn=_bfloat16, **options)
  with pytest.raises(ValueError, match='screening'):
    linear.attack('fab-t', **options)
