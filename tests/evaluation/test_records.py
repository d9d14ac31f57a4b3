"""A record agrees with itself, or it is an error."""

import numpy as np
import pytest

from dhat_jax.attacks import balls
from dhat_jax.evaluation import broken
from dhat_jax.evaluation.records import (
  NO_CLASS,
  Record,
  cross_entropy,
  example_places,
  predicted,
)

LABELS = np.array([0, 1, 2, 0], np.int32)
LOGITS = {
  'main': np.array(
    [[2, 1, 0], [0, 3, 1], [1, 0, 0], [np.nan, 0, 0]], np.float32
  ),
  'second': np.eye(4, 3, dtype=np.float32),
}


def make(**more):
  return Record.of(LOGITS, LABELS, 'main', **more)


def test_robust_is_a_right_prediction():
  record = make()
  assert record.predictions['main'].tolist() == [0, 1, 0, NO_CLASS]
  assert record.robust.tolist() == [True, True, False, False]
  right = balls.is_right(LOGITS['main'], LABELS)
  np.testing.assert_array_equal(record.robust, right)
  # Transfer: another output is scored on the same images.
  assert record.scored('second', LABELS).tolist() == [True, True, True, True]
  assert record.scored('main', LABELS).tolist() == record.robust.tolist()


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_predict_nothing(value):
  logits = np.array([[0.0, value, 1.0]])
  assert predicted(logits).tolist() == [NO_CLASS]
  for label in range(3):
    assert not Record.of({'main': logits}, np.array([label]), 'main').robust[0]


def test_losses():
  losses = cross_entropy(LOGITS['main'][:2], LABELS[:2])
  expected = np.log(1 + np.exp(-1) + np.exp(-2))
  assert losses[0] == pytest.approx(expected)
  assert np.isnan(make().losses[3])


def test_predictions_of_the_attack_decide():
  record = make(predictions=np.array([1, 1, 2, 0]))
  assert record.robust.tolist() == [False, True, True, True]


def test_disagreement_is_an_error():
  record = make(flags={'clean': np.ones(4, bool), 'square': [1, 1, 0, 0]})
  assert list(record.flags) == ['clean', 'square']
  with pytest.raises(ValueError, match=r"flags of 'square'.*on 1 of 4"):
    make(flags={'square': np.array([1, 0, 0, 0], bool)})
  with pytest.raises(ValueError, match='expected 4 everywhere'):
    make(flags={'square': np.array([1, 1, 0], bool)})
  broken_by = np.array(['', '', 'square', ''])
  with pytest.raises(ValueError, match=r'`broken_by` and `robust` .*on 1 of 4'):
    make(per_image={'broken_by': broken_by})


def test_arrays_come_back():
  record = make(
    flags={'square': np.array([1, 1, 0, 0], bool)},
    per_image={
      'broken_by': np.array(['', '', 'clean', 'square']),
      'clean_predictions': np.array([0, 1, 0, 0], np.int32),
    },
    pictures=np.zeros((1, 2, 3, 3, 1), np.float16),
    picture_places=np.array([3], np.int32),
    differences=('few classes',),
    warnings=('odd',),
    examples=np.zeros((2, 3, 3, 1), np.float16),
    images_adv=np.zeros((4, 3, 3, 1)),
  )
  arrays = record.arrays()
  assert set(arrays) == {
    'schema_version',
    'robust',
    'losses',
    'main_predictions',
    'second_predictions',
    'flags/square',
    'table/broken_by',
    'table/clean_predictions',
    'pictures',
    'picture_places',
    'differences',
    'warnings',
    'examples',
  }
  # Labels of a whole split, of which the record is the beginning.
  labels = np.append(LABELS, 1)
  again = Record.from_arrays(arrays, labels, 'main')
  for key, value in again.arrays().items():
    np.testing.assert_array_equal(value, arrays[key])
  assert again.warnings == ('odd',)
  assert set(again.predictions) == {'main', 'second'}
  assert set(again.per_image) == {'broken_by', 'clean_predictions'}
  assert again.differences == ('few classes',)
  arrays['main_predictions'] = np.zeros(4, np.int32)
  with pytest.raises(ValueError, match='predictions and `robust` disagree'):
    Record.from_arrays(arrays, labels, 'main')
  del arrays['schema_version']
  with pytest.raises(ValueError, match='schema_version 1, expected 2'):
    Record.from_arrays(arrays, labels, 'main')


def test_example_places():
  assert example_places(3) == [0, 1, 2]
  assert example_places(101) == [0, 11, 22, 33, 44, 56, 67, 78, 89, 100]


def counts(flags, **per_image):
  """The counts of a record of four images."""
  flags = {name: np.array(values, bool) for name, values in flags.items()}
  robust = list(flags.values())[-1] if flags else np.ones(4, bool)
  record = Record(
    output='main',
    robust=robust,
    losses=np.zeros(4),
    predictions={'main': (~robust).astype(np.int32)},
    flags=flags,
    per_image=per_image,
  )
  record.check(np.zeros(4, np.int32))
  return broken.counts(record)


def test_counts_by_hand():
  flags = {
    'clean': [1, 1, 1, 0],
    'apgd-ce': [1, 1, 1, 0],
    'square': [1, 0, 0, 0],
  }
  expected = {'clean': 1, 'apgd-ce': 0, 'square': 2}
  table = np.array(['', 'square', 'square', 'clean'])
  assert counts(flags) == counts(flags, broken_by=table) == expected
  assert counts({}) == {}


def test_an_image_that_is_robust_again_counts_once():
  """As in the table: the last two of a randomised network."""
  flags = {
    'clean': [1, 1, 1, 0],
    'apgd-ce': [1, 0, 0, 1],
    'square': [1, 0, 1, 0],
  }
  table = np.array(['', 'apgd-ce', '', 'square'])
  counted = counts(flags, broken_by=table)
  assert counted == {'clean': 0, 'apgd-ce': 1, 'square': 1}
