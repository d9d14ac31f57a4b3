"""MixedNUTS: its map, its fit, its surrogate; and the linear mix."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.models import mixed
from dhat_jax.models.aggregator import AGGREGATORS, HeldOut
from tests.helpers.float64 import softmax
from tests.helpers.tiny import normal

NUMBERS = {
  'scale': 2.0,
  'shift': -0.5,
  'power': 3.0,
  'weight': 0.9,
  'surrogate_weight': 0.8,
}


def variables(**numbers):
  return {'params': jax.tree.map(jnp.asarray, {**NUMBERS, **numbers})}


@functools.cache
def compiled(name='mixed'):
  module = AGGREGATORS.make(name)
  return jax.jit(functools.partial(module.apply, train=False))


@functools.cache
def surrogate():
  return jax.jit(AGGREGATORS.make('mixed').surrogate)


def gelu(x):
  return x * (1 + math.erf(x / math.sqrt(2))) / 2


def mapped_by_hand(logits, scale, shift, power):
  """The map of one example, number by number, in float64."""
  logits = [float(value) for value in logits]
  mean = sum(logits) / len(logits)
  variance = sum((v - mean) ** 2 for v in logits) / (len(logits) - 1)
  clamped = [
    gelu((v - mean) / math.sqrt(variance + 1e-8) + shift) for v in logits
  ]
  return [scale * math.copysign(abs(u) ** power, u) for u in clamped]


def test_map_of_three_logits():
  # Mean 1 and deviation 1: normalised to 1, 0, -1; GELU: .8413, 0, -.1587.
  mapped = mixed.mapped(jnp.array([[2.0, 1.0, 0.0]]), 10.0, 0.0, 2.0)
  np.testing.assert_allclose(mapped, [[7.0786, 0.0, -0.2517]], atol=1e-4)


@pytest.mark.parametrize('num_classes', [2, 3, 10])
def test_values_by_hand(num_classes):
  logits = 3 * normal(5, 2, num_classes, seed=num_classes)
  got = compiled()(variables(), logits)
  for row, (robust, accurate) in zip(got, logits, strict=True):
    hand = np.array([mapped_by_hand(robust, 2.0, -0.5, 3.0)])
    expected = 0.9 * softmax(hand)[0]
    expected[accurate.argmax()] += 0.1
    np.testing.assert_allclose(row, np.log(expected), rtol=1e-4, atol=1e-5)


def test_linear_mix_by_hand():
  logits = 3 * normal(5, 2, 4)
  got = compiled('linear_mix')({'params': {'weight': jnp.float32(0.7)}}, logits)
  expected = 0.7 * softmax(logits[:, 0]) + 0.3 * softmax(logits[:, 1])
  np.testing.assert_allclose(got, np.log(expected), rtol=1e-5, atol=1e-6)


def test_before_a_fit_the_numbers_are_the_published_ones():
  module = AGGREGATORS.make('mixed')
  initial = module.init(jax.random.key(0), np.zeros((1, 2, 3)), train=False)
  numbers = {k: float(v) for k, v in initial['params'].items()}
  published = {'scale': 5.0, 'shift': -1.1, 'power': 4.0, 'weight': 0.99875}
  assert numbers == pytest.approx({**published, 'surrogate_weight': 0.957})
  assert not module.trains
  assert module.bypass is None


def test_the_first_of_several_largest_logits_is_the_maximum():
  logits = np.zeros((1, 2, 4), np.float32)
  logits[0, 1] = [0.0, 2.0, 2.0, 1.0]
  assert compiled()(variables(weight=0.5), logits).argmax() == 1
  # And if the robust head says nothing, it is the first class of all.
  assert compiled()(variables(), np.zeros((1, 2, 4))).argmax() == 0


def test_the_accurate_head_overrules_margins_below_the_cutoff():
  """a = 1 / (1 + cutoff): where the margin is the cutoff, both are equal."""
  cutoff = 0.2
  weight = mixed.weight_of(cutoff)
  assert weight == pytest.approx(1 / 1.2)
  for margin, winner in ((0.19, 1), (0.21, 0)):
    # Two classes: probabilities .5 + margin / 2 and the rest.
    gap = math.log((1 + margin) / (1 - margin))
    gap_mapped = functools.partial(mapped_gap, gap)
    logits = np.array([[[1.0, 0.0], [0.0, 1.0]]], np.float32)
    numbers = variables(weight=weight, **gap_mapped())
    assert compiled()(numbers, logits).argmax() == winner


def mapped_gap(gap):
  """Returns numbers for which the mapped logits 1, 0 differ by `gap`."""
  high, low = mapped_by_hand([1.0, 0.0], 1.0, 0.0, 1.0)
  return {'scale': gap / (high - low), 'shift': 0.0, 'power': 1.0}


@pytest.mark.parametrize('size', [0.0, 1e-20, 1e4, 1e15, 1e30])
@pytest.mark.parametrize('weight', [0.0, 0.5, 1.0])
def test_finite_everywhere(size, weight):
  logits = np.float32(size) * np.sign(normal(4, 2, 100))
  numbers = variables(
    scale=5.0, shift=-2.5, power=4.0, weight=weight, surrogate_weight=weight
  )
  values = compiled()(numbers, logits)
  assert np.isfinite(values).all()
  for function in (compiled(), surrogate()):
    gradient = gradients(function)(numbers, logits)
    assert np.isfinite(gradient).all()
  assert np.isfinite(surrogate()(numbers, logits)).all()


@functools.cache
def gradients(function):
  def total(numbers, logits):
    values = function(numbers, logits)
    return (values * jnp.arange(values.size).reshape(values.shape)).sum()

  return jax.jit(jax.grad(total, argnums=1))


def test_gradient_where_the_mapped_logit_is_zero():
  # Normalised to -1, 0, 1; with shift 0 the middle one is GELU(0) = 0.
  logits = np.tile(np.array([0.0, 1.0, 2.0], np.float32), (1, 2, 1))
  for power in (1.0, 1.5, 4.0):
    gradient = gradients(compiled())(variables(shift=0.0, power=power), logits)
    assert np.isfinite(gradient).all()


def test_a_head_that_is_not_finite_shows():
  for head, value in itertools.product((0, 1), (np.nan, np.inf)):
    logits = normal(2, 2, 4)
    logits[0, head, 2] = value
    got = compiled()(variables(), logits)
    assert not np.isfinite(got[0]).all()
    assert np.isfinite(got[1]).all()


def test_surrogate_reaches_the_accurate_head():
  logits = normal(3, 2, 4)
  hard = gradients(compiled())(variables(), logits)
  soft = gradients(surrogate())(variables(), logits)
  assert (hard[:, 1] == 0).all()
  assert np.abs(soft).min() > 1e-4
  robust, accurate = softmax(logits[:, 0]), softmax(logits[:, 1])
  rows = [mapped_by_hand(row, 2.0, -0.5, 3.0) for row in logits[:, 0]]
  expected = 0.2 * accurate + 0.8 * (0.9 * robust + 0.1 * softmax(rows))
  np.testing.assert_allclose(
    surrogate()(variables(), logits), np.log(expected), rtol=1e-4, atol=1e-5
  )


def test_heads_must_be_two():
  with pytest.raises(ValueError, match='logits of 3 heads, expected 2'):
    compiled()(variables(), normal(1, 3, 4))


# The fit.


def held_out(count=40, num_classes=3):
  """Logits that favour the label, less so under attack."""
  labels = np.arange(count) % num_classes
  clean, attacked = (normal(count, 2, num_classes, seed=s) for s in (0, 1))
  clean[np.arange(count), :, labels] += 1.0
  attacked[np.arange(count), :, labels] += 0.5
  return HeldOut(clean, attacked, labels)


def margin_by_hand(logits):
  largest = sorted(softmax(np.array([logits]))[0])
  return largest[-1] - largest[-2]


def percentile_by_hand(values, percent):
  values = sorted(values)
  place = percent / 100 * (len(values) - 1)
  below = values[math.floor(place)]
  return below + (place % 1) * (values[math.ceil(place)] - below)


def test_fit_is_the_best_of_the_grid():
  data = held_out()
  module = AGGREGATORS.make(
    'mixed', {'grid': 3, 'percentile': 80.0, 'surrogate_percentile': 60.0}
  )
  fit = module.fit(data)
  right = [
    z[0]
    for z, y in zip(data.attacked, data.labels, strict=True)
    if z[0].argmax() == y
  ]
  wrong = [
    z[0]
    for z, y in zip(data.clean, data.labels, strict=True)
    if z[0].argmax() != y
  ]
  assert len(right) > 10
  assert len(wrong) > 5

  def judge(scale, shift, power):
    def margins(rows):
      return [
        margin_by_hand(mapped_by_hand(row, scale, shift, power)) for row in rows
      ]

    cutoff = percentile_by_hand(margins(right), 20)
    share = np.mean([m >= cutoff for m in margins(wrong)])
    return (share, -cutoff)

  points = itertools.product(
    (0.05, 0.5, 5.0), (-1.1, -0.55, 0.0), (1.0, 2.5, 4.0)
  )
  best = min(points, key=lambda point: judge(*point))
  share, cutoff = judge(*best)
  numbers = [fit.params[name] for name in ('scale', 'shift', 'power')]
  np.testing.assert_allclose(numbers, best, rtol=1e-6)
  assert fit.params['weight'] == pytest.approx(1 / (1 - cutoff), rel=1e-4)
  plain = percentile_by_hand([margin_by_hand(row) for row in right], 40)
  assert fit.params['surrogate_weight'] == pytest.approx(1 / (1 + plain))
  assert fit.numbers == {
    'cutoff': pytest.approx(-cutoff, rel=1e-3),
    'wrong_above_cutoff': pytest.approx(share),
    'attacked_changed': sum(
      np.argmax(mapped_by_hand(row, *best)) != row.argmax() for row in right
    ),
    'images': 40,
    'attacked_right': len(right),
    'clean_wrong': len(wrong),
  }
  assert 0 < share < 1


def test_fit_of_the_linear_mix():
  data = held_out()
  fit = AGGREGATORS.make('linear_mix', {'percentile': 75.0}).fit(data)
  margins = [
    margin_by_hand(z[0])
    for z, y in zip(data.attacked, data.labels, strict=True)
    if z[0].argmax() == y
  ]
  cutoff = percentile_by_hand(margins, 25)
  assert fit.numbers['cutoff'] == pytest.approx(cutoff, rel=1e-5)
  assert fit.params == {'weight': pytest.approx(1 / (1 + cutoff))}


def test_the_map_may_change_a_prediction():
  """GELU falls below -.75: of low logits the lowest becomes the largest."""
  logits = np.array([[0.9, 0.8, 0.8, 0.8, 0.8, -3.0]], np.float32)
  assert mixed.mapped(logits, 1.0, -1.1, 1.0).argmax() == 5
  labels = np.zeros(1, int)
  heads = np.stack([logits, logits], axis=1)
  options = {'shifts': (-1.1, -1.1), 'powers': (1.0, 1.0)}
  fit = AGGREGATORS.make('mixed', options).fit(HeldOut(heads, heads, labels))
  assert fit.numbers['attacked_right'] == 1
  assert fit.numbers['attacked_changed'] == 1


@pytest.mark.parametrize('name', ['mixed', 'linear_mix'])
def test_fit_with_nothing_right_or_nothing_wrong(name):
  data = held_out()
  module = AGGREGATORS.make(name)
  labels = data.clean[:, 0].argmax(axis=1)
  broken = HeldOut(data.clean, data.clean, (labels + 1) % 3)
  fit = module.fit(broken)
  assert fit.params['weight'] == 0.5  # nothing to preserve
  perfect = module.fit(HeldOut(data.clean, data.clean, labels))
  assert perfect.numbers['clean_wrong'] == 0
  assert 0.5 <= perfect.params['weight'] < 1


def test_a_percentile_of_few_images_is_reported(caplog):
  """Of 40 images, 98.5 % is no cut between any two; 75 % is."""
  data = held_out()
  labels = data.clean[:, 0].argmax(axis=1)
  data = HeldOut(data.clean, data.clean, labels)
  AGGREGATORS.make('linear_mix', {'percentile': 75.0}).fit(data)
  assert not caplog.records
  AGGREGATORS.make('linear_mix', {'percentile': 98.5}).fit(data)
  (record,) = caplog.records
  assert record.getMessage() == (
    'fit of the aggregator: the robust head gets 40 images right under '
    'pgd_20; percentile 98.5 means something from 67 on'
  )


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'percentile': 101}, r'percentile: got 101, expected in \[0, 100\]'),
    ({'images': 0}, 'images: got 0, expected an integer >= 1'),
    (
      {'scales': (0.0, 1.0)},
      r'scales\[0\]: got 0.0, expected a finite number >',
    ),
    ({'shifts': (0.0,)}, r'shifts: got \(0.0,\), expected \(least, largest\)'),
    ({'shifts': (1.0, 0.0)}, r'shifts: got .*, expected \(least, largest\)'),
    (
      {'powers': (0.5, 2.0)},
      r'powers\[0\]: got 0.5, expected a finite number >',
    ),
    ({'grid': 0}, 'grid: got 0, expected an integer >= 1'),
    ({'attack': 3}, 'attack: got 3, expected a string'),
  ],
)
def test_options_are_checked(options, message):
  with pytest.raises(ValueError, match=message):
    AGGREGATORS.make('mixed', options)


# The map in PyTorch, written from the paper, in float64.


def torch_mixed(torch, logits, numbers):
  robust, accurate = logits[:, 0], logits[:, 1]
  standard = robust.std(dim=1, unbiased=True, keepdim=True)
  centred = robust - robust.mean(dim=1, keepdim=True)
  clamped = torch.nn.functional.gelu(centred / standard + numbers['shift'])
  bent = torch.sgn(clamped) * clamped.abs().pow(numbers['power'])
  inner = torch.softmax(numbers['scale'] * bent, dim=1)
  winner = torch.nn.functional.one_hot(accurate.argmax(1), accurate.shape[1])
  weight, soft = numbers['weight'], numbers['surrogate_weight']
  hard = torch.log((1 - weight) * winner + weight * inner)
  rest = (1 - soft) * torch.softmax(accurate, 1)
  plain = 0.9 * torch.softmax(robust, 1) + 0.1 * inner
  return hard, torch.log(rest + soft * plain)


@pytest.mark.oracle
@pytest.mark.parametrize('num_classes', [2, 10])
def test_values_and_gradients_match_pytorch_in_float64(num_classes):
  torch = pytest.importorskip('torch')
  logits = 3 * np.float64(normal(8, 2, num_classes, seed=3))
  module = AGGREGATORS.make('mixed')
  cotangent = np.float64(normal(8, num_classes, seed=4))
  double = torch.tensor(logits, requires_grad=True)
  expected = torch_mixed(torch, double, NUMBERS)
  with jax.enable_x64(True):
    numbers = {'params': {k: jnp.float64(v) for k, v in NUMBERS.items()}}
    for function, values in zip(
      (functools.partial(module.apply, train=False), module.surrogate),
      expected,
      strict=True,
    ):
      got, backward = jax.vjp(functools.partial(function, numbers), logits)
      (wanted,) = torch.autograd.grad(
        values, double, torch.tensor(cotangent), retain_graph=True
      )
      assert got.dtype == np.float64
      np.testing.assert_allclose(got, values.detach(), rtol=1e-6, atol=1e-9)
      np.testing.assert_allclose(
        backward(jnp.asarray(cotangent))[0], wanted, rtol=1e-6, atol=1e-7
      )
