"""A label that is no class is loud: it must not train the last class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax import divergences, losses
from dhat_jax.models.outputs import Outputs

LOGITS = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
LOSSES = {
  'natural': losses.natural(label_smoothing=1.0),
  'sat': losses.sat(),
  'trades': losses.trades(beta=0.0),
  'mart': losses.mart(beta=6.0),
  'dkl': losses.dkl(alpha=0.0, num_classes=4, steps_per_epoch=1),
  'reverse_smoothing': losses.reverse_smoothing(clean_weight=0.0),
}


def test_all_losses_are_here():
  ours = {
    name
    for name in losses.LOSSES
    if losses.LOSSES[name].__module__.startswith(losses.__name__)
  }
  assert set(LOSSES) == ours


@pytest.mark.parametrize('label', [-1, -4, 4, 100])
@pytest.mark.parametrize('name', LOSSES)
def test_loss_and_gradient_of_no_class_are_nan(name, label):
  loss, labels = LOSSES[name], jnp.array([1, label, 2])

  @jax.jit
  def total(logits):
    outputs = Outputs(main=logits, second=1.5 * logits)
    memory = (loss.memory.initial(),) if loss.memory else ()
    values, _ = loss.per_example(outputs, outputs, labels, 'second', *memory)
    return values.sum(), values

  (_, values), gradients = jax.value_and_grad(total, has_aux=True)(LOGITS)
  np.testing.assert_array_equal(np.isnan(values), [False, True, False])
  assert np.isnan(gradients[1]).any()
  assert np.isfinite(gradients[::2]).all()


@pytest.mark.parametrize('label', [-1, 4])
@pytest.mark.parametrize(
  'function', [divergences.cross_entropy, divergences.margin, divergences.dlr]
)
def test_what_attacks_measure_is_nan_too(function, label):
  values = function(LOGITS, jnp.array([0, label, 3]))
  np.testing.assert_array_equal(np.isnan(values), [False, True, False])
