"""Rematerialisation: the same step, with less stored of its forward pass.

That it takes less memory is tested where it is compiled for a GPU.
"""

import functools
import re

import jax
import numpy as np
import pytest

from dhat_jax.benchmark import training
from dhat_jax.runtime import devices
from dhat_jax.training.stages import initial_state
from tests.helpers import tiny_run

SHAPE = (8, 8, 1)
BATCH = 8


@functools.cache
def lowered(name, remat):
  """Returns (a stage's state, the step for two devices, traced)."""
  config = tiny_run.get_config(
    **{'model.backbone': 'wrn10_1', 'model.remat': remat}
  )
  stage = training.make_stage(config, name, BATCH)
  state = devices.replicate(initial_state(stage, SHAPE))
  return state, devices.mapped_train_step(stage.step).lower(state, batch())


def batch():
  rng = np.random.default_rng(0)
  return devices.shard(
    {
      'images': rng.integers(256, size=(BATCH, *SHAPE), dtype=np.uint8),
      'labels': rng.integers(4, size=BATCH, dtype=np.int32),
      'mask': np.ones(BATCH, bool),
    }
  )


def test_values_are_the_same():
  after = []
  for remat in (False, True):
    state, step = lowered('main_head', remat)
    state, metrics = step.compile()(state, batch())
    after.append(devices.to_host((state.params, state.batch_stats, metrics)))
  for expected, actual in zip(*map(jax.tree.leaves, after), strict=True):
    np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize('name', ['main_head', 'second_head'])
def test_convolutions_are_computed_again_and_sums_are_not(name):
  def count(pattern):
    texts = [lowered(name, remat)[1].as_text() for remat in (False, True)]
    return [len(re.findall(pattern, text)) for text in texts]

  plain, twice = count(r'stablehlo\.convolution')
  assert twice > plain
  plain, twice = count(r'stablehlo\.all_reduce')
  assert twice == plain > 2
