"""What the compiler makes of a training step, by its own account."""

import functools
import math
import re

import jax
import pytest

from dhat_jax.benchmark import training
from dhat_jax.runtime import devices
from dhat_jax.training.stages import initial_state, roles
from tests.helpers import tiny_run

# Whatever moves data between device and host inside a program.
TRANSFERS = ('infeed', 'outfeed', ' send(', ' recv(', 'callback')
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
  text = compiled(stage).as_text()
  assert 'convolution' in text
  for word in TRANSFERS:
    assert word not in text


def all_reduces(text):
  """Number of elements of each all-reduce of a program."""
  shapes = re.findall(r'= (\S+) all-reduce\(', text)
  shapes += re.findall(r'= (\(.*?\)) all-reduce\(', text)
  return [
    sum(
      math.prod(int(n) for n in dims.split(',') if n)
      for dims in re.findall(r'\w\d+\[([\d,]*)\]', shape)
    )
    for shape in shapes
  ]


@pytest.mark.parametrize('stage', STAGES)
def test_gradients_are_summed_in_one_all_reduce(stage):
  _, state = lowered(stage)
  trained = [state.params[part] for part in roles()[stage].trains]
  size = sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(trained))
  found = all_reduces(compiled(stage).as_text())
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


def test_size_of_an_all_reduce_is_read():
  text = (
    ' %a = f32[3,4]{1,0} all-reduce(%x), channel_id=1\n'
    ' %b = (f32[], bf16[7]{0}) all-reduce(%y, %z), channel_id=2\n'
  )
  assert all_reduces(text) == [12, 8]
