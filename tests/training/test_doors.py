"""Random arguments of training: each call works, or says what is wrong."""

import math

import jax
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dhat_jax import losses
from dhat_jax.attacks import pgd
from dhat_jax.attacks.training import TRAINING_ATTACKS
from dhat_jax.losses import LOSSES
from dhat_jax.models.dual_head import DualHeadNet
from dhat_jax.registry import Registry
from dhat_jax.training import augment, optim
from dhat_jax.training.state import create_train_state
from dhat_jax.training.step import make_train_step
from tests.helpers.tiny import TinyBackbone

JUNK = st.one_of(
  st.sampled_from(
    [
      *(None, True, False, '', 'x', 'sgd', 'step', 'trades', b'x', (), [], {}),
      *(0, 1, -1, 2**40, 10**400, 0.0, 0.5, 1.0, -0.5, 1e300),
      *(math.nan, math.inf, -math.inf, 1j, object(), np.zeros(2), [1, 'a']),
      *((1,), (2, 1), ('a',), ('main_head',), 'main_head', 'main', ('main',)),
      *((8, 8), (8, 8, 1), (8, 8, 0), (8.0, 8, 1), {'name': 'x'}, {1: 2}, len),
    ]
  ),
  st.integers(),
  st.floats(),
  st.text(max_size=5),
)
FEW = settings(
  max_examples=60,
  deadline=None,
  derandomize=True,
  suppress_health_check=[HealthCheck.too_slow],
)
NET = DualHeadNet(TinyBackbone(), 4)
PLAIN = DualHeadNet(TinyBackbone(), 4, outputs=('main',))
ATTACK = {'epsilon': 0.1, 'step_size': 0.1, 'steps': 1}


def junk_for(valid):
  """Draws arguments, one or two of which are junk."""
  changes = st.dictionaries(
    st.sampled_from(sorted(valid)), JUNK, min_size=1, max_size=2
  )
  return changes.map(lambda drawn: {**valid, **drawn})


def works_or_says_why(call):
  """Returns what a call returns, None where it raises an error of one line."""
  try:
    return call()
  except (ValueError, TypeError) as error:
    raised = error
  assert str(raised)
  assert '\n' not in str(raised)
  assert len(str(raised)) < 2000
  assert not type(raised).__module__.startswith('jax')
  return None


STEP = {
  'net': NET,
  'tx': optax.sgd(0.1),
  'loss': losses.trades(beta=1.0),
  'attack': pgd.make_attack(**ATTACK),
  'trains': ('trunk', 'main_head'),
  'output': 'main',
  'augment': None,
  'attack_scale': None,
  'ema_decay': 0.0,
  'freeze_statistics': True,
  'value_and_grad': jax.value_and_grad,
}


@FEW
@given(junk_for(STEP))
def test_make_train_step(arguments):
  step = works_or_says_why(lambda: make_train_step(**arguments))
  if step is not None:
    assert 0 <= arguments['ema_decay'] < 1
    assert type(arguments['freeze_statistics']) is bool
    assert arguments['output'] in NET.outputs
    assert set(arguments['trains']) <= set(NET.parts)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'output': 'third'}, "output: got 'third', choices are ('main', 'second'"),
    ({'trains': ()}, "trains: got (), expected a tuple of some of ('trunk'"),
    ({'trains': 'trunk'}, "trains: got 'trunk', expected a tuple of some of"),
    ({'trains': ('head',)}, "trains: got 'head', choices are ('trunk', 'main"),
    ({'loss': 'trades'}, "loss: got 'trades', expected a Loss, as trades("),
    ({'loss': losses.reverse_smoothing()}, "can only train 'second'"),
    ({'net': 3}, 'net: got 3, expected a DualHeadNet'),
    ({'tx': 0.1}, 'tx.update: got None, expected a function'),
    ({'attack': None}, "loss 'trades' needs an attack, got None"),
    ({'attack': 'pgd'}, "attack: got 'pgd', expected a function"),
    ({'ema_decay': math.nan}, 'ema_decay: got nan, expected in [0, 1)'),
    ({'ema_decay': 1.0}, 'ema_decay: got 1.0, expected in [0, 1)'),
    ({'freeze_statistics': 1}, 'freeze_statistics: got 1, expected true or f'),
    (
      {'net': PLAIN, 'trains': ('aggregator',)},
      "got 'aggregator', choices are",
    ),
  ],
)
def test_a_step_that_cannot_be(change, message):
  with pytest.raises(ValueError) as error:  # noqa: PT011 - compared below
    make_train_step(**{**STEP, **change})
  assert message in str(error.value)


def test_a_teacher_that_the_network_lacks():
  net = DualHeadNet(TinyBackbone(), 4, outputs=('second',))
  change = {'net': net, 'loss': losses.reverse_smoothing()}
  with pytest.raises(
    ValueError, match=r"got outputs \('second',\).*'main' too"
  ):
    make_train_step(
      **{**STEP, **change, 'output': 'second', 'trains': ('second_head',)}
    )


STATE = {
  'net': NET,
  'tx': optax.sgd(0.1),
  'trains': ('trunk',),
  'rng': jax.random.key(0, impl='threefry2x32'),
  'image_shape': (8, 8, 1),
  'variables': None,
  'ema': False,
}


