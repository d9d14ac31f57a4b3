"""Several runs side by side: the sentence, and the tables that sort."""

from dhat_jax.report import comparison
from tests.report.evaluated import make, right
from tests.report.pages import check, page_of


def runs(folder, *robust, **results):
  """Runs a, b, ...: seeds of one config, with so many of 100 images robust."""
  clean = right(90, 10)
  return [
    make(
      folder / 'abc'[place],
      {
        'main': {'clean': clean, 'pgd_40': right(main, 100 - main)},
        'aggregated': {'clean': clean, 'pgd_40': right(dual, 100 - dual)},
      },
      config={'seed': place, 'model': 'same'},
      **results,
    )
    for place, (main, dual) in enumerate(robust)
  ]


def test_four_numbers_of_seeds(tmp_path):
  table = comparison.four_numbers(runs(tmp_path, (40, 50), (44, 48)))
  assert table.header == [
    'run',
    'output',
    'clean',
    'PGD-40',
    'AutoAttack',
    'worst case',
    'red flags',
  ]
  # 42 ± sqrt(8), 49 ± sqrt(2).
  assert table.rows == [
    ['a, b', 'main head', '90.0 ± 0.0', '42.0 ± 2.8', '', '42.0 ± 2.8', ''],
    ['a, b', 'aggregated', '90.0 ± 0.0', '49.0 ± 1.4', '', '49.0 ± 1.4', ''],
  ]


def test_gains_over_seeds(tmp_path):
  """Gains 10 and 4: 7 with Student's 12.706 times 3."""
  *_, gains, _ = comparison.blocks(runs(tmp_path, (40, 50), (44, 48)))
  assert gains.table.rows == [
    ['a, b', 'clean', '+0.0', '+0.0 to +0.0'],
    ['a, b', 'PGD-40', '+7.0', '-31.1 to +45.1'],
    ['a, b', 'worst case', '+7.0', '-31.1 to +45.1'],
  ]


def test_verdict_over_seeds(tmp_path):
  few = comparison.over_seeds(runs(tmp_path / 'few', (40, 50), (44, 48)))
  assert few == [
    'Over 2 seeds (a, b), the aggregated output and the main head do not '
    'differ beyond noise: +7.0 points in the worst case (95 % interval -31.1 '
    'to +45.1).'
  ]
  # Gains 9, 10, 11: 10 with Student's 4.303 times 1 / sqrt(3).
  three = runs(tmp_path / 'three', (40, 49), (40, 50), (40, 51))
  assert comparison.over_seeds(three) == [
    'Over 3 seeds (a, b, c), the aggregated output is more robust than the '
    'main head: +10.0 points in the worst case (95 % interval +7.5 to +12.5).'
  ]
  assert comparison.over_seeds(three[:1]) == []


def test_one_seed_has_no_gains(tmp_path):
  captions = [
    getattr(block, 'file_name', '')
    for block in comparison.blocks(runs(tmp_path, (40, 50)))
  ]
  assert 'gains' not in captions
  assert 'comparison' in captions


def test_the_highest_worst_case(tmp_path):
  assert comparison.best(runs(tmp_path, (40, 50), (44, 49))) == (
    'Highest worst case: 49.5 %, the aggregated output of a, b.'
  )


def test_other_attacks_are_not_compared(tmp_path):
  (first,) = runs(tmp_path, (40, 50))
  flags = {'clean': right(90, 10), 'autoattack': right(30, 70)}
  other = make(tmp_path / 'other', {'main': flags}, epsilon=0.1)
  assert comparison.best([first, other]) == (
    'These runs differ in epsilon and attacks: their worst cases are not '
    'comparable.'
  )


def test_red_flags_and_failed_checks_come_first(tmp_path):
  audit = {'flags': [{'name': 'square', 'sentence': 'x'}], 'worst_case': 0.1}
  (flagged,) = runs(tmp_path / 'flagged', (60, 70), audit=audit)
  sweep = {'main': {'8/255': 0.2, '16/255': 0.5}}
  (failed,) = runs(tmp_path / 'failed', (60, 70), sweep=sweep)
  failed.name = 'b'
  (sound,) = runs(tmp_path / 'sound', (60, 70))
  first, *_ = comparison.blocks([sound, flagged, failed])
  assert first.is_flag
  assert first.text == (
    'Do not trust the accuracies of a, b: the audit raised red flags or sanity '
    'checks failed, see below.'
  )
  assert comparison.distrusted([sound]) == []
  rows = comparison.four_numbers([flagged]).rows
  assert [row[-1] for row in rows] == ['1', '1']


def test_no_results_yet(tmp_path):
  for name in ('one', 'two'):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'config.json').write_text('{"stages": ["main_head"]}')
  text = page_of(tmp_path / 'one', tmp_path / 'two')
  assert 'None of the runs has results yet.' in text
  assert 'script' not in check(text).tags
