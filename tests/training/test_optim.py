import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dhat_jax.training import checkpoint, optim
from dhat_jax.training.optim import (
  CycledSchedule,
  make_optimizer,
  make_schedule,
)
from tests.helpers.tiny import flat, normal


def constant(rate):
  return lambda step: rate


def run(tx, params, gradients):
  """Returns the parameters after each of the gradients."""

  @jax.jit
  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  state, history = tx.init(params), []
  for grads in gradients:
    params, state = step(params, state, grads)
    history.append(params)
  return history


def test_sgd_golden():
  # Rate .1, momentum .5, decay .01, p = 1, gradients 1, 2, -1:
  # g = 1.01, m = 1.01, p = .899
  # g = 2.00899, m = .505 + 2.00899 = 2.51399, p = .647601
  # g = -1 + .00647601, m = 1.256995 - .99352399 = .26347101, p = .621253899
  tx = make_optimizer(schedule=constant(0.1), momentum=0.5, weight_decay=0.01)
  history = run(
    tx,
    {'kernel': np.float32([1.0])},
    [{'kernel': np.float32([g])} for g in (1.0, 2.0, -1.0)],
  )
  np.testing.assert_allclose(
    [float(params['kernel'][0]) for params in history],
    [0.899, 0.647601, 0.621253899],
    rtol=1e-6,
  )


@pytest.mark.oracle
@pytest.mark.parametrize('nesterov', [False, True])
def test_sgd_equals_pytorch(nesterov):
  torch = pytest.importorskip('torch')
  start, gradients = normal(5), normal(6, 5, seed=1)
  weights = torch.nn.Parameter(torch.tensor(start))
  optimizer = torch.optim.SGD(
    [weights], lr=0.1, momentum=0.9, weight_decay=0.05, nesterov=nesterov
  )
  scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4], gamma=0.1)
  expected = []
  for grads in gradients:
    weights.grad = torch.tensor(grads)
    optimizer.step()
    scheduler.step()
    expected.append(weights.detach().numpy().copy())
  schedule = make_schedule(
    name='step',
    learning_rate=0.1,
    num_steps=6,
    steps_per_epoch=1,
    drop_epochs=(3, 5),
  )
  tx = make_optimizer(
    schedule=schedule, momentum=0.9, weight_decay=0.05, nesterov=nesterov
  )
  history = run(tx, {'kernel': start}, [{'kernel': g} for g in gradients])
  got = [params['kernel'] for params in history]
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_decay_norm_off_leaves_biases_and_norms_alone():
  params = {
    'trunk': {
      'conv': {'kernel': np.ones((1, 1, 2, 2), np.float32)},
      'norm': {'scale': np.ones(2, np.float32), 'bias': np.ones(2, np.float32)},
    },
    'main_head': {
      'dense': {
        'kernel': np.ones((2, 2), np.float32),
        'bias': np.ones(2, np.float32),
      }
    },
  }
  zeros = jax.tree.map(np.zeros_like, params)
  for decay_norm in (True, False):
    tx = make_optimizer(
      schedule=constant(0.5),
      momentum=0.9,
      weight_decay=0.1,
      decay_norm=decay_norm,
    )
    after = flat(run(tx, params, [zeros])[0])
    for name, values in after.items():
      decayed = decay_norm or name.endswith('kernel')
      np.testing.assert_allclose(
        values, 0.95 if decayed else 1.0, rtol=1e-6, err_msg=name
      )


def test_clipping_by_the_global_norm():
  gradient = {'a': np.float32([3.0, 0.0]), 'b': np.float32([4.0])}  # norm 5
  start = jax.tree.map(np.zeros_like, gradient)

  def moved(clip_norm):
    tx = make_optimizer(
      schedule=constant(1.0),
      momentum=0.0,
      weight_decay=0.0,
      clip_norm=clip_norm,
    )
    return flat(run(tx, start, [gradient])[0])

  for clip_norm, factor in ((0.0, 1.0), (1.0, 0.2), (10.0, 1.0)):
    moves = moved(clip_norm)
    np.testing.assert_allclose(moves['a'], [-3 * factor, 0], rtol=1e-6)
    np.testing.assert_allclose(moves['b'], [-4 * factor], rtol=1e-6)


def test_clipping_comes_before_the_decay():
  tx = make_optimizer(
    schedule=constant(1.0), momentum=0.0, weight_decay=0.5, clip_norm=1.0
  )
  after = run(
    tx, {'kernel': np.float32([4.0])}, [{'kernel': np.float32([10.0])}]
  )
  # Clipped gradient 1, decay 2.
  np.testing.assert_allclose(after[0]['kernel'], [1.0], rtol=1e-6)


