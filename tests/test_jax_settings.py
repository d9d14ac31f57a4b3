"""What the environment says to JAX changes no number of a run."""

import jax
import pytest

import dhat_jax
from tests.helpers import tiny_run


def accuracies(folder):
  """Trains the main head for some steps; returns its accuracies."""
  config = tiny_run.get_config(
    **{
      'stages': ('main_head',),
      'evaluation.attacks': ('clean', 'pgd_2', 'square'),
      'evaluation.autoattack_images': 16,
      'evaluation.autoattack_queries': 5,
    }
  )
  results = dhat_jax.train_and_evaluate(config, str(folder))
  return results['accuracy'], results['autoattack']


@pytest.mark.slow
def test_a_run_under_other_settings(tmp_path):
  expected = accuracies(tmp_path / 'standard')
  with (
    jax.numpy_dtype_promotion('strict'),
    jax.numpy_rank_promotion('raise'),
    jax.threefry_partitionable(False),
    jax.default_prng_impl('rbg'),
  ):
    assert accuracies(tmp_path / 'others') == expected
  with jax.enable_x64(True):
    assert accuracies(tmp_path / 'x64') == expected
