"""The text of compiled programs is read; the texts here are written by hand."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from dhat_jax.benchmark import compile_facts, hlo

DATA = pathlib.Path(__file__).parents[1] / 'data'

# As the GPU's compiler writes it: 2 images a device, a loop of 10 steps.
GPU = (DATA / 'gpu.hlo').read_text()

# As the TPU's: tiles, memory spaces, products as convolutions, a gradient of a
# kernel in which batch and channels change places.
TPU = (DATA / 'tpu.hlo').read_text()


def test_shapes():
  both = hlo.shapes('(bf16[2,3]{0,1:T(8,128)(2,1)S(1)}, /*index=1*/f32[])')
  assert both == (
    hlo.Shape('bf16', (2, 3), (0, 1), 1),
    hlo.Shape('f32', (), (), 0),
  )
  assert [shape.bytes for shape in both] == [12, 4]


def test_instructions_of_the_gpu():
  program = hlo.Program(GPU)
  assert program.entry == 'main'
  assert program.aliases == 2
  conv = program.computations['body']['conv.1']
  assert conv.opcode == 'custom-call'
  assert conv.operands == ('x', 'kernel')
  assert conv.target == '__cudnn$convForward'
  assert conv.op_name.endswith('trunk/conv')
  assert [shape.dtype for shape in conv.shapes] == ['bf16', 'u8']
  assert program.computations['fused_transpose']['transpose.1'].is_root
  assert program.times == {'main': 1, 'condition': 10, 'body': 10}


def test_steps_of_a_loop_are_read_from_its_condition():
  assert hlo.Program(TPU).times == {'main': 1, 'condition': 32, 'body': 32}
  unknown = TPU.replace('direction=LT', 'direction=NE')
  assert hlo.Program(unknown).times['body'] == 1


def test_no_program():
  with pytest.raises(ValueError, match=r"got 'nothing', expected the text of"):
    hlo.Program('nothing')


def test_all_reduces_by_kind():
  program = hlo.Program(GPU)
  found = compile_facts.all_reduces(program)
  assert [compile_facts.size(each) for each in found] == [16, 100, 1]
  assert compile_facts.all_reduces_by_kind(program, 100) == {
    'batch norm': {'number': 1, 'bytes': 64},
    'gradients': {'number': 1, 'bytes': 380},
    'other': {'number': 1, 'bytes': 4},
  }
  assert 'gradients' not in compile_facts.all_reduces_by_kind(program, 101)
  assert 'gradients' not in compile_facts.all_reduces_by_kind(program, None)


def test_convolutions():
  (conv,) = compile_facts.convolutions(hlo.Program(GPU))
  assert conv == compile_facts.Convolution(
    'jit(f)/shard_map/while/body/net/trunk/conv', 'bf16', 'channels'
  )
  first = GPU.replace('b01f_o01i', 'bf01_oi01')
  (conv,) = compile_facts.convolutions(hlo.Program(first))
  assert conv.fastest == 'positions'
  # The product of the classifier is no convolution.
  (conv,) = compile_facts.convolutions(hlo.Program(TPU))
  assert (conv.dtype, conv.fastest) == ('f32', 'batch')


def test_channels_of_a_gradient_of_a_kernel():
  last = '%p = bf16[4,4,4,8]{3,0,2,1:T(8,128)(2,1)S(1)} parameter(0)'
  lines = [
    f'  {last}' if line.startswith('  %p =') else line
    for line in TPU.splitlines()
  ]
  (conv,) = compile_facts.convolutions(hlo.Program('\n'.join(lines)))
  assert conv.fastest == 'channels'


def test_transfers():
  assert compile_facts.transfers(hlo.Program(GPU)) == []
  assert compile_facts.transfers(hlo.Program(TPU)) == ['host']
  line = '  %result = f32[7]{0} copy(%s)'
  for moved in (
    '  %send.1 = (f32[7], u32[], token[]) send(%s, %t), channel_id=1',
    '  %send.1 = token[] send-done(%s), channel_id=1',
    '  %send.1 = token[] outfeed(%s, %t)',
    '  %send.1 = f32[7] custom-call(%s), custom_call_target="xla_ffi_python_'
    'gpu_callback"',
  ):
    text = GPU.replace(line.replace('%r', 'ROOT %r'), moved)
    assert compile_facts.transfers(hlo.Program(text)) == ['send.1']


def test_operations():
  assert compile_facts.operations(hlo.Program(GPU)) == {
    'sorts': 1,
    'gathers': 0,
    'top_k': 0,
    'loops': 1,
  }
  text = GPU.replace(' transpose(', ' gather(').replace(' tuple(', ' topk(')
  counts = compile_facts.operations(hlo.Program(text))
  assert (counts['gathers'], counts['top_k']) == (1, 2)


def test_features_that_are_converted_or_transposed():
  program = hlo.Program(GPU)
  name = 'jit(f)/net/aggregator/transpose'
  expected = {'number': 1, 'bytes': 1024, 'names': [name]}
  images = (2, 4, 4, 3)
  assert compile_facts.float32_features(program, images) == expected
  assert compile_facts.layout_changes(program, images) == expected
  # Not larger than the images, or no batch of features.
  for images in ((2, 4, 4, 8), (3, 4, 4, 3)):
    assert compile_facts.layout_changes(program, images)['number'] == 0
  # A copy to another order of dimensions.
  found = compile_facts.layout_changes(hlo.Program(TPU), (4, 4, 4, 3))
  assert (found['number'], found['names']) == (1, ['other'])


def test_traffic():
  # A step of the loop: the convolution reads 2 x 4 x 4 x 3 and 8 x 3 x 3 x 3
  # numbers of 2 bytes, and writes 2 x 4 x 4 x 8; the comparison reads its
  # arguments twice, each 4 + 192 bytes, and writes 1.
  step = (192 + 432 + 512) + (2 * (4 + 192) + 1)
  rest = [
    192 + 64,  # norm
    64,  # its all-reduce
    90 * 4 + 10 * 2,  # what they read is not in the text
    4,
    1024,
    2 * 20,
    28,
  ]
  assert compile_facts.traffic(hlo.Program(GPU)) == 10 * step + sum(rest)


def test_memory_counts_donated_buffers_once():
  class Analysis:
    argument_size_in_bytes = 100
    temp_size_in_bytes = 30
    output_size_in_bytes = 90
    alias_size_in_bytes = 80
    generated_code_size_in_bytes = 7

  assert compile_facts.memory(Analysis)['total'] == 100 + 30 + 10 + 7


def test_facts():
  def found(text, half_precision=True):
    return compile_facts.facts(
      text,
      images=(4, 4, 4, 3),
      gradients=None,
      half_precision=half_precision,
    )['convolutions']

  counts = {
    'number': 1,
    'by_dtype': {'f32': 1},
    'by_fastest': {'batch': 1},
  }
  outside = ['jit(f)/transpose(jvp(net))/trunk/conv']
  assert found(TPU) == {**counts, 'float32_outside': outside}
  inside = TPU.replace('trunk/conv', 'aggregator/conv')
  assert found(inside) == {**counts, 'float32_outside': []}
  # In a float32 program there is nothing to look for.
  assert found(TPU, half_precision=False) == {**counts, 'float32_outside': []}


def test_operations_before_the_program_is_optimised():
  def select(x):
    ranked = jnp.argsort(x, axis=1)
    best = jax.lax.top_k(x, 2)[0]
    return jnp.take_along_axis(x, ranked[:, 1:], axis=1) + best.sum()

  text = jax.jit(select).lower(jnp.zeros((3, 4))).as_text()
  found = compile_facts.traced_operations(text)
  assert found == {'sorts': 1, 'gathers': 1, 'top_k': 1, 'loops': 0}
