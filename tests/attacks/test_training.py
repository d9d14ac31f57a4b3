"""Training attacks by name, a user's own among them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.attacks import balls, pgd, training

SHARED = {
  'epsilon': 0.1,
  'step_size': 0.03,
  'steps': 3,
  'norm': 'linf',
  'start': 'uniform',
}
KEY = jax.random.key(0)
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(size=(3, 2, 2, 1)))


def objective(images):
  return jnp.sin(9 * images).sum(axis=(1, 2, 3))


def make(name, options=None, **shared):
  return training.TRAINING_ATTACKS.make(
    name, options, where='config.main_head.attack', **{**SHARED, **shared}
  )


@pytest.mark.parametrize('options', [{}, {'unroll': True}])
def test_pgd_is_that_of_the_module(options):
  np.testing.assert_array_equal(
    make('pgd', options)(objective, KEY, IMAGES),
    pgd.make_attack(**SHARED, **options)(objective, KEY, IMAGES),
  )


@pytest.mark.parametrize('norm', balls.NORMS)
def test_fgsm_takes_the_radius_and_the_norm_alone(norm):
  # Its one step is as long as epsilon, whatever the step size.
  attack = make('fgsm', norm=norm)
  np.testing.assert_array_equal(
    attack(objective, KEY, IMAGES),
    pgd.fgsm(SHARED['epsilon'], norm)(objective, KEY, IMAGES),
  )
  half = attack(objective, KEY, IMAGES, scale=0.5)
  sizes = balls.norms(half - IMAGES, norm)
  assert (sizes <= 0.05 + 1e-6).all()


def test_mistakes_are_named():
  with pytest.raises(
    ValueError, match=r"config.main_head.attack: got 'pdg', choices are .*'pgd'"
  ):
    make('pdg')
  with pytest.raises(
    ValueError, match=r"got \('unrol',\), choices for 'pgd' are \('unroll',\)"
  ):
    make('pgd', {'unrol': True})
  with pytest.raises(ValueError, match=r"got \('unroll',\).*'fgsm' are \(\)"):
    make('fgsm', {'unroll': True})
  with pytest.raises(ValueError, match='steps: got -1'):
    make('pgd', steps=-1)


@training.register('corners')
def corners(*, epsilon, share=0.5):
  """A user's: each pixel moves by epsilon, up with probability `share`."""

  def attack(objective, rng, images, scale=1.0):
    del objective
    up = balls.draw_each(
      lambda key, shape: jax.random.bernoulli(key, share, shape),
      rng,
      jnp.arange(images.shape[0]),
      images.shape[1:],
    )
    moved = images + epsilon * scale * jnp.where(up, 1.0, -1.0)
    return jax.lax.stop_gradient(jnp.clip(moved, 0.0, 1.0))

  return attack


def test_attack_of_a_users_own():
  assert list(training.TRAINING_ATTACKS) == ['pgd', 'fgsm', 'corners']
  assert list(training.TRAINING_ATTACKS.options('corners')) == ['share']
  images = jnp.full((3, 2, 2, 1), 0.5)
  up = make('corners', {'share': 1.0})(objective, KEY, images)
  np.testing.assert_allclose(up, 0.6, rtol=1e-6)
  both = make('corners')(objective, KEY, images, scale=0.5)
  np.testing.assert_allclose(np.abs(both - images), 0.05, atol=1e-6)
  with pytest.raises(ValueError, match=r"got \('sharp',\)"):
    make('corners', {'sharp': 1.0})
