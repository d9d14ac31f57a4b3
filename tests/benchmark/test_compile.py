"""Programs for devices that are not there: what is asked for, what is said.

What the compilers make of them: tests/compile.
"""

import re

import jax
import jax.numpy as jnp
import pytest

from dhat_jax.benchmark import __main__ as command
from dhat_jax.benchmark import compile as compiling
from dhat_jax.benchmark import compile_programs, compile_targets
from dhat_jax.training import cost
from tests.helpers import tiny_run

CONFIG = '--config=configs/digits.py'


@pytest.mark.parametrize(
  ('text', 'platform', 'count'),
  [
    ('h100:1', 'gpu', 1),
    ('h100:8', 'gpu', 8),
    ('v5e:2x4', 'tpu', 8),
    ('v5p:2x2x1', 'tpu', 4),
    ('v4:2x2x1', 'tpu', 8),
  ],
)
def test_targets(text, platform, count):
  target = compile_targets.parse(text)
  assert target.name == text
  assert target.chip.platform == platform
  assert target.num_devices == count


def test_a_gpu_may_be_filled_to_three_quarters():
  assert compile_targets.CHIPS['v5e'].usable_bytes == 16 * 2**30
  assert compile_targets.CHIPS['h100'].usable_bytes == 63_697_010_688


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--target=a100:1'], r"--target: got 'a100', choices are \('h100', 'v4'"),
    (['--target=h100:1x2'], r"got 'h100:1x2', expected h100:N, as in h100:1"),
    (['--target=v5e'], r"got 'v5e', expected v5e:NxN, as in"),
    (['--target=v5p:2x2'], r"got 'v5p:2x2', expected v5p:NxNxN"),
    (['--target=v5e:0x2'], r"got 'v5e:0x2', expected v5e:NxN"),
    (['--target=v5e:1x2'], r"got 'v5e:1x2', expected one chip, or multiples"),
    (['--target=v5p:2x3x2'], r"got 'v5p:2x3x2', expected one chip, or mult"),
    (['--target=v5e:16x32'], r"got 'v5e:16x32', expected at most 16x16 chips"),
    (['--target=h100:99999'], r"got 'h100:99999', expected at most 4096 chips"),
    (
      ['--target=h100:1', '--backbones=wrn10_1'],
      r'--backbones: got --what=com',
    ),
    (['--target=v5e:2x2', '--batch_size=6'], 'a multiple of the 4 devices of'),
    (['--target=h100:1', '--programs=pgd'], r"--programs: got 'pgd', choices"),
    ([], r'--target: got nothing, expected one or more, as h100:1, h100:2'),
    (
      ['--resume', '--target=h100:1'],
      r'--resume: got --what=compile and --out',
    ),
  ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
  with pytest.raises(SystemExit) as stopped:
    command.main(['benchmark', CONFIG, '--what=compile', *arguments])
  assert stopped.value.code == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ')
  assert error.count('\n') == 1
  assert re.search(message, error), error


@pytest.mark.parametrize(
  ('name', 'extra', 'modules'),
  [
    ('h100:1', 'compile-gpu', ('jax_plugins.xla_cuda12', 'nvidia.cuda_nvcc')),
    ('v5e:1x1', 'compile-tpu', ('libtpu',)),
  ],
)
def test_a_compiler_that_is_missing_is_named(name, extra, modules):
  problem = compile_targets.missing(
    compile_targets.parse(name), is_installed=lambda module: False
  )
  assert f"expected the extra {extra}: pip install 'dhat_jax[{extra}]'" in (
    problem
  )
  assert modules[0] in problem
  assert (
    compile_targets.missing(
      compile_targets.parse(name), is_installed=lambda module: True
    )
    is None
  )


def tiny_programs(batch_size=4):
  config = tiny_run.get_config()
  devices = jax.devices()
  return [
    compile_programs.training_step(config, 'aggregator', batch_size, devices),
    compile_programs.evaluation_step(config, batch_size, devices),
    compile_programs.attack_pass(config, 'apgd-dlr', batch_size, devices),
  ]


def test_programs_are_traced_for_all_devices():
  count = len(jax.devices())
  for program in tiny_programs():
    text = program.trace().as_text()
    assert program.images == (4, 8, 8, 1)
    assert f'mhlo.num_partitions = {count}' in text
    assert f'tensor<{count}x4x8x8x1x' in text


def test_operations_are_counted_per_device():
  (small, *_), (large, *_) = tiny_programs(2), tiny_programs(4)
  assert large.flops() == pytest.approx(2 * small.flops(), rel=0.02)


def test_a_training_step_computes_what_it_needs():
  config = tiny_run.get_config(**{'model.backbone': 'wrn10_1'})
  shares = {}
  with compile_targets.parse('h100:1').tracing():
    for stage in config.stages:
      step = compile_programs.training_step(config, stage, 4, jax.devices())
      shares[stage] = step.flops() / step.needed_flops
  # Nothing asks the first layer for the gradient of its input in the loss.
  assert 0.99 < shares['main_head'] < 1
  # What is computed twice, or for nothing, is left to the compiler.
  assert 1 < shares['second_head'] < 1.5
  assert 1 < shares['aggregator'] < 1.5


