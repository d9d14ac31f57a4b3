import numpy as np
import pytest

from dhat_jax.benchmark import evaluation
from dhat_jax.configs import digits
from tests.helpers import tiny_run


def small(module, **overrides):
  config = module.get_config(**overrides)
  config.evaluation.attacks = ('clean', 'fgsm')
  config.evaluation.batch_size = 16
  return config


def test_records_of_both_evaluations(tmp_path):
  row = evaluation.evaluate_twice(small(tiny_run), 20, str(tmp_path))
  assert row['images'] == 20
  assert row['images_mib'] == 20 * 8 * 8 / 2**20
  # The kernel counts to a few pages.
  assert row['second_peak_mib'] > row['first_peak_mib'] - 1 > 100
  assert 0 < row['second_seconds'] < row['first_seconds']
  first, second = (
    {
      p.relative_to(tmp_path / turn): p
      for p in (tmp_path / turn).rglob('*.npz')
    }
    for turn in ('first', 'second')
  )
  # Two attacks on each of four outputs, and the influence of the heads.
  assert row['records'] == len(first) == len(second) == 9
  assert row['records_mib'] * 2**20 == pytest.approx(
    sum(path.stat().st_size for path in second.values())
  )
  for name, path in first.items():
    with np.load(path) as one, np.load(second[name]) as other:
      for key in one:
        np.testing.assert_array_equal(one[key], other[key])
      if name.stem == 'clean' and name.parent.name == 'aggregated':
        assert one['robust'].shape == (20,)
        assert one['robust'].all()  # so that every image is attacked


@pytest.mark.slow
def test_a_tenth_and_all():
  lines, config = [], small(digits)
  config.evaluation.attacks = ('clean',)
  measured = evaluation.run(config, 20, report=lines.append)
  tenth, whole = measured['rows']
  assert (tenth['images'], whole['images']) == (2, 20)
  assert lines[1].startswith('20 images: ')
  assert '\n| 20 ' in evaluation.table(measured)


def test_mistakes_of_the_config(tmp_path):
  bad = small(tiny_run)
  bad.evaluation.attacks = ('nothing',)
  with pytest.raises(ValueError, match="got 'nothing', choices are"):
    evaluation.evaluate_twice(bad, 20, str(tmp_path))
  assert not list(tmp_path.iterdir())
