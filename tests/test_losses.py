import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax import losses
from dhat_jax.models.outputs import Outputs
from tests.helpers.float64 import (
  LABELS,
  ce_in_float64,
  finite_differences,
  kl_in_float64,
  logits_at,
  pick,
  softmax,
)

BETA = 3.0


def trades_in_float64(clean, adversarial):
  kl = kl_in_float64(softmax(clean), softmax(adversarial))
  return ce_in_float64(clean) + BETA * kl


def mart_in_float64(clean, adversarial):
  p, q = softmax(clean), softmax(adversarial)
  others = q.copy()
  others[np.arange(4), LABELS] = -1
  boosted = -np.log(pick(q)) - np.log(1.0001 - others.max(axis=1) + 1e-12)
  # 1 - p_y has no digits left in float64 either where p_y is nearly 1.
  doubt = 1e-7 + p.sum(axis=1, where=np.arange(4) != LABELS[:, None])
  return boosted + BETA * kl_in_float64(p, q) * doubt


def smoothed_in_float64(z, smoothing=0.2):
  p = softmax(z)
  target = np.full_like(p, smoothing / p.shape[1])
  target[np.arange(4), LABELS] += 1 - smoothing
  return -(target * np.log(p)).sum(axis=1)


CASES = {
  'natural': (losses.natural(), lambda clean, _: ce_in_float64(clean)),
  'sat': (losses.sat(), lambda _, adversarial: ce_in_float64(adversarial)),
  'trades': (losses.trades(beta=BETA), trades_in_float64),
  'mart': (losses.mart(beta=BETA), mart_in_float64),
  'smoothed_natural': (
    losses.natural(label_smoothing=0.2),
    lambda clean, _: smoothed_in_float64(clean),
  ),
  'smoothed_sat': (
    losses.sat(label_smoothing=0.2),
    lambda _, adversarial: smoothed_in_float64(adversarial),
  ),
  'smoothed_mart': (
    losses.mart(beta=BETA, label_smoothing=0.2),
    lambda clean, adversarial: (
      mart_in_float64(clean, adversarial)
      - ce_in_float64(adversarial)
      + smoothed_in_float64(adversarial)
    ),
  ),
  'smoothed_trades': (
    losses.trades(beta=BETA, label_smoothing=0.2),
    lambda clean, adversarial: (
      trades_in_float64(clean, adversarial)
      - ce_in_float64(clean)
      + smoothed_in_float64(clean)
    ),
  ),
}


@functools.cache
def compiled(loss, output='main'):
  """[2, B, K], labels -> (values [B], diagnostics, gradients [2, B, K])."""

  @jax.jit
  def evaluate(pair, labels):
    def total(pair):
      clean, adversarial = (Outputs(**{output: logits}) for logits in pair)
      values, diagnostics = loss.per_example(
        clean if loss.uses_clean else None,
        adversarial if loss.uses_adversarial else None,
        labels,
        output,
      )
      return values.sum(), (values, diagnostics)

    gradients, aux = jax.grad(total, has_aux=True)(pair)
    return (*aux, gradients)

  return evaluate


@pytest.mark.parametrize('gap', [3.0, 120.0])
@pytest.mark.parametrize('name', CASES)
def test_values_and_gradients_match_float64(name, gap):
  loss, reference = CASES[name]
  pair = logits_at(gap)
  values, _, gradients = compiled(loss)(pair, LABELS)
  assert values.shape == (4,)
  expected = reference(*pair)
  np.testing.assert_allclose(values, expected, rtol=2e-5, atol=1e-5)
  expected = finite_differences(lambda both: reference(*both).sum(), pair)
  assert np.abs(expected).max() > 0.1
  np.testing.assert_allclose(gradients, expected, rtol=1e-4, atol=1e-4)


def test_trades_by_hand():
  # p = (3/4, 1/4), q = (1/2, 1/2), y = 0: -log .75 + 3 KL, with
  # KL = .75 log 1.5 + .25 log .5 = .1308120.
  pair = np.float32([[[np.log(3), 0]], [[0, 0]]])
  values, diagnostics, _ = compiled(losses.trades(beta=3.0))(
    pair, np.array([0])
  )
  np.testing.assert_allclose(values, [0.6801181], rtol=1e-5)
  np.testing.assert_allclose(
    diagnostics['natural_loss'], [0.2876821], rtol=1e-5
  )
  np.testing.assert_allclose(diagnostics['robust_loss'], [0.1308120], rtol=1e-5)


