"""Randomised networks: one evaluation is luck, several agree with the formula.

The network is linear in two of its four classes, with normal noise on the first
logit. So the expected accuracy is Phi(margin / sigma), and the strongest attack
is known: it lowers the margin by epsilon times the weights' dual norm.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm as normal

from dhat_jax.attacks import randomized
from dhat_jax.attacks.apgd import make_evaluate, make_loss
from dhat_jax.attacks.autoattack import autoattack, checks, ensemble
from dhat_jax.attacks.autoattack.judge import Judge, judged
from dhat_jax.attacks.autoattack.passes import jit_hoisted
from dhat_jax.runtime import streams

NAMES = checks.NAMES
COUNT, SAMPLES, SIGMA = 48, 20, 1.0
SHAPE = (4, 4, 1)
WEIGHTS = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
BUDGET = {'n_iter': 12, 'n_queries': 60, 'eot_iter': 8, 'n_targets': 1}


def noisy(images, key):
  """Logits [B, 4]: +-margin / 2 with noise, and two classes far away."""
  values = jnp.tensordot(images - 0.5, WEIGHTS, axes=3)  # [B]
  noise = SIGMA * jax.random.normal(key, values.shape)
  far = jnp.full_like(values, -30.0)
  return jnp.stack([values + noise, jnp.zeros_like(values), far, far], axis=1)


def problem(margin):
  """Images [N, 4, 4, 1] of one margin, labelled 0; their perturbations fit."""
  generator = np.random.default_rng(1)
  images = 0.5 + 0.1 * generator.uniform(-1, 1, (COUNT, *SHAPE))
  values = np.tensordot(images - 0.5, WEIGHTS, axes=3)
  shift = (margin - values) / np.sum(WEIGHTS**2)
  images += shift[:, None, None, None] * WEIGHTS
  return images.astype(np.float32), np.zeros(COUNT, int)


def binomial(probability, count, deviations=4):
  """Half width of what `count` evaluations may give."""
  return deviations * np.sqrt(probability * (1 - probability) / count)


def attacked(margin, epsilon, **options):
  images, labels = problem(margin)
  return autoattack(
    noisy,
    images,
    labels,
    epsilon=epsilon,
    randomized=True,
    samples=SAMPLES,
    **{**BUDGET, **options},
  )


@pytest.fixture(scope='module')
def harmless():
  """An epsilon so small that nothing really changes, P(correct) = .84."""
  return attacked(
    1.0, 1e-5, version='custom', attacks=('apgd-ce', 'square'), n_restarts=5
  )


def test_one_evaluation_per_point_overstates_an_attack(harmless):
  """Luck breaks most images, though the attack changes nothing."""
  images, labels = problem(1.0)
  judge = Judge(noisy, jit_hoisted, rng=streams.key(1), samples=1)
  places = np.arange(COUNT)
  lucky = np.ones(COUNT, bool)
  passes = 12  # clean, five restarts, six pieces of Square
  for number in range(passes):
    numbers = np.full(COUNT, number)
    logits = judge.evaluations(images, places, numbers, 'lucky')[:, 0]
    lucky &= logits.argmax(axis=1) == labels
  exact = normal.cdf(1.0 / SIGMA)
  assert abs(lucky.mean() - exact**passes) < binomial(exact**passes, COUNT)
  assert lucky.mean() < 0.4 < exact - 0.4  # it says that the attack succeeds
  mean = harmless.sampled_accuracy['square']['mean']
  assert abs(mean - exact) < binomial(exact, COUNT * SAMPLES)
  assert harmless.robust_accuracy > 0.95  # most evaluations are correct


def test_the_spread_is_that_of_independent_evaluations(harmless):
  exact = normal.cdf(1.0 / SIGMA)
  numbers = harmless.sampled_accuracy['clean']
  deviation = np.sqrt(exact * (1 - exact) / COUNT)
  assert 0.4 * deviation < numbers['spread'] < 2 * deviation
  worst = exact**SAMPLES
  assert abs(numbers['worst'] - worst) < binomial(worst, COUNT)
  each = harmless.clean_correct
  assert each.shape == (COUNT, SAMPLES)
  assert numbers['mean'] == each.mean()


_L2 = [pytest.param(name, 'l2', marks=pytest.mark.slow) for name in NAMES]


@pytest.mark.parametrize(
  ('name', 'norm'), [*((name, 'linf') for name in NAMES), *_L2]
)
def test_every_attack_agrees_with_the_formula(name, norm):
  """Gradient attacks find the optimum; FAB stops where the mean logits tie."""
  margin, dual = 1.5, {'linf': np.abs(WEIGHTS).sum()}
  dual['l2'] = np.linalg.norm(WEIGHTS)
  epsilon = 2.0 / dual[norm]
  result = attacked(
    margin,
    epsilon,
    norm=norm,
    version='custom',
    attacks=(name,),
    n_restarts=1,
  )
  lowest = normal.cdf((margin - 2.0) / SIGMA)
  highest = {'apgd-ce': lowest, 'apgd-dlr': lowest, 'apgd-t': lowest}
  slack = binomial(0.5, COUNT * SAMPLES)
  mean = result.sampled_accuracy[name]['mean']
  assert lowest - slack < mean < highest.get(name, 0.62) + slack
  # What is reported of each image is what the formula says of it.
  margins = np.tensordot(result.images_adv - 0.5, WEIGHTS, axes=3)
  shares = normal.cdf(margins / SIGMA)
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
  options = {'version': 'custom', 'attacks': ('apgd-ce',), 'n_restarts': 1}
  whole, split = (
    attacked(1.0, 0.05, batch_size=size, n_iter=2, **options)
    for size in (COUNT, 20)
  )
  for name, flags in whole.flags.items():
    np.testing.assert_array_equal(flags, split.flags[name])
  np.testing.assert_array_equal(whole.correct, split.correct)
  assert 0 < whole.correct.mean() < 1


def test_mean_gradients_agree_with_the_formula():
  """The expected gradient of the cross entropy of two logits, by quadrature."""
  images, labels = problem(0.5)
  images, labels = images[:2], labels[:2]
  evaluate = make_evaluate(
    noisy, make_loss('ce', labels, None), labels, streams.key(0), 4000, True
  )
  losses, correct, gradients = jax.jit(evaluate)(images, 0)
  points, weights = np.polynomial.hermite_e.hermegauss(60)
  weights = weights / weights.sum()
  values = 0.5 + SIGMA * points
  loss = np.sum(weights * np.logaddexp(0, -values))
  slope = -np.sum(weights / (1 + np.exp(values)))
  np.testing.assert_allclose(losses, loss, atol=0.04)
  np.testing.assert_allclose(
    gradients, np.broadcast_to(slope * WEIGHTS, images.shape), atol=0.04
  )
  assert np.all(correct)  # Phi(.5) > .5


def test_mean_logits_and_their_gradients_agree_with_the_formula():
  images, _ = problem(0.5)
  keys = randomized.example_keys(streams.key(0), jnp.arange(2))
  mean = randomized.mean_logits(randomized.per_example(noisy), keys, 400)
  logits, pull_back = jax.vjp(jax.jit(mean), images[:2])
  np.testing.assert_allclose(logits[:, 0], 0.5, atol=4 * SIGMA / 20)
  (gradient,) = pull_back(jnp.zeros((2, 4)).at[:, 0].set(1.0))
  np.testing.assert_allclose(
    gradient, np.broadcast_to(WEIGHTS, gradient.shape), atol=1e-4
  )


def test_an_image_has_its_own_noise():
  images, _ = problem(0.5)
  rng = streams.key(0)
  logits = randomized.sampled(
    randomized.per_example(noisy),
    images[:3],
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
    return ensemble._make_budget(
      version,
      4,
      n_iter=1,
      n_queries=1,
      n_restarts=None,
      n_targets=9,
      eot_iter=None,
      randomized=randomized,
    ).eot_iter

  assert averaged('rand', False) == averaged('standard', True) == 20
  assert averaged('standard', False) == 1