def rates(steps, **options):
  schedule = make_schedule(
    **{
      'learning_rate': 0.1,
      'num_steps': 700,
      'steps_per_epoch': 7,
      **options,
    }
  )
  return [float(schedule(step)) for step in steps]


def test_step_schedule_drops_at_the_epochs_begin():
  steps = [0, 517, 518, 622, 623, 692, 693, 699]
  # Epochs 75, 90 and 100 begin at steps 74 * 7, 89 * 7 and 99 * 7.
  np.testing.assert_allclose(
    rates(steps, name='step', drop_epochs=(75, 90, 100)),
    [0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001],
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    rates([13, 14], name='step', drop_epochs=(3,), drop_factor=0.5),
    [0.1, 0.05],
    rtol=1e-6,
  )


def test_cosine_schedule():
  np.testing.assert_allclose(
    rates([0, 175, 350, 700], name='cosine'),
    [0.1, 0.05 * (1 + np.sqrt(0.5)), 0.05, 0.0],
    rtol=1e-5,
    atol=1e-8,
  )


def test_constant_schedule():
  np.testing.assert_allclose(rates([0, 699], name='constant'), [0.1, 0.1])


def test_warm_up_rises_linearly():
  # Two epochs of 7 steps; the first step already moves.
  np.testing.assert_allclose(
    rates([0, 6, 13, 14, 20], name='constant', warmup_epochs=2.0),
    [0.1 / 14, 0.05, 0.1, 0.1, 0.1],
    rtol=1e-5,
  )
  # What comes after is that of the schedule without it.
  np.testing.assert_allclose(
    rates([350, 600], name='cosine', warmup_epochs=1.0),
    rates([350, 600], name='cosine'),
    rtol=1e-6,
  )


def test_schedule_is_traceable():
  schedule = make_schedule(
    name='step',
    learning_rate=0.1,
    num_steps=30,
    steps_per_epoch=10,
    drop_epochs=(2,),
    warmup_epochs=0.5,
  )
  got = jax.jit(jax.vmap(schedule))(np.arange(30))
  np.testing.assert_allclose(
    got, [float(schedule(step)) for step in range(30)], rtol=1e-6
  )


def test_cosine_by_epochs_is_constant_within_one():
  # Two of 4 epochs: .5 (1 + cos(pi / 4)).
  np.testing.assert_allclose(
    rates([0, 6, 7, 13, 14], name='cosine', num_steps=28, per_epoch=True),
    [0.1, 0.1, *[0.05 * (1 + np.sqrt(0.5))] * 2, 0.05],
    rtol=1e-5,
  )


def test_one_cycle_by_hand():
  # 8 steps, the peak at step .5 * 8 - 1 = 3: from .1 / 25 to .1 and to 4e-7.
  options = {'name': 'one_cycle', 'num_steps': 8, 'pct_start': 0.5}
  np.testing.assert_allclose(
    rates([0, 3, 5, 7, 8], **options),
    [0.004, 0.1, 0.05 + 2e-7, 4e-7, 4e-7],
    rtol=1e-5,
    atol=1e-8,
  )
  schedule = make_schedule(learning_rate=0.1, steps_per_epoch=7, **options)
  np.testing.assert_allclose(
    [schedule.momentum(step) for step in (0, 3, 5, 7)],
    [0.95, 0.85, 0.9, 0.95],
    rtol=1e-6,
  )


def test_one_cycle_that_peaks_at_its_first_step():
  # Where PyTorch divides by zero.
  np.testing.assert_allclose(
    rates([0, 3], name='one_cycle', num_steps=4, pct_start=0.25),
    [0.1, 4e-7],
    rtol=1e-5,
    atol=1e-9,
  )
  # A stage of no steps has a schedule too, as an aggregator that is a mean.
  assert rates([0], name='one_cycle', num_steps=0)[0] <= 0.1


def test_warm_up_leaves_the_momentum_as_it_is():
  options = {'name': 'one_cycle', 'learning_rate': 0.1, 'num_steps': 70}
  plain = make_schedule(steps_per_epoch=7, **options)
  warmed = make_schedule(steps_per_epoch=7, warmup_epochs=2, **options)
  assert warmed.momentum(3) == plain.momentum(3)
  np.testing.assert_allclose(warmed(6), plain(6) / 2, rtol=1e-6)


def test_momentum_of_a_schedule_takes_the_place_of_sgds():
  # m = 1; m = .5 + 1; m = 1: p = 1 - .1, - .15, - .1.
  schedule = CycledSchedule(
    constant(0.1), lambda step: jnp.asarray([0.9, 0.5, 0.0])[step]
  )
  tx = make_optimizer(schedule=schedule, momentum=0.9, weight_decay=0.0)
  history = run(
    tx,
    {'kernel': np.float32([1.0])},
    [{'kernel': np.float32([1.0])}] * 3,
  )
  np.testing.assert_allclose(
    [float(params['kernel'][0]) for params in history],
    [0.9, 0.75, 0.65],
    rtol=1e-6,
  )


