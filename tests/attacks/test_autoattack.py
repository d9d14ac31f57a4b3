"""The ensemble: who is attacked, how often it compiles, resume, refusals."""

import itertools
import os
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.attacks import balls
from dhat_jax.attacks.autoattack import autoattack, checks
from dhat_jax.attacks.autoattack.passes import Budget

_BUDGET = {'n_iter': 5, 'n_queries': 30}
_SLOPE = np.random.default_rng(5).normal(size=(72, 5)).astype(np.float32)
_NAMES = ('apgd-ce', 'apgd-t', 'fab-t', 'square')


def _linear(images):
  return (images.reshape(len(images), -1) - 0.5) @ jnp.asarray(_SLOPE)


def _problem(count=20, wrong=3):
  images = np.random.default_rng(6).uniform(size=(count, 6, 6, 2))
  images = images.astype(np.float32)
  labels = np.array(jnp.argmax(_linear(images), axis=1))
  labels[:wrong] = (labels[:wrong] + 1) % 5
  return images, labels


def _custom(name, logits_fn=_linear, **options):
  images, labels = _problem()
  options = {'epsilon': 0.03, 'n_restarts': 1, **_BUDGET, **options}
  return autoattack(
    logits_fn, images, labels, version='custom', attacks=[name], **options
  )


def _counting():
  traces = []

  def logits_fn(images):
    traces.append(images.shape)
    return _linear(images)

  return logits_fn, traces


@pytest.fixture(scope='module')
def standard():
  images, labels = _problem()
  return autoattack(
    _linear, images, labels, epsilon=0.01, batch_size=8, **_BUDGET
  )


def test_flags_shrink_in_the_order_of_the_original(standard):
  assert tuple(standard.flags) == ('clean', *_NAMES)
  flags = list(standard.flags.values())
  for before, after in itertools.pairwise(flags):
    assert not np.any(after & ~before)
  np.testing.assert_array_equal(standard.robust, flags[-1])
  np.testing.assert_array_equal(flags[0], [False] * 3 + [True] * 17)
  assert standard.clean_accuracy == 0.85
  assert 0 < standard.robust_accuracy < standard.clean_accuracy
  assert set(standard.secs) == set(_NAMES)


def test_images_are_adversarial_exactly_where_not_robust(standard):
  images, labels = _problem()
  attacked = standard.flags['clean'] & ~standard.robust
  same = np.all(standard.images_adv == images, axis=(1, 2, 3))
  np.testing.assert_array_equal(same, ~attacked)
  wrong = np.argmax(_linear(standard.images_adv), axis=1) != labels
  np.testing.assert_array_equal(wrong, ~standard.robust)
  deltas = jnp.asarray(standard.images_adv - images)
  assert float(balls.norms(deltas, 'linf').max()) < 0.01 + 1e-6


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
  images, labels = _problem()
  split = autoattack(
    _linear,
    images,
    labels,
    epsilon=0.01,
    batch_size=20,
    map_fn=_two_devices,
    **_BUDGET,
  )
  for name, robust in split.flags.items():
    np.testing.assert_array_equal(robust, standard.flags[name])
  np.testing.assert_allclose(split.images_adv, standard.images_adv, atol=1e-6)


@pytest.mark.parametrize('name', ['apgd-t', 'fab-t', 'square'])
def test_compiles_once_whatever_is_left_to_attack(name):
  logits_fn, once = _counting()
  _custom(name, logits_fn, epsilon=1e-6, n_targets=1, batch_size=20)
  logits_fn, often = _counting()
  # 17 images in batches of 8: the last one is partial; then fewer and fewer.
  result = _custom(name, logits_fn, batch_size=8)
  assert 0 < result.robust.sum() < 17
  assert len(often) == len(once)
  assert {shape[0] for shape in often} == {8}


def test_only_robust_images_are_attacked_again():
  done = []
  _custom('apgd-t', batch_size=4, epsilon=0.05, progress=done.append)
  counts = [event.robust for event in done]
  passes = Budget(n_targets=4).passes('apgd-t')
  # With all 17 images in every pass there would be 5 batches each.
  assert len(done) < 5 * len(passes)
  assert counts == sorted(counts, reverse=True)
  assert done[-1].share == 1.0 or counts[-1] == 0


def test_progress_prints_the_time_left(capsys):
  _custom('fab-t', progress=True, n_targets=1)
  line = capsys.readouterr().out.splitlines()[-1]
  assert line.startswith('fab-t 100%: robust ')
  assert 's left' in line


class _KilledError(Exception):
  pass


def _kill_after(batches):
  seen = []

  def progress(event):
    seen.append(event)
    if len(seen) == batches:
      raise _KilledError

  return progress


