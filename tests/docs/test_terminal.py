"""README's terminal shows what a terminal shows of a log."""

import runpy
from xml.etree import ElementTree

import pytest

from tests.docs.pages import ROOT, commands

TOOL = runpy.run_path(str(ROOT / 'docs' / 'tools' / 'terminal.py'))
LOG = (
  'WARNING: All log messages before absl::InitializeLog() is called\n'
  'I0000 00:00:1795.02 5654 cudart_stub.cc:31] Could not find cuda drivers\n'
  'main:   0%|    | 0/2\rmain:  50%|##  | 1/2\rmain: 100%|####| 2/2\n'
  '\n'
  'clean  <90>'
)


def test_the_last_state_of_each_line_stays():
  assert TOOL['last_states'](LOG) == ['main: 100%|####| 2/2', '', 'clean  <90>']


def test_picture_has_every_line_with_its_spaces():
  root = ElementTree.fromstring(TOOL['picture'](TOOL['last_states'](LOG)))
  texts = [element.text for element in root.iter() if 'text' in element.tag]
  assert texts == ['main:\xa0100%|####|\xa02/2', 'clean\xa0\xa0<90>']


def test_a_line_that_does_not_fit_is_an_error():
  with pytest.raises(ValueError, match='line of 119 characters, at most 118'):
    TOOL['picture'](['x' * 119])


def test_the_command_is_that_of_readme():
  assert TOOL['COMMAND'].split() in list(commands(ROOT / 'README.md'))
