"""Every attack and norm on images of any height, width and depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.attacks import apgd, balls, fab, pgd, square

KEY = jax.random.key(0, impl='threefry2x32')


def _gradient(steps, objective='cross_entropy'):
  settings = pgd.Settings(0.2, 0.2, steps, 1, float(steps > 1))

  def attack(logits_fn, images, labels, *, norm):
    run = pgd.make_evaluation_attack(objective=objective, norm=norm)
    return run(logits_fn, images, labels, KEY, settings)

  return attack


def _with(function, **options):
  def attack(logits_fn, images, labels, *, norm):
    return function(
      logits_fn, images, labels, KEY, epsilon=0.2, norm=norm, **options
    )

  return attack


# {name: (attack, fewest classes)}.
ATTACKS = {
  'fgsm': (_gradient(1), 2),
  'pgd': (_gradient(3), 2),
  'cw': (_gradient(3, 'margin'), 2),
  'apgd-ce': (_with(apgd.apgd, n_iter=3), 2),
  'apgd-dlr': (_with(apgd.apgd, n_iter=3, loss='dlr'), 3),
  'apgd-t': (_with(apgd.apgd_targeted, n_iter=3, target_rank=2), 4),
  'fab': (_with(fab.fab, n_iter=3, random=True), 2),
  'fab-t': (_with(fab.fab_targeted, n_iter=3, target_rank=2), 2),
  'square': (_with(square.square, n_queries=15), 2),
}


@pytest.mark.parametrize(
  ('norm', 'shape', 'classes'),
  [
    ('linf', (1, 1, 1), 2),
    ('linf', (2, 5, 4), 4),
    ('l2', (4, 1, 3), 3),
    ('l2', (12, 8, 1), 2),
  ],
)
def test_every_attack_runs_and_stays_in_its_ball(norm, shape, classes):
  rng = np.random.default_rng(0)
  images = rng.uniform(size=(3, *shape)).astype(np.float32)
  slope = rng.normal(size=(images[0].size, classes)).astype(np.float32)

  def logits_fn(images):
    return (images.reshape(len(images), -1) - 0.5) @ slope

  labels = jnp.argmax(logits_fn(images), axis=1)
  for name, (attack, fewest) in ATTACKS.items():
    if classes < fewest:
      continue
    run = jax.jit(
      lambda images, labels, attack=attack: attack(
        logits_fn, images, labels, norm=norm
      )
    )
    # As with JAX_NUMPY_DTYPE_PROMOTION=strict: no cast is left to chance.
    with jax.numpy_dtype_promotion('strict'):
      robust, images_adv = run(images, labels)
    assert images_adv.shape == images.shape, name
    assert np.isfinite(images_adv).all(), name
    assert images_adv.min() >= 0, name
    assert images_adv.max() <= 1, name
    sizes = balls.norms(images_adv - images, norm)
    assert float(sizes.max()) <= 0.2 + 1e-5, name
    right = balls.is_right(logits_fn(images_adv), labels)
    np.testing.assert_array_equal(robust, right, err_msg=name)