def test_mart_by_hand_with_two_classes():
  # As above: -log .5 - log(1.0001 - .5) + 3 KL (1.0000001 - .75).
  pair = np.float32([[[np.log(3), 0]], [[0, 0]]])
  values, diagnostics, _ = compiled(losses.mart(beta=3.0))(pair, np.array([0]))
  np.testing.assert_allclose(values, [1.4842035], rtol=1e-5)
  np.testing.assert_allclose(
    diagnostics['boosted_loss'], [1.3860944], rtol=1e-5
  )
  np.testing.assert_allclose(diagnostics['robust_loss'], [0.0327030], rtol=1e-5)


@pytest.mark.parametrize('name', ['trades', 'mart'])
@pytest.mark.parametrize('labels', [[0, 1], [1, 0]])
def test_finite_at_opposite_certainties(name, labels):
  pair = np.float32([[[120, 0], [0, 120]], [[0, 120], [120, 0]]])
  values, _, gradients = compiled(CASES[name][0])(pair, np.array(labels))
  assert np.isfinite(values).all()
  assert np.isfinite(gradients).all()
  if name == 'trades':
    right = labels == [0, 1]
    expected = [360, 360] if right else [480, 480]
  else:
    # Right when clean: CE 120, no slack: -log 1e-4, and 360 times 1e-7.
    right = labels == [0, 1]
    expected = [129.2104] * 2 if right else [359.9999] * 2
  np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_mart_of_a_tie_between_rivals_is_finite():
  pair = np.zeros((2, 1, 3), np.float32)
  values, _, gradients = compiled(losses.mart(beta=1.0))(pair, np.array([0]))
  np.testing.assert_allclose(
    values, [np.log(3) - np.log(1.0001 - 1 / 3)], rtol=1e-5
  )
  assert np.isfinite(gradients).all()


# Attack objectives.


def objective_values(loss, clean, adversarial):
  return loss.make_objective(jnp.asarray(clean), LABELS)(
    jnp.asarray(adversarial)
  )


@pytest.mark.parametrize('name', ['natural', 'sat', 'mart', 'smoothed_sat'])
def test_cross_entropy_objectives(name):
  clean, adversarial = logits_at(3.0)
  np.testing.assert_allclose(
    objective_values(CASES[name][0], clean, adversarial),
    ce_in_float64(adversarial),
    rtol=1e-5,
  )


@pytest.mark.parametrize(
  'loss', [losses.trades(beta=1.0), losses.reverse_smoothing()]
)
def test_kl_objectives_hold_the_clean_prediction_fixed(loss):
  clean, adversarial = logits_at(3.0)
  np.testing.assert_allclose(
    objective_values(loss, clean, adversarial),
    kl_in_float64(softmax(clean), softmax(adversarial)),
    rtol=1e-4,
  )
  gradient = jax.grad(lambda z: objective_values(loss, z, adversarial).sum())(
    clean
  )
  np.testing.assert_array_equal(gradient, np.zeros_like(clean))


# Diagnostics and the chosen output.


def test_accuracies_are_of_what_is_there():
  pair = logits_at(3.0)
  expected = {'clean_accuracy': [1, 1, 0, 1], 'robust_accuracy': [1, 0, 0, 1]}
  terms = {
    'natural': {'clean_accuracy'},
    'sat': {'robust_accuracy'},
    'trades': {*expected, 'natural_loss', 'robust_loss'},
    'mart': {*expected, 'boosted_loss', 'robust_loss'},
  }
  for name, keys in terms.items():
    _, diagnostics, _ = compiled(CASES[name][0])(pair, LABELS)
    assert set(diagnostics) == keys
    for key in keys & set(expected):
      np.testing.assert_array_equal(diagnostics[key], expected[key])