def test_a_loop_counts_as_often_as_it_runs():
  def looped(x):
    return jax.lax.fori_loop(0, 5, lambda i, y: y @ y, x)

  jaxpr = jax.make_jaxpr(looped)(jnp.zeros((3, 3))).jaxpr
  assert cost.count_traced(jaxpr) == 5 * 27


def row(**values):
  return {
    'target': 'h100:2',
    'program': 'main_head',
    'kind': 'training',
    'batch_size': 8,
    'devices': 2,
    'dtype': 'bfloat16',
    'flops': 3e12,
    'needed_flops': None,
    **values,
  }


COMPILED = row(
  compile_seconds=12.3,
  memory={'arguments': 2**20, 'temporaries': 3 * 2**20},
  state_leaves=5,
  aliases=5,
  all_reduces={
    'gradients': {'number': 1, 'bytes': 2_000_000},
    'other': {'number': 1, 'bytes': 4},
  },
  convolutions={'number': 4, 'by_fastest': {'channels': 3, 'batch': 1}},
  needed_flops=1.978e12,
  traffic_bytes=100_835_000_000,
)


def test_table():
  lines = compiling.table({'rows': [COMPILED, row(error='no')]}).splitlines()
  cells = [
    [cell.strip() for cell in line.strip('|').split('|')] for line in lines
  ]
  assert cells[2] == [
    *('h100:2', 'main_head', '4', 'bfloat16', '12', '1', '3', '5 of 5'),
    *('2', '2.0', '4', '75 %', '2.00', '30.10'),
  ]
  assert cells[3][:5] == [
    *('h100:2', 'main_head', '4', 'bfloat16', 'does not compile')
  ]
  assert len({len(line) for line in cells}) == 1


def test_bounds():
  chip = compile_targets.Chip('gpu', 1, 8, 10**9, 1e12, 1e11, bandwidth=1e9)
  counts = row(needed_flops=2e12, traffic_bytes=5 * 10**8)
  bounds = compiling.bound_seconds(counts, chip)
  assert bounds == {'arithmetic': 2.0, 'memory': 0.5}

  def arithmetic(**values):
    values = counts | {'needed_flops': None} | values
    return compiling.bound_seconds(values, chip)['arithmetic']

  assert arithmetic() == 3.0
  # Evaluation and attacks multiply in full float32.
  assert arithmetic(kind='attack', dtype='float32') == 30.0
  assert arithmetic(kind='evaluation', dtype='bfloat16') == 3.0
  # A training step multiplies float32 in TensorFloat-32, a TPU in bfloat16.
  assert arithmetic(dtype='float32') == 3.0


def test_peaks_in_float32():
  chips = compile_targets.CHIPS
  assert chips['h100'].float32_peak == 67e12
  assert chips['v5e'].float32_peak == pytest.approx(197e12 / 6)


def test_what_is_asked_for_twice_is_compiled_once():
  (target,) = compile_targets.parse_all(['h100:1', 'h100:1'])
  assert compiling.check_programs(['fab', 'square', 'fab']) == ('fab', 'square')
  jobs = compiling.jobs(
    *(tiny_run.get_config(), ('aggregator',), 8, ('float32', 'float32')),
    targets=[target],
    programs=('training',),
  )
  assert len(list(jobs)) == 1


def test_rows_that_are_there_are_not_compiled_again():
  config = tiny_run.get_config()
  target = compile_targets.parse('h100:2')
  jobs = list(
    compiling.jobs(
      config,
      ('main_head', 'aggregator'),
      8,
      ('float32', 'bfloat16'),
      targets=[target],
      programs=('training', 'fab'),
    )
  )
  assert [(job.kind, job.stage, job.config.model.dtype) for job in jobs] == [
    ('training', 'main_head', 'float32'),
    ('training', 'aggregator', 'float32'),
    ('training', 'main_head', 'bfloat16'),
    ('training', 'aggregator', 'bfloat16'),
    ('fab', '', 'float32'),
  ]
  fab = row(program='fab', kind='attack', dtype='float32')
  assert [compiling.is_of(row(), job) for job in jobs] == [
    *(False, False, True, False, False)
  ]
  assert [compiling.is_of(fab, job) for job in jobs] == [
    *(False, False, False, False, True)
  ]
  assert not any(compiling.is_of(row(batch_size=4), job) for job in jobs)
  assert not any(compiling.is_of(row(target='h100:1'), job) for job in jobs)


def test_errors_are_compiled_again():
  config = tiny_run.get_config()
  listed = list(
    compiling.jobs(
      *(config, ('main_head', 'second_head', 'aggregator'), 8, ('bfloat16',)),
      targets=[compile_targets.parse('h100:2')],
      programs=('training',),
    )
  )
  other = row(program='fab', error='no')
  done = [
    row(),
    row(program='second_head', error='no'),
    row(program='aggregator', error='no'),
    other,
  ]
  asked, seen = [], []

  def measure(job):
    asked.append(job.stage)
    error = {'error': 'still'} if job.stage == 'aggregator' else {}
    return row(program=job.stage, **error)

  rows = compiling.rows_of(
    listed, done, measure, lambda rows: seen.append(len(rows))
  )
  assert asked == ['second_head', 'aggregator']
  assert rows == [
    row(),
    other,
    row(program='second_head'),
    row(program='aggregator', error='still'),
  ]
  assert seen == [4, 4]
