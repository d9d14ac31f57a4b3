"""Randomised networks: one evaluation is luck, several follow the formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm as normal

from dhat_jax.attacks import randomized
from dhat_jax.attacks.apgd import make_evaluate, make_loss
from dhat_jax.attacks.autoattack import budget, checks
from dhat_jax.attacks.autoattack.judge import judged
from dhat_jax.runtime import streams
from tests.attacks import noisy
from tests.attacks.noisy import SAMPLES, SIGMA, WEIGHTS

COUNT = 48


def attacked(margin, lowered, *args, **options):
  """AutoAttack on images of one margin, both in units of sigma."""
  return noisy.attacked(
    np.full(COUNT, SIGMA * margin), SIGMA * lowered, *args, **options
  )


def binomial(probability, count, deviations=4):
  """Half width of what `count` evaluations may give."""
  return deviations * np.sqrt(probability * (1 - probability) / count)


@pytest.fixture(scope='module')
def harmless():
  """An epsilon so small that nothing really changes, P(correct) = .84."""
  return attacked(
    1.0, 1e-4, version='custom', attacks=('apgd-ce', 'square'), n_restarts=5
  )


def test_one_evaluation_per_point_overstates_an_attack(harmless):
  """Luck breaks most images, though the attack changes nothing."""
  images, _ = noisy.problem(np.full(COUNT, SIGMA))
  passes = 12  # clean, five restarts, six pieces of Square
  lucky = noisy.lucky(images, range(passes)).mean()
  exact = normal.cdf(1.0)
  assert abs(lucky - exact**passes) < binomial(exact**passes, COUNT)
  assert lucky < 0.4 < exact - 0.4  # it says that the attack succeeds
  mean = harmless.sampled_accuracy['square']['mean']
  assert abs(mean - exact) < binomial(exact, COUNT * SAMPLES)
  assert harmless.robust_accuracy > 0.95  # most evaluations are correct


def test_the_spread_is_that_of_independent_evaluations(harmless):
  exact = normal.cdf(1.0)
  numbers = harmless.sampled_accuracy['clean']
  deviation = np.sqrt(exact * (1 - exact) / COUNT)
  assert 0.4 * deviation < numbers['spread'] < 2 * deviation
  worst = exact**SAMPLES
  assert abs(numbers['worst'] - worst) < binomial(worst, COUNT)
  each = harmless.clean_correct
  assert each.shape == (COUNT, SAMPLES)
  assert numbers['mean'] == each.mean()


@pytest.mark.parametrize(
  ('name', 'norm'),
  [
    *((name, 'linf') for name in checks.NAMES),
    *((name, 'l2') for name in ('apgd-t', 'fab-t', 'square')),
  ],
)
def test_every_attack_agrees_with_the_formula(name, norm):
  """Gradient attacks find the optimum; FAB stops where the mean logits tie."""
  result = attacked(
    1.5, 2.0, norm, version='custom', attacks=(name,), n_restarts=1
  )
  lowest = normal.cdf(1.5 - 2.0)
  highest = lowest if name.startswith('apgd') else 0.62
  slack = binomial(0.5, COUNT * SAMPLES)
  mean = result.sampled_accuracy[name]['mean']
  assert lowest - slack < mean < highest + slack
  # What is reported of each image is what the formula says of it.
  shares = normal.cdf(noisy.margins_of(result.images_adv) / SIGMA)
  assert abs(mean - shares.mean()) < slack


def test_results_agree_with_themselves(harmless):
  np.testing.assert_array_equal(harmless.robust, harmless.predictions == 0)
  np.testing.assert_array_equal(
    harmless.robust, harmless.correct.sum(axis=1) > SAMPLES / 2
  )
  np.testing.assert_array_equal(harmless.flags['square'], harmless.robust)
  broken = harmless.broken_in >= 0
  named = np.isin(harmless.broken_by, ('apgd-ce', 'square'))
  np.testing.assert_array_equal(broken, named)
  np.testing.assert_array_equal(harmless.broken_by == '', harmless.robust)


def test_standard_is_allowed_and_labelled():
  names = checks.choose_attacks('standard', None)
  lines = '\n'.join(checks.label_randomized('standard', names, 20, 10))
  assert 'most of 10 evaluations' in lines
  assert 'fab-t, square attack the mean logits of as many' in lines
  assert len(checks.label_randomized('rand', names[:1], 20, 10)) == 1


def test_batches_do_not_change_the_flags():
  options = {'version': 'custom', 'attacks': ('apgd-ce',), 'n_restarts': 2}
  whole, split = (
    attacked(1.0, 0.5, batch_size=size, n_iter=2, **options)
    for size in (COUNT, 20)
  )
  for name, flags in whole.flags.items():
    np.testing.assert_array_equal(flags, split.flags[name])
  np.testing.assert_array_equal(whole.correct, split.correct)
  assert 0 < whole.correct.mean() < 1


def test_mean_gradients_agree_with_the_formula():
  """The expected gradient of the cross entropy of two logits, by quadrature."""
  images, labels = noisy.problem([0.2, 0.2])
  evaluate = make_evaluate(
    noisy.logits_fn,
    make_loss('ce', labels, None),
    labels,
    streams.key(0),
    eot_iter=4000,
    by_mean_loss=True,
  )
  losses, correct, gradients = jax.jit(evaluate)(images, 0)
  points, weights = np.polynomial.hermite_e.hermegauss(60)
  weights = weights / weights.sum()
  values = 0.2 + SIGMA * points
  loss = np.sum(weights * np.logaddexp(0, -values))
  slope = -np.sum(weights / (1 + np.exp(values)))
  np.testing.assert_allclose(losses, loss, atol=0.01)
  np.testing.assert_allclose(
    gradients, np.broadcast_to(slope * WEIGHTS, images.shape), atol=0.01
  )
  assert np.all(correct)  # Phi(.2 / sigma) > .5


def test_mean_logits_and_their_gradients_agree_with_the_formula():
  images, _ = noisy.problem([0.2, 0.2])
  keys = randomized.example_keys(streams.key(0), jnp.arange(2))
  noise_fn = randomized.per_example(noisy.logits_fn)
  mean = randomized.mean_logits(noise_fn, keys, 400)
  logits, pull_back = jax.vjp(jax.jit(mean), images)
  np.testing.assert_allclose(logits[:, 0], 0.2, atol=4 * SIGMA / 20)
  (gradient,) = pull_back(jnp.zeros((2, 4)).at[:, 0].set(1.0))
  np.testing.assert_allclose(
    gradient, np.broadcast_to(WEIGHTS, gradient.shape), atol=1e-4
  )


def test_an_image_has_its_own_noise():
  images, _ = noisy.problem([0.2] * 3)
  images[2] = images[0]
  rng = streams.key(0)
  logits = randomized.sampled(
    randomized.per_example(noisy.logits_fn),
    images,
    randomized.example_keys(rng, jnp.array([5, 7, 5])),
    4,
  )
  values = np.asarray(logits)[:, :, 0]
  assert values.shape == (3, 4)
  np.testing.assert_allclose(values[0], values[2], atol=1e-5)  # one place
  assert len(np.unique(values[:2].round(4))) == 8


def test_votes():
  classes = np.array([[1, 1, 2], [2, 2, 1], [1, 0, 3], [3, 3, 3]])
  labels = np.array([1, 1, 1, 0])
  np.testing.assert_array_equal(randomized.vote(classes, labels), [1, 2, 0, 3])
  # Half of them are not most.
  pairs = np.array([[0, 1], [1, 1]])
  np.testing.assert_array_equal(
    randomized.vote(pairs, np.array([0, 1])), [1, 1]
  )


def test_accuracies_by_hand():
  correct = np.array([[1, 1, 1], [1, 0, 0], [0, 1, 1], [0, 0, 0]], bool)
  assert randomized.accuracies(correct) == {
    'worst': 0.25,
    'mean': 0.5,
    'spread': 0.0,
  }
  correct[3, 0] = True  # accuracies .75, .5, .5
  assert randomized.accuracies(correct)['spread'] == pytest.approx(
    0.25 / np.sqrt(3)
  )


def test_what_chooses_a_point_does_not_judge_it():
  choosing = np.array([[[1, 0], [1, 0]]], np.float32)
  judging = np.array([[[0, 1], [0, 3]]], np.float32)
  found = judged(choosing, judging, np.array([0]))
  assert found.shares == [1.0]
  assert not found.correct.any()
  assert found.predictions == [1]
  assert found.margins == [-2.0]


def test_rand_and_noise_average_twenty_evaluations():
  def averaged(version, randomized):
    return budget.make_budget(
      version,
      4,
      n_iter=1,
      n_queries=1,
      n_restarts=None,
      n_targets=9,
      eot_iter=None,
      stop_at_epsilon=False,
      randomized=randomized,
    ).eot_iter

  assert averaged('rand', False) == averaged('standard', True) == 20
  assert averaged('standard', False) == 1
