"""Which image fell to what: rows by hand, and of a real result."""

import csv

import numpy as np
import pytest

from dhat_jax.attacks.autoattack import image_table
from tests.attacks import linear

# Robust, wrong from the start, and broken by three kinds of passes.
ARRAYS = {
  'labels': np.array([3, 0, 1, 2, 4], np.int32),
  'clean_predictions': np.array([3, 1, 1, 2, 4], np.int32),
  'predictions': np.array([3, 1, 0, 4, 1], np.int32),
  'broken_by': np.array(['', 'clean', 'apgd-t', 'square', 'apgd-ce']),
  'broken_in': np.array([-1, -1, 3, 7, 0], np.int32),
  'targets': np.array([-1, -1, 2, -1, -1], np.int32),
  'changes': np.array([0, 0, 0.25, 0.5, 0.2], np.float32),
  'clean_margins': np.array([4, -1, 2, 3, 1], np.float32),
  'margins': np.array([4, -1, -0.5, -2, -3], np.float32),
}
CSV = """\
place,label,clean_prediction,attacked_prediction,robust,broken_by,\
target_class,target_rank,restart,piece,change,clean_margin,attacked_margin
0,3,3,,True,,,,,,,4,
1,0,1,,False,clean,,,,,,-1,
2,1,1,0,False,apgd-t,2,3,,,0.25,2,-0.5
3,2,2,4,False,square,,,,7,0.5,3,-2
4,4,4,1,False,apgd-ce,,,0,,0.2,1,-3
"""


def test_rows_by_hand(tmp_path):
  rows = image_table.rows(ARRAYS)
  assert {tuple(row) for row in rows} == {image_table.COLUMNS}
  assert rows[2] == {
    'place': 2,
    'label': 1,
    'clean_prediction': 1,
    'attacked_prediction': 0,
    'robust': False,
    'broken_by': 'apgd-t',
    'target_class': 2,
    'target_rank': 3,
    'restart': None,
    'piece': None,
    'change': 0.25,
    'clean_margin': 2.0,
    'attacked_margin': -0.5,
  }
  image_table.write_csv(tmp_path / 'new' / 'table.csv', rows)
  assert (tmp_path / 'new' / 'table.csv').read_text() == CSV


def test_targets_by_hand():
  ranking = np.array([[4, 0, 2], [1, 2, 0], [2, 1, 0]])
  broken_by = np.array(['fab-t', 'square', 'apgd-t'])
  broken_in = np.array([2, 2, 3])
  targets = image_table.broken_targets(
    broken_by, broken_in, {'fab-t': ranking, 'apgd-t': ranking[:, ::-1]}
  )
  assert targets.tolist() == [0, -1, 2]
  assert targets.dtype == np.int32


@pytest.mark.parametrize(('norm', 'expected'), [('linf', 0.75), ('l2', 1.25)])
def test_changes_by_hand(norm, expected):
  images = np.zeros((2, 1, 2, 1), np.float32)
  images_adv = np.array([[0, 0], [-0.75, 1.0]], np.float32)
  if norm == 'linf':
    images_adv[1, 1] = 0.5
  got = image_table.changes(images, images_adv.reshape(images.shape), norm)
  assert got.tolist() == [0, expected]


def test_table_of_a_result(standard, tmp_path):
  """Its rows agree with the network and the images, attacked or not."""
  images, labels = linear.problem()
  clean = np.asarray(linear.logits_of(images))
  attacked = np.asarray(linear.logits_of(standard.images_adv))
  order = np.argsort(-clean, axis=1)
  table = standard.table
  assert [row['place'] for row in table] == list(range(len(labels)))
  assert {'apgd-ce', 'clean', None} <= {row['broken_by'] for row in table}
  for place, row in enumerate(table):
    assert row['label'] == labels[place]
    assert row['clean_prediction'] == clean[place].argmax()
    assert row['robust'] == bool(standard.robust[place])
    if row['broken_by'] in (None, 'clean'):
      assert row['change'] is row['attacked_margin'] is row['restart'] is None
      assert row['attacked_prediction'] is None
      continue
    assert row['attacked_prediction'] == attacked[place].argmax()
    assert row['attacked_margin'] < 0 < row['clean_margin']
    change = np.abs(standard.images_adv[place] - images[place]).max()
    assert row['change'] == pytest.approx(change)
    assert 0 < change <= 0.01 + 1e-6
    rank, target = row['target_rank'], row['target_class']
    if rank is not None:
      assert target == order[place, rank - 1] != labels[place]
  standard.write_csv(tmp_path / 'table.csv')
  with open(tmp_path / 'table.csv', encoding='utf-8') as file:
    read = list(csv.DictReader(file))
  assert [row['broken_by'] for row in read] == standard.broken_by.tolist()


def test_a_targeted_attack_names_its_class():
  result = linear.attack('fab-t', epsilon=0.02)
  images, _ = linear.problem()
  order = np.argsort(-np.asarray(linear.logits_of(images)), axis=1)
  rows = [row for row in result.table if row['broken_by'] == 'fab-t']
  assert rows
  assert rows[-1]['restart'] is rows[-1]['piece'] is None
  for row in rows:
    assert row['target_class'] == order[row['place'], row['target_rank'] - 1]
