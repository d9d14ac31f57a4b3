"""The ramp of the attack's radius and step size, against values by hand."""

import jax
import numpy as np
import optax
import pytest

from dhat_jax.training.schedules import make_attack_scale


def factors(steps, **options):
  """The factors at some steps, where an epoch has 10."""
  scale = make_attack_scale(steps_per_epoch=10, **options)
  got = jax.jit(jax.vmap(scale))(np.asarray(steps))
  np.testing.assert_array_equal(got, [scale(step) for step in steps])
  return got


def test_by_default_it_is_linear_from_the_first_step():
  steps = [0, 5, 10, 20, 100]
  got = factors(steps, warmup_epochs=2.0)
  np.testing.assert_allclose(got, [0, 0.25, 0.5, 1, 1])
  expected = optax.linear_schedule(0.0, 1.0, 20)
  np.testing.assert_array_equal(got, [expected(step) for step in steps])
  np.testing.assert_array_equal(factors([0, 9], warmup_epochs=0.0), [1, 1])


def test_once_an_epoch_all_the_way():
  # DKL, DAJAT: eps e / E in epoch e of E, counted from 1.
  got = factors([0, 9, 10, 39, 40], warmup_epochs=4.0, warmup_per_epoch=True)
  np.testing.assert_allclose(got, [0.25, 0.25, 0.5, 1, 1])


def test_a_later_start():
  steps = [0, 19, 20, 25, 30, 40, 90]
  options = {
    'warmup_epochs': 2.0,
    'warmup_start_epoch': 3.0,
    'warmup_start_fraction': 0.5,
  }
  np.testing.assert_allclose(
    factors(steps, **options), [0.5, 0.5, 0.5, 0.625, 0.75, 1, 1]
  )
  np.testing.assert_allclose(
    factors(steps, warmup_per_epoch=True, **options),
    [0.5, 0.5, 0.75, 0.75, 1, 1, 1],
  )


@pytest.mark.parametrize('per_epoch', [False, True])
def test_a_ramp_of_no_length_is_a_jump(per_epoch):
  got = factors(
    [0, 19, 20, 90],
    warmup_epochs=0.0,
    warmup_start_epoch=3.0,
    warmup_start_fraction=0.25,
    warmup_per_epoch=per_epoch,
  )
  np.testing.assert_allclose(got, [0.25, 0.25, 1, 1])


@pytest.mark.parametrize(
  ('name', 'value', 'expected'),
  [
    ('warmup_epochs', -1, 'a finite number >= 0'),
    ('warmup_start_epoch', 0.5, 'a finite number >= 1'),
    ('warmup_start_fraction', 1.1, r'in \[0, 1\]'),
    ('warmup_per_epoch', 1, 'true or false'),
  ],
)
def test_errors(name, value, expected):
  options = {'warmup_epochs': 1.0, name: value}
  with pytest.raises(
    ValueError, match=f'^attack.{name}: got {value}, expected {expected}$'
  ):
    make_attack_scale(steps_per_epoch=10, **options)