@pytest.mark.parametrize('output', ['second', 'mean', 'aggregated'])
def test_the_selected_output_is_trained(output):
  main, second, aggregated = (logits_at(3.0, seed)[0] for seed in range(3))
  outputs = Outputs(main, second, aggregated)
  chosen = {
    'second': second,
    'mean': (main + second) / 2,
    'aggregated': aggregated,
  }[output]
  values, _ = losses.sat().per_example(None, outputs, LABELS, output)
  np.testing.assert_allclose(values, ce_in_float64(chosen), rtol=1e-5)


def test_an_absent_output_is_refused():
  outputs = Outputs(jnp.zeros((4, 3)))
  with pytest.raises(ValueError, match=r"'aggregated', choices are .*'main'"):
    losses.sat().per_example(None, outputs, LABELS, 'aggregated')


# The registry and its arguments.


def test_registry_names_its_losses():
  arguments = {'trades': {'beta': 1.0}, 'mart': {'beta': 1.0}}
  names = ('natural', 'sat', 'trades', 'mart', 'dkl', 'reverse_smoothing')
  shared = {'num_classes': 3, 'steps_per_epoch': 1}
  assert tuple(losses.LOSSES)[: len(names)] == names
  for name in names:
    loss = losses.LOSSES.make(name, arguments.get(name), **shared)
    assert loss.name == name
    assert loss.uses_adversarial == (name != 'natural')
    assert loss.uses_clean == (name != 'sat')


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: losses.trades(beta=-1.0), 'beta: got -1.0, expected a finite'),
    (lambda: losses.mart(beta=float('inf')), 'beta: got inf'),
    (
      lambda: losses.mart(beta=1.0, label_smoothing=-1),
      'label_smoothing: got -1',
    ),
    (lambda: losses.trades(beta=float('nan')), 'beta: got nan'),
    (
      lambda: losses.sat(label_smoothing=1.5),
      r'label_smoothing: got 1.5, expected in \[0, 1',
    ),
    (lambda: losses.natural(label_smoothing=-0.1), 'label_smoothing: got -0.1'),
    (
      lambda: losses.trades(beta=1.0, label_smoothing=2),
      'label_smoothing: got 2',
    ),
    (lambda: losses.reverse_smoothing(clean_weight=-1), 'clean_weight: got -1'),
    (lambda: losses.reverse_smoothing(fooled_factor=-1), 'fooled_factor: got'),
  ],
)
def test_arguments_out_of_range(make, message):
  with pytest.raises(ValueError, match=message):
    make()


# PyTorch, with the published formulas.


def torch_trades(torch, clean, adversarial, labels):
  functional = torch.nn.functional
  kl = functional.kl_div(
    functional.log_softmax(adversarial, 1),
    functional.softmax(clean, 1),
    reduction='none',
  )
  natural = functional.cross_entropy(clean, labels, reduction='none')
  return natural + BETA * kl.sum(1)


def torch_mart(torch, clean, adversarial, labels):
  functional = torch.nn.functional
  q = functional.softmax(adversarial, 1)
  two = q.argsort(1)[:, -2:]
  rivals = torch.where(two[:, -1] == labels, two[:, -2], two[:, -1])
  boosted = functional.cross_entropy(
    adversarial, labels, reduction='none'
  ) + functional.nll_loss(
    torch.log(1.0001 - q + 1e-12), rivals, reduction='none'
  )
  p = functional.softmax(clean, 1)
  kl = functional.kl_div(torch.log(q + 1e-12), p, reduction='none').sum(1)
  p_label = p.gather(1, labels[:, None])[:, 0]
  return boosted + BETA * kl * (1.0000001 - p_label)


@pytest.mark.oracle
@pytest.mark.parametrize(
  ('loss', 'published'),
  [
    (losses.trades(beta=BETA), torch_trades),
    (losses.mart(beta=BETA), torch_mart),
  ],
)
def test_values_and_gradients_match_pytorch(loss, published):
  torch = pytest.importorskip('torch')
  # Up to gaps at which the published KL of MART is not yet cut off.
  pair = logits_at(10.0)
  double = torch.tensor(pair, dtype=torch.float64, requires_grad=True)
  expected = published(torch, double[0], double[1], torch.tensor(LABELS))
  expected.sum().backward()
  values, _, gradients = compiled(loss)(pair, LABELS)
  np.testing.assert_allclose(values, expected.detach(), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(gradients, double.grad, rtol=1e-4, atol=1e-5)
