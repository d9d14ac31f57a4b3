"""A randomised network whose expected accuracy is a formula.

It is linear in two of its four classes, with normal noise on the first logit.
So the expected accuracy is Phi(margin / sigma). The strongest attack lowers the
margin by epsilon times the weights' dual norm.

    python -m tests.attacks.noisy

prints the table of docs/autoattack.md.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import norm as normal

from dhat_jax.attacks import randomized
from dhat_jax.attacks.autoattack import autoattack
from dhat_jax.attacks.autoattack.judge import Judge
from dhat_jax.attacks.autoattack.passes import jit_hoisted
from dhat_jax.runtime import streams

SAMPLES, SIGMA = 20, 0.3
SHAPE = (4, 4, 1)
WEIGHTS = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
DUAL = {'linf': np.abs(WEIGHTS).sum(), 'l2': np.linalg.norm(WEIGHTS)}
BUDGET = {'n_iter': 12, 'n_queries': 60, 'eot_iter': 8, 'n_targets': 1}
# Of the table: margins in units of sigma, images of each, restarts of APGD-CE.
MARGINS, EACH, RESTARTS = (3.0, 2.0, 1.5, 1.0), 100, 5


def logits_fn(images, key):
  """Logits [B, 4]: the margin with noise, 0, and two classes far away."""
  margins = jnp.tensordot(images - 0.5, WEIGHTS, axes=3)  # [B]
  noise = SIGMA * jax.random.normal(key, margins.shape)
  far = jnp.full_like(margins, -30.0)
  return jnp.stack([margins + noise, jnp.zeros_like(margins), far, far], axis=1)


def margins_of(images):
  """The margins without noise: [N, 4, 4, 1] -> [N]."""
  return np.tensordot(images - 0.5, WEIGHTS, axes=3)


def problem(margins):
  """Images [N, 4, 4, 1] of given margins [N], labelled 0, near grey."""
  generator = np.random.default_rng(1)
  margins = np.asarray(margins)
  images = 0.5 + 0.1 * generator.uniform(-1, 1, (len(margins), *SHAPE))
  shift = (margins - margins_of(images)) / np.sum(WEIGHTS**2)
  images += shift[:, None, None, None] * WEIGHTS
  return images.astype(np.float32), np.zeros(len(margins), int)


def attacked(margins, lowered, norm='linf', **options):
  """AutoAttack in a ball in which the margins fall by `lowered` at most."""
  return autoattack(
    logits_fn,
    *problem(margins),
    epsilon=lowered / DUAL[norm],
    norm=norm,
    randomized=True,
    samples=SAMPLES,
    **{**BUDGET, **options},
  )


def lucky(images, passes):
  """Which images are correct in one evaluation after each pass: bool [N]."""
  judge = Judge(logits_fn, jit_hoisted, rng=streams.key(1), samples=1)
  places = np.arange(len(images))
  robust = np.ones(len(images), bool)
  for number in passes:
    logits = judge.evaluations(
      images, places, np.full_like(places, number), 'one evaluation'
    )
    robust &= logits[:, 0].argmax(axis=1) == 0
  return robust


def table():
  """Rows (margin, expected accuracy, that found, spread, worst, lucky)."""
  margins = SIGMA * np.repeat(MARGINS, EACH)
  options = {'version': 'custom', 'attacks': ('apgd-ce',)}
  result = attacked(margins, SIGMA, n_restarts=RESTARTS, **options)
  clean, _ = problem(margins)
  one = lucky(clean, [0]) & lucky(result.images_adv, range(1, 1 + RESTARTS))
  rows = []
  for margin in MARGINS:
    chosen = margins == SIGMA * margin
    numbers = randomized.accuracies(result.correct[chosen])
    rows.append(
      (
        margin,
        normal.cdf(margin - 1),
        numbers['mean'],
        numbers['spread'],
        numbers['worst'],
        one[chosen].mean(),
      )
    )
  return rows


if __name__ == '__main__':
  for row in table():
    shares = ' | '.join(f'{100 * share:.1f}' for share in row[1:])
    print(f'| {row[0]:g} | {shares} |')
