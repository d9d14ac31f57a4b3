import re

import pytest

from dhat_jax.report import contents, read, tables
from dhat_jax.report.tables import Table
from tests.report import workdirs


@pytest.fixture
def run(tmp_path):
  return read.load(workdirs.make(tmp_path / 'one'))


def test_differences_to_the_main_head(run):
  table = tables.with_differences(run)
  assert table.header == ['output', 'clean', 'pgd_2', 'worst case']
  assert table.rows == [
    ['main head', '75.0', '50.0', '25.0'],
    ['second head', '75.0 (+0.0)', '25.0 (-25.0)', '25.0 (+0.0)'],
    ['mean of the heads', '75.0 (+0.0)', '50.0 (+0.0)', '25.0 (+0.0)'],
    ['aggregated', '100.0 (+25.0)', '25.0 (-25.0)', '25.0 (+0.0)'],
  ]


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('worst_case_images', {'main': 8, 'second': 8, 'mean': 8, 'aggregated': 3}),
    ('accuracy', {'aggregated': {'clean': 1.0, 'pgd_2': 0.25, 'cw_2': 0.25}}),
  ],
)
def test_worst_cases_of_other_images_or_attacks_are_not_compared(
  run, key, value
):
  run.results[key] = {**run.results.get(key, {}), **value}
  table = tables.with_differences(run)
  rows = [dict(zip(table.header, row, strict=True)) for row in table.rows]
  assert [row['worst case'] for row in rows[-2:]] == ['25.0 (+0.0)', '25.0']


def test_randomised_networks_show_the_mean_and_the_worst(run):
  assert tables.randomized(run) is None
  numbers = {'worst': 0.25, 'mean': 0.6, 'spread': 0.031}
  run.results['randomized'] = {
    'samples': 4,
    'accuracy': {'main': {'clean': numbers}, 'aggregated': {}},
  }
  table = tables.randomized(run)
  assert table.header == ['attack', 'main head', 'aggregated']
  ((attack, main, other),) = table.rows
  assert (attack, main) == ('clean', '60.0 ± 3.1 (worst 25.0)')
  assert other == tables.percent(None)
  text = '\n'.join(map(str, contents.accuracy(run)))
  assert 'the mean of 4 evaluations' in text


def test_mean_and_deviation():
  # 10, 20, 40 %: mean 23.33, deviation sqrt((177.8 + 11.1 + 277.8) / 2).
  assert tables.mean_and_deviation([0.1, 0.2, 0.4]) == '23.3 ± 15.3'
  assert tables.mean_and_deviation([0.5]) == '50.0'


def test_seeds_share_a_row(tmp_path, run):
  second = read.load(workdirs.make(tmp_path / 'two', seed=1, shift=-0.02))
  other = read.load(workdirs.make(tmp_path / 'other'))
  other.config['model'] = {'backbone': 'resnet18'}
  table = tables.comparison([run, other, second])
  assert table.header[:3] == ['run', 'output', 'seeds']
  assert len(table.rows) == 8
  accuracies = ['74.0 ± 1.4', '49.0 ± 1.4', '24.0 ± 1.4']
  assert table.rows[0] == ['one, two', 'main head', '2', *accuracies]
  assert table.rows[4] == ['other', 'main head', '1', '75.0', '50.0', '25.0']
  # Evaluated again with another epsilon: another row.
  second.results['config'] = {**second.config, 'evaluation': {'epsilon': 1.0}}
  assert len(tables.comparison([run, other, second]).rows) == 12


def test_formats():
  table = Table(['a_b', 'x'], [['50 % & | <', '1.0 ± 0.5'], ['c', '']])
  assert tables.to_csv(table) == 'a_b,x\n50 % & | <,1.0 ± 0.5\nc,\n'
  markdown = tables.to_markdown(table)
  assert [line.split() for line in markdown.splitlines()] == [
    ['|', 'a_b', '|', 'x', '|'],
    [markdown.splitlines()[1]],
    ['|', '50', '%', '&', '\\|', '&lt;', '|', '1.0', '±', '0.5', '|'],
    ['|', 'c', '|', '|'],
  ]
  assert re.fullmatch(r'\|:-+\|-+:\|', markdown.splitlines()[1])
  assert re.sub(' +', ' ', tables.to_latex(table)) == (
    '\\begin{tabular}{lr}\n\\toprule\n a\\_b & x \\\\\n\\midrule\n'
    ' 50 \\% \\& | \\ensuremath{<} & 1.0 $\\pm$ 0.5 \\\\\n c & \\\\\n'
    '\\bottomrule\n\\end{tabular}\n'
  )


def test_cells_stay_as_they_are():
  """No format takes text for a number, or a number for another."""
  cells = ['1e3', '007', '96.0', '-', '+0.0', '1_000']
  table = Table(['name', 'x'], [['a', cell] for cell in cells])
  for format_table in (tables.to_csv, tables.to_markdown):
    assert all(cell in format_table(table) for cell in cells)
  latex = tables.to_latex(table)
  assert all(cell.replace('_', r'\_') in latex for cell in cells)


def test_latex_commands_are_escaped():
  table = Table(['x'], [[r'\a{b}~^$#']])
  assert r'\textbackslash{}a\{b\}\textasciitilde{}\^{}\$\#' in tables.to_latex(
    table
  )