@pytest.mark.parametrize('batches', [2, 6])
def test_resumed_run_gives_the_same_and_repeats_nothing(
  standard, tmp_path, batches
):
  images, labels = _problem()
  options = {'epsilon': 0.01, 'batch_size': 8, 'state_dir': tmp_path}
  with pytest.raises(_KilledError):
    autoattack(
      _linear,
      images,
      labels,
      progress=_kill_after(batches),
      **options,
      **_BUDGET,
    )
  before = {path: path.stat().st_mtime_ns for path in tmp_path.glob('*-*.npz')}
  assert len(before) == batches
  logits_fn, traces = _counting()
  again = autoattack(logits_fn, images, labels, **options, **_BUDGET)
  for name, robust in again.flags.items():
    np.testing.assert_array_equal(robust, standard.flags[name])
  np.testing.assert_array_equal(again.images_adv, standard.images_adv)
  for path, written in before.items():
    assert path.stat().st_mtime_ns == written
  # A finished run is read, not attacked: only the clean images are predicted.
  logits_fn, final = _counting()
  read = autoattack(logits_fn, images, labels, **options, **_BUDGET)
  np.testing.assert_array_equal(read.robust, standard.robust)
  np.testing.assert_array_equal(read.images_adv, standard.images_adv)
  assert len(final) == 1 < len(traces)
  with np.load(tmp_path / 'result.npz') as stored:
    np.testing.assert_array_equal(stored['images_adv'], standard.images_adv)


def test_interrupted_square_goes_on_from_its_best_points(tmp_path):
  options = {'epsilon': 0.02, 'batch_size': 8, 'state_dir': tmp_path}
  plain = _custom('square', epsilon=0.02, batch_size=8, n_queries=80)
  with pytest.raises(_KilledError):
    _custom('square', n_queries=80, progress=_kill_after(5), **options)
  again = _custom('square', n_queries=80, **options)
  np.testing.assert_array_equal(again.images_adv, plain.images_adv)
  # Points of robust images are kept for the last piece alone.
  with np.load(tmp_path / 'square-00-00000.npz') as piece:
    assert not np.any(piece['robust'][piece['rows']])


@pytest.mark.slow
def test_kill_9_loses_nothing_that_was_finished(standard, tmp_path):
  script = f"""
    import os, signal
    from tests import conftest
    from tests.attacks import test_autoattack as t
    seen = []
    def progress(event):
      seen.append(event)
      if len(seen) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    images, labels = t._problem()
    t.autoattack(t._linear, images, labels, epsilon=0.01, batch_size=8,
                 state_dir={str(tmp_path)!r}, progress=progress, **t._BUDGET)
  """
  ended = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(script)], cwd=os.getcwd()
  )
  assert ended.returncode == -signal.SIGKILL
  assert len(list(tmp_path.glob('*-*.npz'))) == 4
  images, labels = _problem()
  again = autoattack(
    _linear,
    images,
    labels,
    epsilon=0.01,
    batch_size=8,
    state_dir=tmp_path,
    **_BUDGET,
  )
  np.testing.assert_array_equal(again.robust, standard.robust)


@pytest.mark.parametrize(
  'other',
  [
    {'epsilon': 0.031},
    {'norm': 'l2'},
    {'rng': jax.random.key(1)},
    {'batch_size': 9},
    {'n_iter': 6},
  ],
)
def test_state_of_another_problem_is_refused(tmp_path, other):
  _custom('fab-t', state_dir=tmp_path, n_targets=1, epsilon=8 / 255)
  with pytest.raises(ValueError, match=next(iter(other))):
    _custom(
      'fab-t',
      **{'state_dir': tmp_path, 'n_targets': 1, 'epsilon': 8 / 255, **other},
    )


def test_state_of_another_network_or_a_damaged_one_is_refused(tmp_path):
  _custom('fab-t', state_dir=tmp_path, n_targets=1)
  with pytest.raises(ValueError, match='clean_flags'):
    _custom('fab-t', lambda x: -_linear(x), state_dir=tmp_path, n_targets=1)
  piece = next(tmp_path.glob('fab-t-*.npz'))
  piece.write_bytes(piece.read_bytes()[:100])
  with pytest.raises(ValueError, match='damaged'):
    _custom('fab-t', state_dir=tmp_path, n_targets=1)


