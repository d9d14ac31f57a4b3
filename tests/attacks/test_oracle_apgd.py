"""APGD against pyautoattack from the same start, in double precision."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.attacks import apgd
from tests.attacks import oracle

torch = pytest.importorskip('torch')
original_apgd = pytest.importorskip('pyautoattack.autopgd_base')

pytestmark = pytest.mark.oracle
NORMS = {'linf': ('Linf', 0.01), 'l2': ('L2', 0.06)}
LOSSES = {
  'ce': (original_apgd.APGDAttack, 'ce'),
  'dlr': (original_apgd.APGDAttack, 'dlr'),
  'targeted_dlr': (original_apgd.APGDAttack_targeted, 'dlr-targeted'),
}
N_ITER = 100


def _start(images, epsilon, norm):
  rng = np.random.default_rng(5)
  if norm == 'linf':
    noise = rng.uniform(-epsilon, epsilon, images.shape)
  else:
    noise = rng.normal(size=images.shape)
    size = np.sqrt(np.sum(noise**2, axis=(1, 2, 3), keepdims=True))
    noise *= 0.9 * epsilon / size
  return np.clip(images + noise, 0, 1)


def _original(weights, images, labels, targets, start, norm, loss):
  """Runs the oracle; what it does not return is read from its frame."""
  name, epsilon = NORMS[norm]
  net = oracle.TorchNet(weights)
  quiet = types.SimpleNamespace(warning=lambda message: None)
  kind, loss_name = LOSSES[loss]
  attack = kind(net, n_iter=N_ITER, norm=name, eps=epsilon, logger=quiet)
  attack.loss = loss_name
  attack.y_target = torch.tensor(targets)
  images = oracle.nchw(images)
  attack.init_hyperparam(images)
  checks = []
  original = attack.check_oscillation

  def record(losses, iteration, *rest, **options):
    sizes = sys._getframe(1).f_locals['step_size']
    checks.append((iteration, sizes.flatten().numpy().copy()))
    record.losses = losses.numpy()
    return original(losses, iteration, *rest, **options)

  attack.check_oscillation = record
  net.inputs = []
  result = attack.attack_single_run(
    images, torch.tensor(labels), x_init=oracle.nchw(start)
  )
  return net.inputs, checks, record.losses, result


def _ours(weights, images, labels, targets, start, norm, loss):
  """All states, each leaf [n_iter + 1, ...]."""
  _, epsilon = NORMS[norm]
  images, labels = jnp.asarray(images), jnp.asarray(labels)
  evaluate = apgd.make_evaluate(
    oracle.jax_net(weights),
    apgd.make_loss(loss, labels, jnp.asarray(targets)),
    labels,
    None,
    1,
  )
  step = apgd.make_apgd_step(
    evaluate, images, epsilon=epsilon, norm=norm, n_iter=N_ITER, rho=0.75
  )

  @jax.jit
  def run():
    first = step(0, apgd.apgd_init(jnp.asarray(start), epsilon))

    def body(state, i):
      after = step(i, state)
      return after, after

    states = jax.lax.scan(body, first, 1 + jnp.arange(N_ITER))[1]
    return jax.tree.map(
      lambda a, b: jnp.concatenate([a[None], b]), first, states
    )

  return run()


def _determined(losses, loss):
  """The images [B] on which rounding decides nothing.

  At an L2 optimum the loss moves by rounding errors, whose signs count as
  rises. Where the label ranks third the DLR loss is 1 and its gradient 0: what
  is left is rounding, which L2 scales up to a step and Linf takes signs of.
  """
  best = np.maximum.accumulate(losses)[:-1]
  gaps = np.abs(losses[1:] - np.stack([losses[:-1], best]))  # [2, n, B]
  determined = ~np.any((gaps > 0) & (gaps < 1e-12), axis=(0, 1))
  if loss == 'dlr':
    determined &= ~np.any(np.abs(losses - 1) < 1e-9, axis=0)
  return determined


@pytest.mark.parametrize('loss', sorted(LOSSES))
@pytest.mark.parametrize('norm', sorted(NORMS))
def test_steps_losses_and_images_equal_the_original(norm, loss):
  weights, images, labels = oracle.make_problem(
    seed=1, count=24, hidden=32, scale=25
  )
  targets = (labels + 2) % 7
  start = _start(images, NORMS[norm][1], norm)
  arguments = weights, images, labels, targets, start, norm, loss
  with oracle.float64():
    inputs, checks, losses, result = _original(*arguments)
    states = jax.tree.map(np.asarray, _ours(*arguments))

  assert len(inputs) == N_ITER + 1
  assert [i + 1 for i, _ in checks] == [22, 41, 57, 70, 80, 87, 93, 99]
  determined = _determined(losses, loss)
  assert determined.sum() >= 12
  for iteration, sizes in checks:
    # Before the check decides: sizes used in this iteration.
    np.testing.assert_array_equal(
      states.step_sizes[iteration, determined], sizes[determined]
    )
  # Images were treated differently.
  assert any(len(np.unique(sizes)) > 1 for _, sizes in checks)
  np.testing.assert_allclose(
    states.losses[1:, determined], losses[:, determined], rtol=0, atol=1e-9
  )

  # Where the step was halved the iterate is replaced after its evaluation.
  evaluated = np.stack(inputs)
  halved = states.step_sizes[1:] < states.step_sizes[:-1]
  compared = np.concatenate([np.ones_like(halved[:1]), ~halved]) & determined
  np.testing.assert_allclose(
    states.points[compared], evaluated[compared], rtol=0, atol=1e-9
  )
  best, robust, best_losses, images_adv = result
  for ours, theirs in [
    (states.best_points[-1], oracle.nhwc(best)),
    (states.images_adv[-1], oracle.nhwc(images_adv)),
    (states.best_losses[-1], best_losses.numpy()),
  ]:
    np.testing.assert_allclose(
      ours[determined], theirs[determined], rtol=0, atol=1e-9
    )
  np.testing.assert_array_equal(
    states.robust[-1][determined], robust.numpy()[determined]
  )
  assert 0 < states.robust[-1].mean() < 1
