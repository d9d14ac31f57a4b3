"""FAB against pyautoattack, in double precision: every iterate is equal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.attacks import fab, hyperplanes
from tests.attacks import oracle

torch = pytest.importorskip('torch')
fab_pt = pytest.importorskip('pyautoattack.fab_pt')
oracle_projections = pytest.importorskip('pyautoattack.fab_projections')

pytestmark = pytest.mark.oracle
NORMS = {'linf': 'Linf', 'l2': 'L2'}
N_ITER = 60


def _trajectory(logits_fn, images, labels, norm, targets):
  """All states of our FAB: each leaf [n_iter + 1, ...]."""
  step = fab.make_fab_step(
    logits_fn,
    images,
    labels,
    norm=norm,
    targets=targets,
    alpha_max=0.1,
    eta=1.05,
    beta=0.9,
  )
  start = fab.fab_init(images, images)

  @jax.jit
  def run(start):
    last, states = jax.lax.scan(
      lambda state, _: (step(state), state), start, None, N_ITER
    )
    return last, states

  return run(start)


@pytest.mark.parametrize('targeted', [True, False])
@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_every_iterate_equals_the_original(norm, targeted):
  weights, images, labels = oracle.make_problem()
  with oracle.float64():
    net = oracle.TorchNet(weights)
    attack = fab_pt.FABAttack_PT(
      net, norm=NORMS[norm], n_iter=N_ITER, eps=0.1, targeted=targeted
    )
    attack.target_class = 3
    net.inputs = []
    theirs = attack.attack_single_run(
      oracle.nchw(images), torch.tensor(labels), is_targeted=targeted
    )
    # One call for the labels, one more for the targets, then two a step.
    first = 2 if targeted else 1
    iterates = np.stack(net.inputs[first::2])

    logits_fn = oracle.jax_net(weights)
    targets = None
    if targeted:
      targets = jnp.argsort(logits_fn(jnp.asarray(images)), axis=1)[:, -3]
    last, states = _trajectory(
      logits_fn, jnp.asarray(images), jnp.asarray(labels), norm, targets
    )
    assert iterates.shape == states.points.shape
    np.testing.assert_allclose(states.points, iterates, rtol=0, atol=1e-10)
    np.testing.assert_allclose(
      last.images_adv, oracle.nhwc(theirs), rtol=0, atol=1e-10
    )
    assert np.all(np.asarray(last.sizes) < 1e10)


def _planes(seed, count=200, size=30):
  """Points on and in the box, planes near, far, out of reach, degenerate."""
  rng = np.random.default_rng(seed)
  points = np.clip(rng.uniform(-0.2, 1.2, (count, size)), 0, 1)
  normals = rng.normal(size=(count, size)) * 10.0 ** rng.integers(
    -3, 3, (count, 1)
  )
  normals[: count // 4] *= rng.uniform(size=(count // 4, size)) < 0.3
  normals[count // 4 : count // 4 + 5] *= 1e-9
  normals[count // 4 + 5] = 0.0
  # The value of w . u at points inside the box, or beyond it.
  reach = rng.uniform(-0.3, 1.3, (count, size))
  offsets = np.sum(normals * reach, axis=1)
  offsets[-10:] = np.sum(normals * points, axis=1)[-10:]
  return points, normals, offsets


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_projections_equal_the_original(norm, seed):
  points, normals, offsets = _planes(seed)
  theirs = getattr(oracle_projections, f'projection_{norm}')
  ours = getattr(hyperplanes, f'project_{norm}')
  with oracle.float64():
    expected = theirs(*(torch.tensor(a) for a in (points, normals, offsets)))
    steps = np.asarray(jax.jit(ours)(points, normals, offsets))
  np.testing.assert_allclose(steps, expected.numpy(), rtol=0, atol=1e-10)
  ends = points + steps
  assert ends.min() > -1e-9
  assert ends.max() < 1 + 1e-9


@pytest.mark.parametrize('targeted', [True, False])
@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_flags_of_whole_attack_equal_the_original(norm, targeted):
  weights, images, labels = oracle.make_problem(seed=3, count=40)
  epsilon = {'linf': 0.03, 'l2': 0.15}[norm]
  with oracle.float64():
    attack = fab_pt.FABAttack_PT(
      oracle.TorchNet(weights),
      norm=NORMS[norm],
      n_iter=20,
      eps=epsilon,
      targeted=targeted,
      n_target_classes=6,
    )
    theirs = oracle.nhwc(
      attack.perturb(oracle.nchw(images), torch.tensor(labels))
    )
    logits_fn = oracle.jax_net(weights)
    run = jax.jit(
      lambda rank, active: (
        fab.fab_targeted(
          logits_fn, images, labels, target_rank=rank, **options, active=active
        )
        if targeted
        else fab.fab(logits_fn, images, labels, **options, active=active)
      )
    )
    options = {'epsilon': epsilon, 'norm': norm, 'n_iter': 20}
    robust, ours = jnp.ones(40, bool), jnp.asarray(images)
    for rank in range(2, 8 if targeted else 3):
      still, points = run(rank, robust)
      ours = jnp.where((robust & ~still)[:, None, None, None], points, ours)
      robust &= still
    expected = np.all(theirs == images, axis=(1, 2, 3))
    np.testing.assert_array_equal(robust, expected)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)
  assert 0 < expected.mean() < 1
