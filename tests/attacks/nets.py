"""A small network of partial robustness, trained on digits in a second."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets

EPSILON = {'linf': 0.1, 'l2': 0.5}


def logits_of(weights, images):
  """One hidden layer on centred pixels: [B, 8, 8, 1] -> [B, 10]."""
  w1, b1, w2, b2 = weights
  hidden = jnp.tanh((images.reshape(len(images), -1) - 0.5) @ w1 + b1[None])
  return hidden @ w2 + b2[None]


def _loss(weights, images, labels):
  logits = logits_of(weights, images)
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  return jnp.mean(losses)


def digits():
  """Training images and labels, test images and labels: 1000 and 797."""
  data = datasets.load_digits()
  images = (data.images / 16.0).astype(np.float32)[..., None]
  labels = data.target.astype(np.int32)
  return images[:1000], labels[:1000], images[1000:], labels[1000:]


@functools.lru_cache(maxsize=1)
def trained_weights():
  """Adversarially trained in a ball somewhat smaller than the attacks'."""
  images, labels, _, _ = digits()
  rng = np.random.default_rng(0)
  sizes = [(64, 48), (48,), (48, 10), (10,)]
  weights = [
    jnp.asarray(rng.normal(size=size) * 0.15, jnp.float32) for size in sizes
  ]
  tx = optax.adam(0.01)

  def step(carry, _):
    weights, opt_state = carry
    points = images
    for _ in range(3):
      ascent = jnp.sign(jax.grad(_loss, 1)(weights, points, labels))
      points = jnp.clip(points + 0.03 * ascent, images - 0.06, images + 0.06)
      points = jnp.clip(points, 0, 1)
    gradients = jax.grad(_loss)(weights, points, labels)
    updates, opt_state = tx.update(gradients, opt_state)
    return (optax.apply_updates(weights, updates), opt_state), None

  run = jax.jit(lambda carry: jax.lax.scan(step, carry, None, 150)[0])
  weights, _ = run((weights, tx.init(weights)))
  return [np.asarray(w) for w in weights]