def shape_of_state(arguments):
  """Creates a state, but for its values."""
  return jax.eval_shape(lambda: create_train_state(**arguments))


@settings(FEW, max_examples=40)
@given(junk_for({key: STATE[key] for key in STATE if key != 'net'}))
def test_create_train_state(arguments):
  works_or_says_why(lambda: shape_of_state({**STATE, **arguments}))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'trains': ('head',)}, "trains: got 'head', choices are"),
    ({'rng': 0}, 'rng: got int, expected a typed key'),
    ({'rng': np.zeros(2, np.uint32)}, 'rng: got '),
    ({'image_shape': (8, 8)}, 'image_shape: got (8, 8), expected (H, W, C)'),
    ({'image_shape': (8, 0, 1)}, 'image_shape, W: got 0, expected an integer'),
    ({'image_shape': 8}, 'image_shape: got 8, expected a tuple'),
    ({'ema': 0.9}, 'ema: got 0.9, expected true or false'),
    ({'variables': {}}, "variables: got {}, expected a dict of 'params' and"),
    (
      {'variables': {'params': {'head': {}}, 'batch_stats': {}}},
      "part: got 'head', choices are ('aggregator', 'main_head'",
    ),
  ],
)
def test_a_state_that_cannot_be(change, message):
  with pytest.raises(ValueError) as error:  # noqa: PT011 - compared below
    shape_of_state({**STATE, **change})
  assert message in str(error.value)


SCHEDULE = {
  'name': 'step',
  'num_steps': 100,
  'steps_per_epoch': 10,
  'warmup_epochs': 1.0,
  'drop_epochs': (3, 5),
  'drop_factor': 0.1,
  'learning_rate': 0.1,
}


@settings(FEW, max_examples=40)
@given(junk_for(SCHEDULE), st.sampled_from(sorted(optim.SCHEDULES)))
def test_make_schedule(arguments, name):
  if arguments['name'] == 'step':
    arguments['name'] = name
  schedule = works_or_says_why(lambda: optim.make_schedule(**arguments))
  if schedule is not None:
    assert 0 <= float(schedule(7)) <= arguments['learning_rate'] * (1 + 1e-6)


SGD = {
  'schedule': optax.constant_schedule(0.1),
  'momentum': 0.9,
  'weight_decay': 1e-4,
  'decay_norm': True,
  'nesterov': False,
  'clip_norm': 1.0,
}
PARAMS = {'kernel': np.ones(3, np.float32)}


@FEW
@given(junk_for(SGD))
def test_sgd(arguments):
  tx = works_or_says_why(lambda: optim.sgd(**arguments))
  if tx is not None and arguments['schedule'] is SGD['schedule']:
    updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    assert np.isfinite(updates['kernel']).all()


ADAMW = {
  **{key: SGD[key] for key in ('schedule', 'weight_decay', 'decay_norm')},
  'clip_norm': 1.0,
  'betas': (0.9, 0.999),
  'eps': 1e-8,
}


@FEW
@given(junk_for(ADAMW))
def test_adamw(arguments):
  tx = works_or_says_why(lambda: optim.adamw(**arguments))
  if tx is not None and arguments['schedule'] is SGD['schedule']:
    updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    assert np.isfinite(updates['kernel']).all()


OPTIONS = {
  'natural': {'label_smoothing': 0.1},
  'sat': {'label_smoothing': 0.1},
  'trades': {'beta': 6.0, 'label_smoothing': 0.0},
  'mart': {'beta': 6.0, 'label_smoothing': 0.0},
  'dkl': {'alpha': 4.0, 'beta': 20.0, 'temperature': 4.0},
  'reverse_smoothing': {'clean_weight': 0.1, 'fooled_factor': 1.1},
}


def test_every_loss_is_tried():
  own = {
    name
    for name in LOSSES
    if LOSSES[name].__module__.startswith(losses.__name__)
  }
  assert own == set(OPTIONS)


@FEW
@given(st.data(), st.sampled_from(sorted(OPTIONS)))
def test_losses(data, name):
  options = data.draw(junk_for(OPTIONS[name]))
  shared = {'num_classes': 3, 'steps_per_epoch': 5}
  loss = works_or_says_why(lambda: LOSSES.make(name, options, **shared))
  if loss is not None:
    assert all(math.isfinite(got) and got >= 0 for got in options.values())


@FEW
@given(junk_for({'crop_padding': 2, 'flip': True, 'names': ('crop_flip',)}))
def test_augmentations(arguments):
  works_or_says_why(lambda: augment.make_augmentation(**arguments))


@FEW
@given(
  JUNK, JUNK, st.sampled_from([LOSSES, TRAINING_ATTACKS, augment.AUGMENTATIONS])
)
def test_registry(name, options, registry):
  works_or_says_why(lambda: registry.make(name, options))


def test_a_shared_argument_that_nobody_gives():
  registry = Registry('part', shared=('size', 'depth'))

  @registry.register('mine')
  def mine(*, size, depth=3, width=1):
    return size, depth, width

  assert registry.make('mine', size=2) == (2, 3, 1)
  with pytest.raises(ValueError, match=r"here: 'mine' lacks \('size',\)"):
    registry.make('mine', {'width': 2}, where='here')
