"""What was not measured is a line with the command that measures it."""

import html
import json
import re
import shlex

import pytest

from dhat_jax import main as command
from dhat_jax.report import commands, read, sections
from tests.report import workdirs
from tests.report.evaluated import make, right
from tests.report.pages import page_of

RECORDS = {'main': {'clean': right(4), 'pgd_40': right(2, 2)}}


def missing_lines(text):
  """The lines at the end of a page, as text: {title: line}."""
  lines = re.findall(
    r'<li class="missing"><b>(.*?)</b>: (.*?)</li>', text, re.S
  )
  return {
    title: html.unescape(re.sub(r'<[^>]*>', '', line)).strip()
    for title, line in lines
  }


def test_lines_of_a_plain_run(tmp_path):
  make(tmp_path, RECORDS)
  lines = missing_lines(page_of(tmp_path))
  start = f'python -m dhat_jax.main --config=CONFIG --workdir={tmp_path} '
  option = f'{start}--mode=evaluate --config.evaluation.'
  assert lines['AutoAttack'] == (
    f'{option}attacks=\'("clean","pgd_40","autoattack")\''
  )
  assert lines['Accuracy against epsilon'] == (
    f"{option}sweep_epsilons_255='(0.0,12.75,25.5,51.0,76.5,102.0,204.0)'"
  )
  assert lines['Loss against attack steps'] == (
    f"{option}loss_steps='(0,1,2,5,10,20,50)'"
  )
  for title in ('Audit', 'What the aggregator learned'):
    assert lines[title] == 'the results hold no aggregator.'
  assert lines['Training'] == 'nothing is recorded.'


def test_each_line_is_one_section_that_is_not_shown(tmp_path):
  make(tmp_path, RECORDS)
  text = page_of(tmp_path)
  shown = re.findall(r'<h3 id=.*?>(.*?)</h3>', text)
  titles = {section.title for section in sections.SECTIONS}
  lines = missing_lines(text)
  assert 'AutoAttack' in lines
  assert sorted([*shown, *lines]) == sorted(titles)
  # After everything else.
  assert text.index('class="missing"') > text.rindex('<h3 id=')


def test_a_run_that_is_not_evaluated_resumes(tmp_path):
  (tmp_path / 'config.json').write_text('{"stages": ["main_head"]}')
  lines = missing_lines(page_of(tmp_path))
  assert lines['Evaluation'] == (
    f'python -m dhat_jax.main --config=CONFIG --workdir={tmp_path}'
  )
  assert lines['Audit'] == 'the run is not evaluated yet.'


def test_the_last_evaluations_own_options_stay(tmp_path):
  evaluation = {'attacks': ['clean', 'pgd_40'], 'audit': False, 'epsilon': 0.2}
  make(tmp_path, RECORDS, config={'evaluation': {**evaluation, 'audit': True}})
  (tmp_path / 'config.json').write_text(json.dumps({'evaluation': evaluation}))
  line = commands.loss_by_steps(read.load(str(tmp_path)))
  assert line.endswith(
    '--mode=evaluate --config.evaluation.audit=True '
    "--config.evaluation.loss_steps='(0,1,2,5,10,20,50)'"
  )


@pytest.mark.parametrize(
  'measure',
  [
    commands.train,
    commands.audit,
    commands.sweep,
    commands.loss_by_steps,
    commands.autoattack,
  ],
)
def test_commands_are_taken(measure, tmp_path):
  """The command line reads them, in a folder with a space too."""
  run = read.load(workdirs.make(tmp_path / 'my run'))
  words = shlex.split(measure(run).replace('CONFIG', 'configs/digits.py'))
  assert words[:3] == ['python', '-m', 'dhat_jax.main']
  values = command.parse(words[2:])
  assert values.workdir == str(tmp_path / 'my run')
  evaluation = values.config.evaluation
  if measure is commands.autoattack:
    assert evaluation.attacks == ('clean', 'pgd_2', 'autoattack')
  if measure is commands.audit:
    assert evaluation.audit is True
  if measure is commands.sweep:
    assert evaluation.sweep_epsilons_255[3] == pytest.approx(5.1)
