"""Reverse smoothing against float64 arithmetic and against PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax import losses
from dhat_jax.models.outputs import Outputs
from tests.helpers.float64 import (
  LABELS,
  finite_differences,
  kl_in_float64,
  logits_at,
  pick,
  softmax,
)


def rev_in_float64(z, factor, labels=LABELS):
  s = softmax(z)
  m = pick(s, labels)
  scaled = s * (1 + factor * m / (1.0001 - m))[:, None]
  scaled[np.arange(len(s)), labels] = m
  return scaled


def reverse_smoothing_in_float64(main, second, keep):
  """Per example; `keep` is the factor on x' or None, by example."""
  robust = np.zeros(4)
  for factor in (1.0, 1.1):
    term = kl_in_float64(rev_in_float64(main[1], factor), softmax(second[1]))
    robust += np.where(np.array(keep) == factor, term, 0)
  clean = kl_in_float64(rev_in_float64(main[0], 0.9), softmax(second[0]))
  return robust + 0.1 * clean


@functools.cache
def reverse_evaluate():
  loss = losses.reverse_smoothing()

  @jax.jit
  def evaluate(main, second):
    def total(main, second):
      values, diagnostics = loss.per_example(
        Outputs(main[0], second[0]),
        Outputs(main[1], second[1]),
        LABELS,
        'second',
      )
      return values.sum(), (values, diagnostics)

    gradients, aux = jax.grad(total, (0, 1), has_aux=True)(main, second)
    return (*aux, *gradients)

  return evaluate


def test_reversed_predictions_by_hand():
  # s = (.5, .3, .2), y = 0, a = 1: b = .5 / .5001, others times 1 + b.
  logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
  log_target = losses.reverse_log_probabilities(logits, jnp.array([0]), 1.0)
  np.testing.assert_allclose(
    np.exp(log_target), [[0.5, 0.59994, 0.39996]], rtol=1e-6
  )
  unchanged = losses.reverse_log_probabilities(logits, jnp.array([0]), 0.0)
  np.testing.assert_allclose(unchanged, logits, rtol=1e-6)


@pytest.mark.parametrize('gap', [3.0, 120.0])
def test_reverse_smoothing_matches_float64(gap):
  # Right on both, fooled, wrong on both, right on both.
  keep = [1.0, 1.1, None, 1.0]
  main, second = logits_at(gap), logits_at(gap, seed=1)
  values, diagnostics, by_main, by_second = reverse_evaluate()(main, second)
  np.testing.assert_allclose(
    values,
    reverse_smoothing_in_float64(main, second, keep),
    rtol=5e-5,
    atol=1e-6,
  )
  np.testing.assert_array_equal(by_main, np.zeros_like(main))
  expected = finite_differences(
    lambda both: reverse_smoothing_in_float64(main, both, keep).sum(), second
  )
  assert np.abs(expected).max() > 0.1
  np.testing.assert_allclose(by_second, expected, rtol=1e-4, atol=1e-4)
  assert diagnostics['robust_loss'][2] == 0
  # Accuracies are the second head's, whatever decides the masks.
  np.testing.assert_array_equal(
    diagnostics['clean_accuracy'], second[0].argmax(axis=1) == LABELS
  )


def test_the_main_head_decides_the_masks():
  main, second = logits_at(3.0), logits_at(3.0, seed=1)
  second = second[:, ::-1]  # The second head is right elsewhere.
  values, diagnostics, _, _ = reverse_evaluate()(main, second)
  np.testing.assert_allclose(
    values,
    reverse_smoothing_in_float64(main, second, [1.0, 1.1, None, 1.0]),
    rtol=5e-5,
  )
  assert not diagnostics['clean_accuracy'].all()


def test_reverse_smoothing_trains_the_second_head_only():
  outputs = Outputs(*np.zeros((3, 4, 3), np.float32))
  for output in ('main', 'mean', 'aggregated'):
    with pytest.raises(ValueError, match=f"got output '{output}', expected"):
      losses.reverse_smoothing().per_example(outputs, outputs, LABELS, output)


@pytest.mark.oracle
def test_reverse_smoothing_matches_pytorch():
  torch = pytest.importorskip('torch')
  functional = torch.nn.functional
  main, second = logits_at(3.0), logits_at(3.0, seed=1)
  labels = torch.tensor(LABELS)
  target, trained = torch.tensor(main), torch.tensor(second, requires_grad=True)

  def term(index, factor):
    s = functional.softmax(target[index], 1)
    m = s.gather(1, labels[:, None])
    b = factor * m / (1.0001 - m)
    reverse = s * (1 + b) - b * functional.one_hot(labels, 4) * m
    log_r = functional.log_softmax(trained[index], 1)
    return functional.kl_div(log_r, reverse, reduction='none').sum(1)

  right, withstands = (z.argmax(1) == labels for z in target)
  fooled = (right & ~withstands).float()
  expected = (
    fooled * term(1, 1.1)
    + (right & withstands).float() * term(1, 1.0)
    + 0.1 * term(0, 0.9)
  )
  expected.sum().backward()
  values, _, _, gradients = reverse_evaluate()(main, second)
  np.testing.assert_allclose(values, expected.detach(), rtol=1e-4)
  np.testing.assert_allclose(gradients, trained.grad, rtol=1e-4, atol=1e-5)
