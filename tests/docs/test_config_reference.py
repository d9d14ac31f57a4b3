"""The reference of the config's keys is generated from the code."""

import subprocess
import sys

from tests.docs.pages import DOCS, ROOT

TOOL = ROOT / 'docs' / 'tools' / 'config_reference.py'
PAGE = (DOCS / 'config_reference.md').read_text()


def cells(key):
  """The cells of the one row that a key has."""
  (line,) = [
    line for line in PAGE.splitlines() if line.startswith(f'| `{key}` ')
  ]
  return [cell.strip() for cell in line.strip('|').split('|')]


def test_page_is_generated():
  # In a process of its own: other tests register parts.
  subprocess.run([sys.executable, TOOL, '--check'], check=True)


def test_a_number_with_a_unit():
  assert cells('<stage>.epochs')[1:4] == [
    'float',
    '`100.0 / 76.0 / 60.0`',
    'epochs',
  ]


def test_a_name_with_choices():
  kind, default, unit, _, choices = cells('model.dtype')[1:]
  assert (kind, default, unit) == ('str', '`float32`', '')
  assert choices == '`float32`, `bfloat16`'


def test_a_key_that_may_be_left_out():
  assert cells('model.aggregator_options')[1:3] == ['dict', '`{}`']
  assert cells('model.backbone_options')[1:3] == ['dict', '`{}`']
