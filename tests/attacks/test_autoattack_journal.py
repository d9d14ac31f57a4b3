"""A killed run of AutoAttack goes on where it stopped."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.attacks.autoattack import autoattack
from tests.attacks import linear


class _KilledError(Exception):
  pass


def _kill_after(batches):
  seen = []

  def progress(event):
    seen.append(event)
    if len(seen) == batches:
      raise _KilledError

  return progress


def _assert_same(result, expected):
  """All that is known per image is the same."""
  for name, array in expected.arrays().items():
    np.testing.assert_array_equal(result.arrays()[name], array)


@pytest.mark.parametrize('batches', [2, 6])
def test_resumed_run_gives_the_same_and_repeats_nothing(
  standard, tmp_path, batches
):
  with pytest.raises(_KilledError):
    linear.standard(state_dir=tmp_path, progress=_kill_after(batches))
  before = {path: path.stat().st_mtime_ns for path in tmp_path.glob('*-*.npz')}
  assert len(before) == batches
  logits_fn, traces = linear.counting()
  again = linear.standard(logits_fn, state_dir=tmp_path)
  _assert_same(again, standard)
  for path, written in before.items():
    assert path.stat().st_mtime_ns == written
  # A finished run is read, not attacked: only the clean images are predicted.
  logits_fn, final = linear.counting()
  _assert_same(linear.standard(logits_fn, state_dir=tmp_path), standard)
  assert len(final) == 1 < len(traces)
  with np.load(tmp_path / 'result.npz') as stored:
    for name, array in standard.arrays().items():
      np.testing.assert_array_equal(stored[name], array)


def test_interrupted_square_goes_on_from_its_best_points(tmp_path):
  options = {'epsilon': 0.02, 'batch_size': 8, 'state_dir': tmp_path}
  plain = linear.attack('square', epsilon=0.02, batch_size=8, n_queries=80)
  with pytest.raises(_KilledError):
    linear.attack('square', n_queries=80, progress=_kill_after(5), **options)
  again = linear.attack('square', n_queries=80, **options)
  np.testing.assert_array_equal(again.images_adv, plain.images_adv)
  # Points of robust images are kept for the last piece alone.
  with np.load(tmp_path / 'square-00000.npz') as piece:
    assert not np.any(piece['robust'][piece['rows']])


_CLEAN, _ = linear.problem()


def _scaled(factor):
  return lambda images: factor * linear.logits_of(images)


def _elsewhere(images):
  """The same logits on the clean images, others between them."""
  gaps = images[:, None] - _CLEAN[None]  # [B, N, H, W, C]
  nearest = jnp.min(jnp.max(jnp.abs(gaps), axis=(2, 3, 4)), axis=1)
  return linear.logits_of(images) + nearest[:, None] * jnp.arange(5.0)[None]


@pytest.mark.parametrize(
  'other',
  [
    _scaled(jnp.float32(2.0)),  # the same predictions
    _scaled(jnp.array(1.00001)),  # the same within rounding
    _elsewhere,
    jax.jit(_elsewhere),  # whose weights do not show
    jax.jit(_scaled(1.1)),
  ],
)
def test_state_of_another_network_is_refused(tmp_path, other):
  options = {'state_dir': tmp_path, 'n_targets': 1, 'n_iter': 2}
  linear.attack('fab-t', **options)
  with pytest.raises(ValueError, match=r'another evaluation.*network'):
    linear.attack('fab-t', logits_fn=other, **options)
  linear.attack('fab-t', **options)  # its own goes on


def test_another_jitted_network_is_seen_by_its_logits(tmp_path):
  options = {'state_dir': tmp_path, 'n_targets': 1, 'n_iter': 2}
  first = jax.jit(linear.logits_of)
  linear.attack('fab-t', logits_fn=first, **options)
  linear.attack('fab-t', logits_fn=first, **options)
  with pytest.raises(ValueError, match='clean logits are others'):
    linear.attack('fab-t', logits_fn=jax.jit(_scaled(1.1)), **options)
  with pytest.raises(ValueError, match='of a probe are others'):
    linear.attack('fab-t', logits_fn=jax.jit(_elsewhere), **options)


@pytest.mark.parametrize('key', ['network', 'packed_batches'])
def test_state_that_does_not_say_whose_it_is_is_refused(tmp_path, key):
  """Of earlier versions."""
  options = {'state_dir': tmp_path, 'n_targets': 1, 'n_iter': 2}
  linear.attack('fab-t', **options)
  path = tmp_path / 'problem.json'
  problem = json.loads(path.read_text())
  del problem[key]
  path.write_text(json.dumps(problem))
  with pytest.raises(ValueError, match=f'{key}: got .*, stored None'):
    linear.attack('fab-t', **options)


def test_a_randomised_network_goes_on(tmp_path):
  def noisy(images, key):
    noise = 0.1 * jax.random.normal(key, (len(images), 5))
    return linear.logits_of(images) + noise

  images, labels = linear.problem()
  options = {'epsilon': 0.01, 'n_iter': 2, 'eot_iter': 2, 'version': 'rand'}
  options |= {'randomized': True, 'state_dir': tmp_path}
  first = autoattack(noisy, images, labels, **options)
  pieces = sorted(tmp_path.glob('apgd-*-*.npz'))
  pieces[-1].unlink()  # as a killed call leaves it
  again = autoattack(noisy, images, labels, **options)
  _assert_same(again, first)
  np.testing.assert_array_equal(again.correct, first.correct)


@pytest.mark.slow
def test_kill_9_loses_nothing_that_was_finished(standard, tmp_path):
  script = f"""
    import os, signal
    from tests import conftest
    from tests.attacks import linear
    seen = []
    def progress(event):
      seen.append(event)
      if len(seen) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    linear.standard(state_dir={str(tmp_path)!r}, progress=progress)
  """
  ended = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(script)], cwd=os.getcwd()
  )
  assert ended.returncode == -signal.SIGKILL
  assert len(list(tmp_path.glob('*-*.npz'))) == 4
  _assert_same(linear.standard(state_dir=tmp_path), standard)


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
  linear.attack('fab-t', state_dir=tmp_path, n_targets=1, epsilon=8 / 255)
  with pytest.raises(ValueError, match=next(iter(other))):
    linear.attack(
      'fab-t',
      **{'state_dir': tmp_path, 'n_targets': 1, 'epsilon': 8 / 255, **other},
    )


def test_state_of_another_network_or_a_damaged_one_is_refused(tmp_path):
  linear.attack('fab-t', state_dir=tmp_path, n_targets=1)
  with pytest.raises(ValueError, match='clean_flags'):
    linear.attack(
      'fab-t',
      logits_fn=lambda x: -linear.logits_of(x),
      state_dir=tmp_path,
      n_targets=1,
    )
  piece = next(tmp_path.glob('fab-t-*.npz'))
  piece.write_bytes(piece.read_bytes()[:100])
  with pytest.raises(ValueError, match='damaged'):
    linear.attack('fab-t', state_dir=tmp_path, n_targets=1)