def test_state_of_plain_sgd_is_that_of_older_checkpoints():
  tx = make_optimizer(schedule=constant(0.1), momentum=0.9, weight_decay=0.1)
  state = tx.init({'trunk': {'kernel': np.float32([1.0])}})
  assert [
    jax.tree_util.keystr(path)
    for path, _ in jax.tree_util.tree_leaves_with_path(state)
  ] == ["[2].trace['trunk']['kernel']", '[3].count']


def test_state_of_cycled_optimisers_can_be_stored():
  schedule = CycledSchedule(constant(0.1), constant(0.9))
  params = {'trunk': {'kernel': np.float32([1.0])}}
  for tx in (
    make_optimizer(schedule=schedule, momentum=0.9, weight_decay=0.1),
    optim.adamw(schedule=schedule, weight_decay=0.1),
  ):
    state = tx.init(params)
    again = checkpoint.unflatten(state, checkpoint.flatten(state))
    assert jax.tree.structure(again) == jax.tree.structure(state)


def test_adamw_golden():
  # The first step of Adam is 1 along the sign; the decay is .1 * .5 * 4. A
  # bias does not decay if only kernels do.
  for decay_norm, bias in ((True, 4.0 - 0.1 - 0.2), (False, 4.0 - 0.1)):
    tx = optim.adamw(
      schedule=constant(0.1), weight_decay=0.5, decay_norm=decay_norm
    )
    params = {'kernel': np.float32([4.0]), 'bias': np.float32([4.0])}
    grads = {'kernel': np.float32([-3.0]), 'bias': np.float32([7.0])}
    after = flat(run(tx, params, [grads])[0])
    np.testing.assert_allclose(after['kernel'], [3.9], rtol=1e-6)
    np.testing.assert_allclose(after['bias'], [bias], rtol=1e-6)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'pct_start': 0.0}, r'pct_start: got 0.0, expected in \(0, 1\)'),
    ({'pct_start': 1.0}, 'pct_start: got 1.0'),
    ({'div_factor': 0.5}, 'div_factor: got 0.5, expected a finite number >= 1'),
    ({'final_div_factor': 0}, 'final_div_factor: got 0'),
    ({'max_momentum': 1.0}, 'max_momentum: got 1.0'),
    (
      {'base_momentum': 0.99},
      r'base_momentum: got 0.99, expected in \[0, 0.95',
    ),
    ({'cycle_momentum': 1}, 'cycle_momentum: got 1, expected true or false'),
    ({'per_epoch': 'yes'}, "per_epoch: got 'yes', expected true or false"),
    ({'per_epoch': True, 'num_steps': 7}, 'per_epoch: got true for a stage of'),
  ],
)
def test_one_cycle_errors(options, message):
  with pytest.raises(ValueError, match=f'schedule: {message}'):
    rates([0], name='one_cycle', **options)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'betas': (0.9,)}, 'betas: got .*, expected two numbers'),
    ({'betas': (0.9, 1.0)}, r'betas\[1\]: got 1.0'),
    ({'eps': 0.0}, 'eps: got 0.0'),
    ({'weight_decay': -1.0}, 'weight_decay: got -1.0'),
    ({'clip_norm': -1.0}, 'clip_norm: got -1.0'),
    ({'momentum': 0.9}, "got \\('momentum',\\), choices for 'adamw' are"),
  ],
)
def test_adamw_errors(options, message):
  given = {'weight_decay': 0.0, **options}
  shared = {
    key: given.pop(key) for key in ('weight_decay', 'clip_norm') if key in given
  }
  with pytest.raises(ValueError, match=message):
    optim.OPTIMIZERS.make('adamw', given, schedule=constant(0.1), **shared)


def test_schedule_errors():
  with pytest.raises(ValueError, match=r"got 'linear', choices are \('step'"):
    rates([0], name='linear')
  for rate in (0.0, -0.1):
    with pytest.raises(ValueError, match=f'learning_rate: got {rate}'):
      rates([0], name='step', learning_rate=rate)


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('momentum', 1.0),
    ('momentum', -0.1),
    ('weight_decay', -1e-4),
    ('clip_norm', -1.0),
  ],
)
def test_optimizer_errors(name, value):
  options = {'momentum': 0.9, 'weight_decay': 0.0, name: value}
  with pytest.raises(ValueError, match=f'{name}: got {value}, expected'):
    make_optimizer(schedule=constant(0.1), **options)
