"""What the compiler makes of a training step, by its own account."""

import functools
import math
import re

import jax
import pytest

from dhat_jax.benchmark import compile_facts, hlo, training
from dhat_jax.runtime import devices
from dhat_jax.training.stages import initial_state, roles
from tests.helpers import tiny_run

STAGES = list(roles())


@functools.cache
def lowered(stage, dtype='float32', shared=False):
  """The training step of a stage on two devices, and its state.

  `shared` says whether the devices share batch norm's statistics.
  """
  config = tiny_run.get_config(
    **{
      'model.dtype': dtype,
      'model.sync_batch_norm': shared,
      'model.backbone': 'wrn10_1',
    }
  )
  built = training.make_stage(config, stage, 4)
  state = jax.eval_shape(lambda: initial_state(built, (8, 8, 1)))
  state = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype), state
  )
  step = devices.mapped_train_step(built.step)
  return step.lower(state, training.random_batch(config, 4)), state


@functools.cache
def compiled(stage):
  return lowered(stage)[0].compile()


@pytest.mark.parametrize('stage', STAGES)
def test_no_convolution_in_float32_in_half_precision(stage):
  text = lowered(stage, 'bfloat16')[0].as_text()
  convolutions = re.findall(r'stablehlo\.convolution.*', text)
  assert len(convolutions) > 20
  for line in convolutions:
    assert 'bf16>' in line
    assert 'xf32>' not in line, line
  assert (
    'xf32>'
    in re.findall(r'stablehlo\.convolution.*', lowered(stage)[0].as_text())[0]
  )


@pytest.mark.parametrize('stage', STAGES)
def test_nothing_moves_between_device_and_host(stage):
  program = hlo.Program(compiled(stage).as_text())
  assert compile_facts.convolutions(program)
  assert compile_facts.transfers(program) == []


@pytest.mark.parametrize('stage', STAGES)
def test_gradients_are_summed_in_one_all_reduce(stage):
  _, state = lowered(stage)
  trained = [state.params[part] for part in roles()[stage].trains]
  size = sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(trained))
  program = hlo.Program(compiled(stage).as_text())
  found = [compile_facts.size(e) for e in compile_facts.all_reduces(program)]
  # The other one counts the examples.
  assert len(found) == 2
  assert min(found) == 1
  assert size < max(found)


@pytest.mark.parametrize('stage', STAGES)
def test_donated_state_is_reused(stage):
  _, state = lowered(stage)
  size = sum(
    math.prod(leaf.shape[1:]) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves((state.params, state.opt_state))
  )
  assert compiled(stage).memory_analysis().alias_size_in_bytes >= size
