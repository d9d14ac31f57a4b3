"""Batches of images and passes: full, and as if pass came after pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.attacks import balls
from dhat_jax.attacks.apgd import apgd, apgd_targeted
from dhat_jax.attacks.autoattack import autoattack, packing
from dhat_jax.attacks.autoattack.budget import Budget
from dhat_jax.attacks.autoattack.packing import Packing, counted
from dhat_jax.attacks.fab import fab
from dhat_jax.attacks.square import square
from dhat_jax.runtime import streams
from tests.attacks import linear

# On a CPU a batch takes at most 64.
SIZES = [
  ((20, 8, 1), 7),
  ((20, 250, 1), 20),
  ((256, 250, 1), 64),
  ((65, 250, 1), 33),
  ((20, 20, 2), 20),
  ((21, 22, 2), 22),
  ((256, 64, 4), 64),
]


@pytest.mark.parametrize(('arguments', 'size'), SIZES)
def test_batches_are_even_shares(arguments, size):
  assert packing.size_of_batches(*arguments) == size


def _taken(queue, robust):
  return [part.tolist() for part in queue.take(robust)]


def test_passes_share_batches_until_none_is_left():
  robust = np.array([True, True, False, True])
  queue = Packing([2, 3], np.flatnonzero(robust), 4, mixed=True)
  assert _taken(queue, robust) == [[2, 2, 2, 3], [0, 1, 3, 0]]
  assert queue.left(robust).tolist() == [3, 3]
  robust[1] = False
  assert queue.left(robust).tolist() == [3]
  assert _taken(queue, robust) == [[3], [3]]
  assert _taken(queue, robust) == [[], []]


def test_pieces_of_square_do_not_share_batches():
  robust = np.ones(3, bool)
  queue = Packing([0, 1], np.arange(3), 2, mixed=False)
  taken = [_taken(queue, robust) for _ in range(4)]
  assert taken == [[[0, 0], [0, 1]], [[0], [2]], [[1, 1], [0, 1]], [[1], [2]]]


def test_an_item_counts_only_if_its_image_was_robust_until_then():
  places = np.array([4, 7, 4, 7, 4])
  robust = np.array([True, False, False, True, False])
  np.testing.assert_array_equal(
    counted(places, robust), [True, True, True, False, False]
  )


NAMES = ('apgd-ce', 'apgd-t', 'fab', 'square')
BUDGET = Budget(n_iter=1, n_queries=12, n_restarts=3, n_targets=4)
EPSILON = 0.02


def _curved(images):
  """Logits that rise and fall, so that restarts and targets matter."""
  logits = linear.logits_of(images)
  return logits + 3 * jnp.sin(5 * logits[:, ::-1])


def _problem():
  """40 images, the first 3 labels wrong."""
  images, labels = linear.problem(count=40, wrong=0)
  labels = np.array(jnp.argmax(_curved(images), axis=1))
  labels[:3] = (labels[:3] + 1) % 5
  return images, labels


def _run_pass(name, images, labels, rng, index, active):
  """One pass over all images, by the attack's own function."""
  batch = {'epsilon': EPSILON, 'active': active}
  rng = rng if name == 'square' else jax.random.fold_in(rng, index)
  if name == 'square':
    return square(linear.logits_of, images, labels, rng, n_queries=12, **batch)
  batch['n_iter'] = BUDGET.n_iter
  if name == 'fab':
    return fab(_curved, images, labels, rng, random=index > 0, **batch)
  if name == 'apgd-ce':
    return apgd(_curved, images, labels, rng, **batch)
  return apgd_targeted(_curved, images, labels, rng, target_rank=index, **batch)


def _one_pass_at_a_time():
  """What AutoAttack is defined as: every pass sees what is still robust."""
  images, labels = _problem()
  robust = np.argmax(_curved(images), axis=1) == labels
  images_adv = images.copy()
  broken_by = np.where(robust, '', 'clean').astype('<U16')
  broken_in = np.full(len(labels), -1)
  for name in NAMES:
    run = jax.jit(functools.partial(_run_pass, name))
    rng = streams.fold_in(streams.key(0), f'autoattack/{name}')
    for index in [0] if name == 'square' else BUDGET.passes(name):
      withstood, points = run(images, labels, rng, index, robust)
      broken = robust & ~np.asarray(withstood)
      images_adv[broken] = points[broken]
      broken_by[broken], broken_in[broken] = name, index
      robust = robust & ~broken
  return robust, images_adv, broken_by, broken_in


def test_packed_passes_equal_one_pass_at_a_time():
  images, labels = _problem()
  robust, images_adv, broken_by, broken_in = _one_pass_at_a_time()
  # Something breaks in the first pass of an attack, and in a later one.
  assert {0, 1, 2, 3, 4} <= set(broken_in[~robust].tolist())
  batches = []
  result = autoattack(
    _curved,
    images,
    labels,
    epsilon=EPSILON,
    version='custom',
    attacks=NAMES,
    batch_size=7,
    progress=batches.append,
    n_iter=BUDGET.n_iter,
    n_queries=BUDGET.n_queries,
    n_restarts=BUDGET.n_restarts,
    n_targets=BUDGET.n_targets,
  )
  np.testing.assert_array_equal(result.robust, robust)
  np.testing.assert_array_equal(result.broken_by, broken_by)
  square_broke = broken_by == 'square'  # here in pieces
  np.testing.assert_array_equal(
    result.broken_in[~square_broke], broken_in[~square_broke]
  )
  np.testing.assert_allclose(result.images_adv, images_adv, atol=1e-6)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_fab_that_stops_at_epsilon_has_the_same_flags(norm):
  images, labels = _problem()
  targets = (labels + 1) % 5
  epsilon = {'linf': 0.01, 'l2': 0.04}[norm]
  options = {'epsilon': epsilon, 'norm': norm, 'n_iter': 6, 'targets': targets}

  @functools.partial(jax.jit, static_argnames=('stop', 'count'))
  def run(stop, count):
    batch = options | {'targets': targets[:count]}
    return fab(
      _curved,
      jnp.asarray(images[:count]),
      jnp.asarray(labels[:count]),
      stop_at_epsilon=stop,
      **batch,
    )

  (robust, smallest), (same, first) = run(False, 40), run(True, 40)
  np.testing.assert_array_equal(same, robust)
  assert 5 < np.sum(robust) < 35
  sizes, larger = (balls.norms(x - images, norm) for x in (smallest, first))
  assert np.all(larger <= epsilon)
  assert np.all(sizes <= larger)
  assert np.any(sizes < larger)
  # Who else is in the batch does not matter.
  np.testing.assert_allclose(run(True, 8)[1], first[:8], atol=1e-6)


def test_the_ensemble_says_that_fab_stops():
  images, labels = _problem()
  options = {'version': 'custom', 'attacks': ('fab',), 'n_iter': 2}
  run = functools.partial(
    autoattack, _curved, images, labels, epsilon=EPSILON, **options
  )
  stopped, plain = run(fab_stop_at_epsilon=True), run()
  np.testing.assert_array_equal(stopped.robust, plain.robust)
  assert [line for line in stopped.warnings if 'stops at epsilon' in line]
  assert not plain.warnings
  with pytest.raises(ValueError, match='stop_at_epsilon'):
    run(fab_stop_at_epsilon=1)
