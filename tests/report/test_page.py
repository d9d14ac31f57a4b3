"""The page, its figures and its tables, of whole workdirs."""

import configparser
import pathlib
import re
import subprocess
import sys

import pytest

import dhat_jax
from dhat_jax.report import __main__ as command
from dhat_jax.report import contents, page, plots, read, theme
from dhat_jax.report.write import write
from tests.report import workdirs
from tests.report.pages import SCRIPT, check, page_of, plain

PACKAGE = pathlib.Path(dhat_jax.__file__).parent


def test_whole_workdir(tmp_path):
  text = page_of(workdirs.make(tmp_path / 'one'))
  assert len(check(text).images) == 7
  assert 'script' not in check(text).tags
  assert 'Side by side' not in text
  # AutoAttack alone was not run.
  assert text.count('class="missing"') == 1
  assert 'Do not trust these accuracies: the audit raised 1 red flag' in text
  assert 'It found &lt;more&gt;.' in text
  # Tables to copy.
  assert re.search(r'\| output +\| +clean \|', text)
  assert r'\begin{tabular}' in text
  files = sorted(path.name for path in (tmp_path / 'one/report').iterdir())
  assert 'one_accuracy.csv' in files
  assert 'one_accuracy.tex' in files
  assert 'comparison.md' in files
  assert sum(name.endswith('.png') for name in files) == 7
  for name in files:
    if name.endswith('.png'):
      data = (tmp_path / 'one/report' / name).read_bytes()
      assert data.startswith(b'\x89PNG')


def test_folders_of_one_name(tmp_path):
  text = page_of(
    workdirs.make(tmp_path / 'a' / 'run'),
    workdirs.make(tmp_path / 'b' / 'run', seed=1, shift=-0.02),
  )
  assert 'run_2' in text
  first, second = (
    (tmp_path / f'a/run/report/{name}_accuracy.csv').read_text()
    for name in ('run', 'run_2')
  )
  assert 'main head,75.0,50.0' in first
  assert 'main head,73.0,48.0' in second


@pytest.mark.parametrize(
  ('text', 'lines'),
  [
    ('64.0 (+1.0)', ['64.0 (+1.0)']),
    ('64.0 (-1.0)', ['64.0 (-1.0)']),
    ('64.0 (\u22121.0)', ['64.0 (\u22121.0)']),
    ('8 (255)', ['8 (255)']),
    (
      'autoattack(n_iter=20,images=100)',
      ['autoattack(', 'n_iter=20,', 'images=100)'],
    ),
    ('AutoAttack', ['Auto', 'Attack']),
  ],
)
def test_where_a_cell_may_break(text, lines):
  assert str(page._breakable(text)).split('<wbr>') == lines


def test_one_record_is_a_point(tmp_path):
  run = read.load(workdirs.make(tmp_path))
  run.records = run.records[:1]
  axes = plots.curves(run, theme.WIDE_INCHES).axes
  assert [line.get_marker() for line in axes[0].lines] == ['o']
  assert [line.get_marker() for line in axes[1].lines] == ['o', 'o']


def test_cost_and_agreement(tmp_path):
  run = read.load(workdirs.make(tmp_path))
  (cost,) = contents.cost(run)
  assert cost.table.rows == [
    ['main_head', '10', '200', '4.0'],
    ['aggregator', '', '200', '4.0'],
    ['evaluation', '2', '', ''],
  ]
  assert cost.table.alignments == ['left', 'right', 'right', 'right']
  (agreement,) = contents.agreement(run)
  assert agreement.table.rows[1] == ['clean', 'only the main head right', *'11']
  run.results['heads']['fitted'] = {'scale': 5.0, 'weight': 0.998752}
  _, fitted = contents.agreement(run)
  assert fitted.table.header == ['scale', 'weight']
  assert fitted.table.rows == [['5', '0.99875']]


def test_side_by_side(tmp_path):
  text = page_of(
    workdirs.make(tmp_path / 'one'),
    workdirs.make(tmp_path / 'two', seed=1, shift=-0.02),
  )
  assert len(check(text).images) == 14
  assert '74.0 ± 1.4' in plain(text)
  assert SCRIPT.rstrip() in text
  assert text.count('class="sortable"') == 3
  # The buttons and the hint are the script's: without it nothing is promised.
  assert '<button' not in text
  assert '<span class="hint" hidden>Click on a heading' in text
  assert not (tmp_path / 'two/report.html').exists()


def test_another_folder_to_write_to(tmp_path):
  directory = workdirs.make(tmp_path / 'one')
  path = write([directory], str(tmp_path / 'new' / 'out'))
  assert path == str(tmp_path / 'new/out/report.html')
  assert (tmp_path / 'new/out/report/one_accuracy.csv').exists()
  assert not (tmp_path / 'one/report.html').exists()


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], '--workdir: got nothing'),
    (['--workdir=/no/such'], "--workdir: got '/no/such', which is no folder"),
    (['surplus'], "arguments: got ['surplus']"),
    (['--colour=red'], 'colour'),
  ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
  with pytest.raises(SystemExit) as stopped:
    command.main(['report', *arguments])
  assert stopped.value.code == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ')
  assert error.count('\n') == 1
  assert message in error


def test_no_jax(tmp_path):
  """Neither JAX nor an accelerator is needed to look at a run."""
  directory = workdirs.make(tmp_path)
  code = (
    'import sys\n'
    'from dhat_jax.report import __main__ as command\n'
    f'command.main(["report", "--workdir={directory}"])\n'
    'assert "jax" not in sys.modules\n'
    'assert "flax" not in sys.modules\n'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


def test_templates_are_installed():
  setup = configparser.ConfigParser()
  setup.read(PACKAGE.parent / 'setup.cfg')
  patterns = setup['options.package_data']['dhat_jax.report'].split()
  folder = PACKAGE / 'report'
  installed = {path for pattern in patterns for path in folder.glob(pattern)}
  assert installed == set((folder / 'templates').iterdir())
