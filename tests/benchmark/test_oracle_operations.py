"""The operations of a network are listed, and PyTorch computes the same."""

import numpy as np
import pytest

import dhat_jax
from dhat_jax.benchmark import operations
from dhat_jax.configs import digits

torch = pytest.importorskip('torch')

pytestmark = pytest.mark.oracle

SAME = ((1, 1), (1, 1))
# What a WRN-10-1 trunk and head have, at 32x32.
COUNTS = {
  '3x3, 3 to 16, 32x32': 1,
  '3x3, 16 to 16, 32x32': 2,
  'batch norm, ReLU, 16 channels, 32x32': 3,
  '1x1, stride 2, 16 to 32, 32x32': 1,
  '3x3, stride 2, 16 to 32, 32x32': 1,
  'batch norm, ReLU, 32 channels, 16x16': 2,
  '3x3, 32 to 32, 16x16': 1,
  '1x1, stride 2, 32 to 64, 16x16': 1,
  '3x3, stride 2, 32 to 64, 16x16': 1,
  'batch norm, ReLU, 64 channels, 8x8': 2,
  '3x3, 64 to 64, 8x8': 1,
}


def test_operations_of_a_network():
  net = dhat_jax.DualHeadNet(
    dhat_jax.WideResNet(10, 1), num_classes=10, outputs=('main',)
  )
  counts = operations.operations_of(net, (2, 32, 32, 3))
  assert {op.label: count for op, count in counts.items()} == COUNTS


@pytest.mark.parametrize(
  ('operation', 'passes'),
  [
    (
      operations.Operation((2, 8, 6, 3), (3, 3, 3, 4), 2, SAME),
      ['forward', 'inputs', 'kernel'],
    ),
    (operations.Operation((2, 4, 4, 5)), ['forward', 'both']),
  ],
)
def test_sides_agree(operation, passes):
  times = operations.compare(operation, repeats=1)
  assert list(times) == passes
  for sides in times.values():
    assert list(sides) == ['ours', 'torch']
    assert all(side['median'] > 0 for side in sides.values())


def test_padding_that_pytorch_does_not_have():
  uneven = operations.Operation((1, 5, 5, 2), (3, 3, 2, 2), 2, ((1, 1), (0, 0)))
  assert operations.compare(uneven, repeats=1)
  wrong = operations.Operation((1, 4, 4, 2), (2, 2, 2, 2), 2, ((1, 0), (1, 0)))
  message = r'^2x2, stride 2, 2 to 2, 4x4: got padding \(\(1, 0\), \(1, 0\)\)'
  with pytest.raises(ValueError, match=message):
    operations.compare(wrong, repeats=1)


def test_sides_that_differ_are_noticed():
  ours = {'forward': lambda x: 1.001 * x}
  array = np.ones((1, 2, 3, 4), np.float32)
  theirs = {'forward': lambda: torch.ones(1, 4, 2, 3)}
  with pytest.raises(ValueError, match=r'forward: the sides differ by 0\.001'):
    operations._paired(ours, [array], theirs)


@pytest.mark.parametrize('stage', ['main_head', 'aggregator'])
def test_table(stage, capsys):
  measured = operations.run(digits.get_config(), stage, 2, repeats=1)
  rows = operations.table(measured).splitlines()[2:]
  assert len(rows) == len(measured['rows'])
  assert all(row.count('|') == 11 for row in rows)
  assert measured['rows'][0]['operation'] in capsys.readouterr().out
