"""Schedules and optimisers, against those of PyTorch."""

import jax
import numpy as np
import pytest

from dhat_jax.training import optim
from tests.helpers.tiny import normal
from tests.training.test_optim import run

torch = pytest.importorskip('torch')
pytestmark = pytest.mark.oracle


def torch_cycle(num_steps, make=torch.optim.SGD, **options):
  """(weights, optimiser, scheduler) of one cycle in float64."""
  weights = torch.nn.Parameter(torch.tensor(np.float64(normal(5))))
  optimizer = make([weights])
  scheduler = torch.optim.lr_scheduler.OneCycleLR(
    optimizer, max_lr=0.2, total_steps=num_steps, **options
  )
  return weights, optimizer, scheduler


def one_cycle(num_steps, steps_per_epoch=1, **options):
  return optim.make_schedule(
    name='one_cycle',
    learning_rate=0.2,
    num_steps=num_steps,
    steps_per_epoch=steps_per_epoch,
    **options,
  )


@pytest.mark.parametrize(
  ('length', 'options'),
  [
    (400, {'pct_start': 0.025}),  # the published run
    (90, {}),
    (10, {'pct_start': 0.025}),  # the peak lies before the first step
    (2, {}),
    (
      37,
      {
        'pct_start': 0.4,
        'div_factor': 10.0,
        'final_div_factor': 7.0,
        'base_momentum': 0.5,
        'max_momentum': 0.9,
      },
    ),
  ],
)
def test_one_cycle_at_every_step_and_epoch(length, options):
  _, optimizer, scheduler = torch_cycle(length, **options)
  expected = []
  for step in range(length):
    group = optimizer.param_groups[0]
    expected.append((group['lr'], group['momentum']))
    optimizer.step()
    if step < length - 1:
      scheduler.step()
  with jax.enable_x64(True):
    by_step = one_cycle(length, **options)
    by_epoch = one_cycle(
      3 * length - 1, steps_per_epoch=3, per_epoch=True, **options
    )
    steps = np.arange(length)
    for schedule, at in ((by_step, steps), (by_epoch, 3 * steps)):
      got = np.stack([schedule(at), schedule.momentum(at)], axis=1)
      np.testing.assert_allclose(got, expected, rtol=1e-12)
    middle = 3 * steps + 1
    np.testing.assert_array_equal(by_epoch(middle), by_epoch(3 * steps))
    np.testing.assert_array_equal(
      by_epoch.momentum(middle), by_epoch.momentum(3 * steps)
    )
  # In float32, as a run computes it.
  np.testing.assert_allclose(
    by_step(steps), [rate for rate, _ in expected], rtol=1e-4, atol=1e-8
  )


def test_one_cycle_without_momentum():
  schedule = one_cycle(20, cycle_momentum=False)
  assert not hasattr(schedule, 'momentum')
  np.testing.assert_array_equal(schedule(7), one_cycle(20)(7))


@pytest.mark.parametrize('per_epoch', [False, True])
def test_cosine(per_epoch):
  steps_per_epoch = 4
  length = 9 if per_epoch else 36
  weights = torch.nn.Parameter(torch.zeros(1))
  optimizer = torch.optim.SGD([weights], lr=0.2)
  scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, length)
  expected = []
  for _ in range(length):
    expected.append(optimizer.param_groups[0]['lr'])
    optimizer.step()
    scheduler.step()
  if per_epoch:
    expected = np.repeat(expected, steps_per_epoch)
  schedule = optim.make_schedule(
    name='cosine',
    learning_rate=0.2,
    num_steps=36,
    steps_per_epoch=steps_per_epoch,
    per_epoch=per_epoch,
  )
  with jax.enable_x64(True):
    got = schedule(np.arange(36))
  np.testing.assert_allclose(got, expected, rtol=1e-12)


def trajectories(num_steps, make_torch, make_ours, cycles):
  """(ours, PyTorch's) weights after every step, in float64."""
  gradients = np.float64(normal(num_steps, 5, seed=1))
  if cycles:
    weights, optimizer, scheduler = torch_cycle(num_steps, make_torch)
  else:
    weights = torch.nn.Parameter(torch.tensor(np.float64(normal(5))))
    optimizer, scheduler = make_torch([weights]), None
  start = weights.detach().numpy().copy()
  expected = []
  for step, grads in enumerate(gradients):
    weights.grad = torch.tensor(grads)
    optimizer.step()
    expected.append(weights.detach().numpy().copy())
    if scheduler and step < num_steps - 1:
      scheduler.step()
  with jax.enable_x64(True):
    schedule = one_cycle(num_steps) if cycles else lambda step: 0.2
    tx = make_ours(schedule)
    history = run(tx, {'kernel': start}, [{'kernel': g} for g in gradients])
    got = [np.asarray(params['kernel']) for params in history]
  assert got[0].dtype == np.float64
  return got, expected


@pytest.mark.parametrize('nesterov', [False, True])
def test_sgd_in_one_cycle(nesterov):
  got, expected = trajectories(
    12,
    lambda weights: torch.optim.SGD(
      weights, lr=0.2, momentum=0.9, weight_decay=0.05, nesterov=nesterov
    ),
    lambda schedule: optim.sgd(
      schedule=schedule, momentum=0.9, weight_decay=0.05, nesterov=nesterov
    ),
    cycles=True,
  )
  np.testing.assert_allclose(got, expected, rtol=1e-10)


@pytest.mark.parametrize('cycles', [False, True])
def test_adamw(cycles):
  """With a cycled schedule, PyTorch moves the first beta."""
  options = {'betas': (0.8, 0.95), 'eps': 1e-3, 'weight_decay': 0.05}
  got, expected = trajectories(
    12,
    lambda weights: torch.optim.AdamW(weights, lr=0.2, **options),
    lambda schedule: optim.adamw(schedule=schedule, **options),
    cycles=cycles,
  )
  np.testing.assert_allclose(got, expected, rtol=1e-10)
