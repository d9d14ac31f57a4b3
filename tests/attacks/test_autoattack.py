"""The ensemble: who is attacked, how often it compiles, what it returns."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.attacks import balls
from dhat_jax.attacks.autoattack import autoattack, checks
from dhat_jax.attacks.autoattack.passes import Budget, jit_hoisted
from dhat_jax.runtime import streams
from tests.attacks import linear


def test_flags_shrink_in_the_order_of_the_original(standard):
  assert tuple(standard.flags) == ('clean', *linear.NAMES)
  flags = list(standard.flags.values())
  for before, after in itertools.pairwise(flags):
    assert not np.any(after & ~before)
  np.testing.assert_array_equal(standard.robust, flags[-1])
  np.testing.assert_array_equal(flags[0], [False] * 3 + [True] * 17)
  assert standard.clean_accuracy == 0.85
  assert 0 < standard.robust_accuracy < standard.clean_accuracy
  assert set(standard.secs) == set(linear.NAMES)


def test_images_are_adversarial_exactly_where_not_robust(standard):
  images, labels = linear.problem()
  attacked = standard.flags['clean'] & ~standard.robust
  same = np.all(standard.images_adv == images, axis=(1, 2, 3))
  np.testing.assert_array_equal(same, ~attacked)
  wrong = np.argmax(linear.logits_of(standard.images_adv), axis=1) != labels
  np.testing.assert_array_equal(wrong, ~standard.robust)
  deltas = jnp.asarray(standard.images_adv - images)
  assert float(balls.norms(deltas, 'linf').max()) < 0.01 + 1e-6


def test_predictions_say_what_robust_says(standard):
  images, labels = linear.problem()
  robust = standard.predictions == labels
  np.testing.assert_array_equal(robust, standard.robust)
  np.testing.assert_array_equal(
    standard.predictions,
    np.argmax(linear.logits_of(standard.images_adv), axis=1),
  )
  # Robust or wrong from the start: the clean prediction.
  clean = np.argmax(linear.logits_of(images), axis=1)
  same = standard.robust | ~standard.flags['clean']
  np.testing.assert_array_equal(standard.predictions[same], clean[same])
  assert standard.predictions.dtype == np.int32
  assert 0 < same.sum() < len(same)


def test_each_image_says_what_broke_it_first(standard):
  images, labels = linear.problem()
  flags = {'': np.ones(len(labels), bool), **standard.flags}
  expected = np.full(len(labels), '', '<U16')
  for before, name in itertools.pairwise(flags):
    expected[flags[before] & ~flags[name]] = name
  np.testing.assert_array_equal(standard.broken_by, expected)
  assert {'clean', 'apgd-ce', ''} <= set(expected)
  attacked = ~np.isin(expected, ['', 'clean'])
  np.testing.assert_array_equal(standard.broken_in >= 0, attacked)
  targeted = np.isin(expected, ['apgd-t', 'fab-t'])
  assert np.all((standard.broken_in >= 2) == targeted)
  for inputs, margins in (
    (images, standard.clean_margins),
    (standard.images_adv, standard.margins),
  ):
    logits = np.array(linear.logits_of(inputs))
    places = np.arange(len(labels))
    own = logits[places, labels]
    logits[places, labels] = -np.inf
    np.testing.assert_allclose(margins, own - logits.max(axis=1), atol=1e-5)
  np.testing.assert_array_equal(
    standard.clean_predictions, np.argmax(linear.logits_of(images), axis=1)
  )


def _two_devices(fn, in_axes):
  """Splits the arguments with axis 0 over both devices."""
  mapped = jax.pmap(fn, in_axes=in_axes)

  def call(*args):
    split = [
      arg if axis is None else np.reshape(arg, (2, -1, *np.shape(arg)[1:]))
      for arg, axis in zip(args, in_axes, strict=True)
    ]
    out = jax.block_until_ready(mapped(*split))
    return jax.tree.map(lambda x: np.reshape(x, (-1, *x.shape[2:])), out)

  return call


def test_other_batches_on_two_devices_give_the_same_flags(standard):
  images, labels = linear.problem()
  split = autoattack(
    linear.logits_of,
    images,
    labels,
    epsilon=0.01,
    batch_size=20,
    map_fn=_two_devices,
    **linear.BUDGET,
  )
  for name, robust in split.flags.items():
    np.testing.assert_array_equal(robust, standard.flags[name])
  np.testing.assert_allclose(split.images_adv, standard.images_adv, atol=1e-6)


@pytest.mark.parametrize('name', ['apgd-t', 'fab-t', 'square'])
def test_compiles_once_whatever_is_left_to_attack(name):
  logits_fn, once = linear.counting()
  linear.attack(
    name, logits_fn=logits_fn, epsilon=1e-6, n_targets=1, batch_size=20
  )
  logits_fn, often = linear.counting()
  # 20 images in batches of at most 8: 7 each. Of Square's 17: 6 each.
  result = linear.attack(name, logits_fn=logits_fn, batch_size=8)
  assert 0 < result.robust.sum() < 17
  assert len(often) == len(once)
  assert {shape[0] for shape in often} == {7, 6 if name == 'square' else 7}


def test_only_robust_images_are_attacked_again():
  done = []
  linear.attack('apgd-t', batch_size=4, epsilon=0.05, progress=done.append)
  counts = [event.robust for event in done]
  passes = Budget(n_targets=4).passes('apgd-t')
  # With all 17 images in every pass there would be 5 batches each.
  assert len(done) < 5 * len(passes)
  assert counts == sorted(counts, reverse=True)
  assert done[-1].share == 1.0 or counts[-1] == 0


def test_progress_prints_the_time_left(capsys):
  linear.attack('fab-t', progress=True, n_targets=1)
  line = capsys.readouterr().out.splitlines()[-1]
  assert line.startswith('fab-t 100%: robust ')
  assert 's left' in line


def test_epsilon_is_used_as_it_is():
  # One pixel decides, between .031 and 8/255 = .03137 from the boundary.
  def logits_fn(images):
    x = images.reshape(len(images), -1)[:, :1]
    return jnp.concatenate([x, jnp.full_like(x, 0.5)], axis=1)

  images = np.full((1, 1, 1, 1), 0.5312, np.float32)
  for epsilon, robust in [(0.031, True), (8 / 255, False)]:
    result = autoattack(
      logits_fn,
      images,
      np.array([0]),
      epsilon=epsilon,
      version='custom',
      attacks=['apgd-ce'],
      n_restarts=1,
      n_iter=5,
    )
    assert bool(result.robust[0]) == robust


def test_products_are_exact_unless_asked_otherwise():
  seen = []

  def logits_fn(images):
    seen.append(jax.config.jax_default_matmul_precision)
    return linear.logits_of(images)

  linear.attack('fab-t', logits_fn=logits_fn, n_targets=1)
  assert set(seen) == {'highest'}
  seen.clear()
  linear.attack('fab-t', logits_fn=logits_fn, n_targets=1, precision=None)
  assert set(seen) == {None}


def _recording(keys):
  """A `map_fn` that notes the key of every batch that is attacked."""

  def map_fn(fn, in_axes):
    call = jit_hoisted(fn, in_axes)

    def noting(*args):
      if len(args) > 1:
        keys.append(jax.random.key_data(args[8]).tolist())
      return call(*args)

    return noting

  return map_fn


def test_numbers_of_the_streams_stay():
  numbers = {
    name: streams.number(f'autoattack/{name}') for name in checks.NAMES
  }
  assert list(numbers.values()) == list(range(6))
  assert streams.number('autoattack/noise') == 6
  # A new name takes nobody's.
  assert streams.number('autoattack/new') not in range(7)


@pytest.mark.parametrize('name', ['apgd-ce', 'square'])
def test_attacks_before_do_not_change_the_noise(name):
  alone, after = [], []
  for keys, names in [(alone, [name]), (after, ['fab-t', name])]:
    linear.attack(
      *names, epsilon=1e-6, n_targets=1, map_fn=_recording(keys), batch_size=20
    )
  assert alone == after[-len(alone) :]
  assert len(after) > len(alone)


def test_budgets_are_those_of_the_original():
  budget = Budget()
  assert budget.passes('apgd-ce') == [0]
  assert budget.passes('apgd-t') == budget.passes('fab-t') == list(range(2, 11))
  pieces = budget.square_pieces()
  assert pieces[:5] == [0, 10, 13, 17, 23]
  assert pieces[-1] == 5000
  assert pieces == sorted(set(pieces))
  assert len(budget.passes('square')) == len(pieces) - 1
  assert Budget(n_queries=4).square_pieces() == [0, 4]
  assert checks.VERSIONS == {
    'standard': ('apgd-ce', 'apgd-t', 'fab-t', 'square'),
    'plus': ('apgd-ce', 'apgd-dlr', 'fab', 'square', 'apgd-t', 'fab-t'),
    'rand': ('apgd-ce', 'apgd-dlr'),
  }
