"""The comparison with pyautoattack, on a tiny budget."""

import numpy as np
import pytest

from dhat_jax.configs import digits

pytest.importorskip('torch')
pytest.importorskip('pyautoattack')

from dhat_jax.benchmark import autoattack, autoattack_sides

pytestmark = pytest.mark.oracle


def test_both_sides_do_all_the_work(capsys):
  found = autoattack.run(
    digits.get_config(), None, 6, n_iter=2, n_queries=5, repeats=2
  )
  assert [row['attack'] for row in found['rows']] == [
    *('apgd-ce', 'apgd-t', 'fab-t', 'square', 'standard')
  ]
  for row in found['rows']:
    assert len(row['ours']['all']) == len(row['theirs']['all']) == 2
    assert row['ratio'] == pytest.approx(
      row['theirs']['median'] / row['ours']['median']
    )
    assert row['compile_seconds'] > 0
    assert row['robust'] == {'ours': 6, 'theirs': 6}
  row = found['rows'][1]
  assert row['slots'] == 9 * 6  # one batch per target class
  assert row['slots_filled'] == 1
  assert 'fab-t: pyautoattack' in capsys.readouterr().out
  assert '| standard |' in autoattack.table(found)


def test_other_weights_are_noticed(monkeypatch):
  problem = autoattack_sides.make_problem(digits.get_config(), None, 3)
  autoattack_sides.make_torch_twin(problem)
  convert = autoattack_sides.convert.to_torch

  def broken(*args):
    return {
      key: np.array(v + 0.1, v.dtype) for key, v in convert(*args).items()
    }

  monkeypatch.setattr(autoattack_sides.convert, 'to_torch', broken)
  with pytest.raises(ValueError, match='networks are not the same'):
    autoattack_sides.make_torch_twin(problem)
