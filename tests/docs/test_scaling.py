"""What docs/tools/scaling.py computes with is measured, compiled or assumed."""

import json
import re
import sys

import pytest

from tests.docs.pages import DOCS

sys.path.insert(0, str(DOCS / 'tools'))
import scaling_model as model
import scaling_sources as sources

STEP = sources.Step('wrn34_10', 'main_head', operations=360e9)


def compiled_row(images, devices, **changes):
  """A row of `--what=compile`."""
  return {
    'target': f'h100:{devices}',
    'program': 'main_head',
    'kind': 'training',
    'batch_size': images * devices,
    'devices': devices,
    'dtype': 'bfloat16',
    'needed_flops': 360e9 * images,
    'memory': {'total': 1e9 + 2e7 * images},
    'all_reduces': {
      'gradients': {'number': 1, 'bytes': 100},
      'batch norm': {'number': 39, 'bytes': 20},
    },
    'traffic_bytes': 3.35e9 * images,  # a millisecond an image
    **changes,
  }


def largest_row(images, size, **changes):
  """A row of `--what=largest`."""
  return {
    'target': 'h100:1',
    'backbone': 'wrn34_10',
    'stage': 'main_head',
    'dtype': 'bfloat16',
    'batch_size': images,
    'bytes': size,
    **changes,
  }


def speed_row(batch_size, rate, **changes):
  """A row of `experiments/accelerator.py speed`."""
  return {
    'device': 'NVIDIA H100 80GB HBM3',
    'network': 'wrn34_10',
    'stage': 'main_head',
    'dtype': 'bfloat16',
    'batch_size': batch_size,
    'devices': 1,
    'images_per_second': rate,
    **changes,
  }


OTHERS = [
  {'dtype': 'float32'},
  {'stage': 'second_head'},
  {'network': 'resnet18'},
  {'device': 'TPU v5 lite'},
]


def test_rate_is_measured_or_assumed():
  def rate(rows, images=128):
    return sources.rate(rows, STEP, 'NVIDIA H100.*', images, peak=1e15)

  others = [speed_row(128, 9, **other) for other in OTHERS]
  assert rate(others) == sources.Figure(0.4e15, 'a')
  rows = [*others, speed_row(128, 1000), speed_row(512, 3000, devices=2)]
  assert rate(rows) == sources.Figure(1000 * 360e9, 'm')
  assert rate(rows, images=16) == sources.Figure(1000 * 360e9, 'm')
  assert rate(rows, images=200) == sources.Figure(1500 * 360e9, 'm')


def test_all_reduces_are_those_of_several_devices():
  others = [
    compiled_row(128, 1),
    compiled_row(128, 2, dtype='float32'),
    compiled_row(128, 2, program='second_head'),
    compiled_row(128, 2, needed_flops=361e9 * 128),  # another network
    largest_row(128, 5),
  ]
  assert sources.all_reduces(others, STEP, 'h100') is None
  rows = [*others, compiled_row(64, 2)]
  assert sources.all_reduces(rows, STEP, 'h100') == (40, 120)
  assert sources.all_reduces(rows, STEP, 'v5e') is None


def test_memory_is_compiled_or_on_a_line():
  def memory(rows, images, chip='h100'):
    return sources.memory_bytes(rows, STEP, chip, images)

  rows = [compiled_row(128, 2), largest_row(128, 7, backbone='wrn28_10')]
  assert memory(rows, 128) == sources.Figure(1e9 + 2e7 * 128, 'c')
  assert memory(rows, 64) is None
  rows += [largest_row(256, 1e9 + 2e7 * 256), largest_row(9999, None)]
  for images in (16, 192, 512):
    figure = memory(rows, images)
    assert figure.source == 'c'
    assert figure.value == pytest.approx(1e9 + 2e7 * images)
  assert memory(rows, 128, 'v5e') is None


def test_traffic_is_in_proportion_to_the_images():
  rows = [compiled_row(128, 2), largest_row(64, 5)]
  figure = sources.traffic_seconds(rows, STEP, 'h100', 32)
  assert figure.source == 'c'
  assert figure.value == pytest.approx(0.032)
  assert sources.traffic_seconds(rows, STEP, 'v6e', 32) is None
  assert sources.traffic_seconds(rows, STEP, 'h200', 32) is None


def test_steps_that_compute_twice_do_not_count():
  rows = [compiled_row(128, 1, remat=True)]
  assert sources.traffic_seconds(rows, STEP, 'h100', 32) is None
  assert sources.memory_bytes(rows, STEP, 'h100', 128) is None
  rows.append(compiled_row(128, 1, remat=False))
  assert sources.memory_bytes(rows, STEP, 'h100', 128).source == 'c'
  # The step of docs/results/compile_remat.json is not among them.
  totals = {
    row['memory']['total'] for row in model.compiled_rows() if 'memory' in row
  }
  (remat,) = sources.read_rows('compile_remat.json')
  assert remat['memory']['total'] not in totals


def test_the_weakest_source_counts():
  def weakest(marks):
    return sources.weakest([sources.Figure(1, mark) for mark in marks])

  assert [weakest(marks) for marks in ('mcm', 'cac', 'mm')] == ['c', 'a', 'm']


def test_rows_of_documents_without_errors(tmp_path):
  rows = [{'item': 'a'}, {'item': 'b', 'error': 'too large'}]
  document = {
    'schema_version': 2,
    'kind': 'benchmark',
    'machine': {'device': 'NVIDIA H100'},
    'rows': rows,
  }
  (tmp_path / 'speed_1.json').write_text(json.dumps(document))
  (tmp_path / 'other.json').write_text('{')
  assert sources.read_rows('speed*.json', tmp_path) == [
    {'device': 'NVIDIA H100', 'item': 'a'}
  ]


@pytest.mark.parametrize(
  ('kind', 'chip'),
  [
    ('NVIDIA H100 80GB HBM3', 'h100'),
    ('NVIDIA H200', 'h200'),
    ('TPU v5 lite', 'v5e'),
    ('TPU v5e', 'v5e'),
    ('TPU v5', 'v5p'),
    ('TPU v5p', 'v5p'),
    ('TPU v6 lite', 'v6e'),
  ],
)
def test_accelerators_know_their_devices(kind, chip):
  found = [
    each.chip for each in model.ACCELERATORS if re.fullmatch(each.device, kind)
  ]
  assert found == [chip]


def test_reductions_of_a_ring():
  """By hand: 2 7/8 of the bytes over the link, and the latency of each."""
  cost = model.Cost(STEP, 100, 46_000_000, 50_000_000, norms=4, channels=1000)
  h100 = model.ACCELERATORS[0]
  seconds = 2 * 7 / 8 * (4 * 46_008_000) / 50e9 + 18 * 20e-6
  figure = model.reduce_seconds(cost, h100, 8)
  assert figure.value == pytest.approx(seconds)
  assert model.reduce_seconds(cost, h100, 1).value == 0