@pytest.mark.parametrize(
  ('options', 'match'),
  [
    ({'version': 'fast'}, 'choices'),
    ({'version': 'custom'}, 'expected names'),
    ({'attacks': ['square']}, 'only with it'),
    ({'version': 'custom', 'attacks': ['pgd']}, 'choices'),
    ({'version': 'custom', 'attacks': ['fab', 'fab']}, 'once'),
    ({'norm': 'l1'}, 'choices'),
    ({'epsilon': 0.0}, 'epsilon'),
    ({'batch_size': 0}, 'batch_size'),
    ({'randomized': True}, 'without noise'),
    ({'images': np.zeros((2, 6, 6, 2), np.uint8)}, 'float'),
    ({'images': np.full((2, 6, 6, 2), 255.0)}, r'\[0, 1\]'),
    ({'images': np.full((2, 72), 0.5)}, r'\[N, H, W, C\]'),
    ({'labels': np.zeros(3, int)}, 'labels'),
    ({'labels': np.array([0, 5])}, '5 logits'),
  ],
)
def test_bad_arguments_are_named(options, match):
  arguments = {
    'images': np.full((2, 6, 6, 2), 0.4, np.float32),
    'labels': np.zeros(2, int),
    'epsilon': 0.1,
    **options,
  }
  with pytest.raises(ValueError, match=match):
    autoattack(_linear, **arguments)


@pytest.mark.parametrize(
  ('wrap', 'match'),
  [
    (lambda z: jax.nn.softmax(z, axis=1), 'before its softmax'),
    (lambda z: z * jnp.nan, 'NaN'),
    (lambda z: z[:, :3], 'at least 4'),
    (lambda z: z[:, :2], 'at least 4'),
  ],
)
def test_outputs_that_cannot_be_attacked_are_refused(wrap, match):
  images, labels = _problem()
  with pytest.raises(ValueError, match=match):
    autoattack(lambda x: wrap(_linear(x)), images, labels % 2, epsilon=0.1)


def test_nan_on_the_way_is_refused():
  def logits_fn(images):
    inside = jnp.all((images > 0.05) & (images < 0.95), axis=(1, 2, 3))
    return jnp.where(inside[:, None], _linear(images), jnp.nan)

  images = np.full((2, 6, 6, 2), 0.1, np.float32)
  labels = np.array(jnp.argmax(_linear(images), axis=1))
  with pytest.raises(ValueError, match='apgd-ce'):
    autoattack(
      logits_fn,
      images,
      labels,
      epsilon=0.2,
      version='custom',
      attacks=['apgd-ce'],
      n_restarts=1,
      **_BUDGET,
    )


def test_two_classes_work_without_dlr():
  images, labels = _problem()
  result = autoattack(
    lambda x: _linear(x)[:, :2],
    images,
    np.minimum(labels, 1),
    epsilon=0.3,
    version='custom',
    attacks=('fab-t', 'square'),
    n_restarts=1,
    **_BUDGET,
  )
  assert any('all 1 other' in line for line in result.warnings)
  assert not result.robust.any()


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


def test_masked_gradients_are_reported():
  # Rounding to 20 levels: no gradient, but Square needs none.
  result = autoattack(
    lambda x: _linear(jnp.round(x * 20) / 20) * 3,
    *_problem(wrong=0),
    epsilon=0.08,
    version='custom',
    attacks=['apgd-ce', 'square'],
    n_restarts=1,
    **_BUDGET,
  )
  lines = '\n'.join(result.warnings)
  assert 'starting points with zero gradient' in lines
  assert 'square lowered robust accuracy' in lines


def test_noise_needs_the_version_rand():
  def noisy(images, key):
    return _linear(images) + jax.random.normal(key, (len(images), 5))

  images, labels = _problem()
  keys = jax.random.split(jax.random.key(0), 5)
  samples = [np.asarray(noisy(images, key)) for key in keys]
  (line,) = checks.warn_randomized(samples, labels)
  assert "version='rand'" in line
  assert checks.warn_randomized(samples[:1] * 5, labels) == []
  rand = autoattack(
    noisy,
    images,
    labels,
    epsilon=0.1,
    version='rand',
    randomized=True,
    eot_iter=2,
    n_iter=3,
  )
  assert tuple(rand.flags) == ('clean', 'apgd-ce', 'apgd-dlr')
  assert not any('randomised' in line for line in rand.warnings)


def test_products_are_exact_unless_asked_otherwise():
  seen = []

  def logits_fn(images):
    seen.append(jax.config.jax_default_matmul_precision)
    return _linear(images)

  _custom('fab-t', logits_fn, n_targets=1)
  assert set(seen) == {'highest'}
  seen.clear()
  _custom('fab-t', logits_fn, n_targets=1, precision=None)
  assert set(seen) == {None}


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


def test_first_of_equal_logits_is_the_prediction():
  logits = jnp.array([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0]])
  correct = balls.is_right(logits, jnp.array([0, 2]))
  np.testing.assert_array_equal(correct, [True, False])
