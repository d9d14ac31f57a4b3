"""Randomised networks: a key per example, means over keys, and their judgement.

One evaluation of a randomised network says little: an attack that may try many
images is lucky with one of them. So an image is judged by several evaluations,
and attacks that need one function attack the mean of the logits.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np


def example_keys(rng: chex.PRNGKey, indices: chex.Array) -> chex.PRNGKey:
  """Returns a key per example, by its place in the data set: keys [B].

  Args:
    rng: typed key.
    indices: int [B].
  """
  return jax.vmap(jax.random.fold_in, (None, 0))(rng, indices)


def folded_each(keys: chex.PRNGKey, numbers: chex.Array) -> chex.PRNGKey:
  """Folds each key [B] with its number: int [B]."""
  return jax.vmap(jax.random.fold_in)(keys, numbers)


def per_example(logits_fn: Callable) -> Callable:
  """Returns a network whose noise is drawn for each example by itself.

  Then an example's logits depend on its key alone, not on its batch, its place
  there or the number of devices.

  Args:
    logits_fn: (images [B, ...], key) -> logits [B, K], or a tree of them.

  Returns:
    (images [B, ...], keys [B]) -> the same.
  """

  def one(image, key):
    return jax.tree.map(lambda logits: logits[0], logits_fn(image[None], key))

  return jax.vmap(one)


def sampled(
  noisy_fn: Callable, images: chex.Array, keys: chex.PRNGKey, samples: int
) -> chex.ArrayTree:
  """Evaluates a network several times, one after the other.

  Args:
    noisy_fn: (images [B, ...], keys [B]) -> logits [B, K], or a tree of them.
    images: float [B, ...].
    keys: typed keys [B], folded with the number of the sample.
    samples: m.

  Returns:
    float [B, m, K], or a tree of them.
  """

  def sample(number):
    return noisy_fn(images, _nth(keys, number))

  logits = jax.lax.map(sample, jnp.arange(samples))  # [m, B, K]
  return jax.tree.map(lambda array: jnp.moveaxis(array, 0, 1), logits)


def _nth(keys: chex.PRNGKey, number: chex.Numeric) -> chex.PRNGKey:
  """Folds keys [B] with the number of a sample."""
  return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def mean_logits(
  noisy_fn: Callable, keys: chex.PRNGKey, samples: int
) -> Callable:
  """Returns the mean of the logits over fixed keys: images -> [B, K].

  Attacks that compare one point with another need a function that does not
  change between calls. The mean over few keys still differs from the
  expectation, so its adversarial images are judged with other keys.

  Args:
    noisy_fn: (images [B, ...], keys [B]) -> logits [B, K].
    keys: typed keys [B].
    samples: m, over which the mean is taken.
  """

  def call(images):
    @jax.checkpoint  # memory of one evaluation, not of all
    def add(total, number):
      return total + noisy_fn(images, _nth(keys, number)), None

    shape = jax.eval_shape(noisy_fn, images, keys)
    start = jnp.zeros(shape.shape, shape.dtype)
    total, _ = jax.lax.scan(add, start, jnp.arange(samples))
    return total / samples

  return call


def vote(classes: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Predicts from several evaluations: the label if most of them say so.

  Otherwise it is the most frequent other class, the first one of several.

  Args:
    classes: int [n, m], predicted in each evaluation.
    labels: int [n].

  Returns:
    int32 [n].
  """
  right = classes == labels[:, None]
  others = np.where(right, np.iinfo(np.int32).min, classes)  # [n, m]
  counts = (others[:, :, None] == others[:, None, :]).sum(axis=2)  # [n, m]
  counts[right] = 0
  modes = np.take_along_axis(classes, counts.argmax(axis=1)[:, None], axis=1)
  most = 2 * right.sum(axis=1) > right.shape[1]
  return np.where(most, labels, modes[:, 0]).astype(np.int32)


def accuracies(correct: np.ndarray) -> dict[str, float]:
  """Summarises the evaluations of a set of images.

  Args:
    correct: bool [N, m], whether each evaluation of an image was correct.

  Returns:
    `worst`, the share of images that were correct in all m evaluations; `mean`,
    the share of all evaluations that were correct, the expected accuracy; and
    `spread`, the standard deviation of the whole set's accuracy from one
    evaluation to another.
  """
  each = correct.mean(axis=0)  # [m]
  return {
    'worst': float(correct.all(axis=1).mean()),
    'mean': float(correct.mean()),
    'spread': float(each.std(ddof=1)) if len(each) > 1 else 0.0,
  }
