"""Which image fell to what, on the page."""

import re

import numpy as np
import pytest

from dhat_jax.report import broken, contents, headline, read, theme
from tests.report import workdirs
from tests.report.pages import FILTER, SCRIPT, check, page_of, plain


def cells(text):
  """The rows of the list of images, as plain text."""
  (table,) = re.findall(r'<table[^>]* data-filters.*?</table>', text, re.S)
  return [
    [plain(cell) for cell in re.findall(r'<t[hd].*?>(.*?)</t[hd]>', row)]
    for row in re.findall(r'<tr>(.*?)</tr>', table, re.S)
  ]


BEST = {
  'accuracy': 0.25,
  'autoattack': 0.5,
  'images': 4,
  'sentence': 'transfer_main breaks 1 image that AutoAttack left robust.',
}
LIST = """\
0|cat|yes|||cat|||1.5|
1|cat|no|wrong when clean||dog_&amp;_co|||-0.25|
2|dog_&amp;_co|no|apgd-t|towards cat (rank 2)|dog_&amp;_co|cat|0.02|0.5|-0.125
3|dog_&amp;_co|no|square|piece 5|dog_&amp;_co|cat|0.019|2|-0.0625
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('report') / 'one'
  workdirs.make_attacked(folder, BEST)
  return folder


@pytest.fixture(scope='module')
def text(folder):
  return page_of(folder)


def test_list_by_hand(text):
  header, *rows = cells(text)
  assert rows == [line.split('|') for line in LIST.splitlines()]
  assert [header[place] for place in (2, 3, 1)] == [
    'robust',
    'broken by',
    'class',
  ]
  assert 'class="sortable" data-filters="2 3 1"' in text
  assert 'All 4 images; also in evaluation/aggregated/autoattack.csv.' in text


def test_page_with_scripts_and_pictures(text, folder):
  assert len(check(text).images) == 3  # training, classes, AutoAttack
  assert SCRIPT.rstrip() in text
  assert FILTER.rstrip() in text
  # The menus are the script's: without it nothing is promised.
  assert '<select' not in text
  assert '<li class="missing"><b>AutoAttack' not in text
  assert (folder / 'report/one_first_images.png').exists()
  run = read.load(str(folder))
  figure = broken.first_images(
    run, 'aggregated', 'autoattack', theme.WIDE_INCHES
  )
  assert [axes.get_title() for axes in figure.axes[:2]] == [
    'apgd-t\nimage 2',
    'square\nimage 3',
  ]
  assert [axes.get_xlabel() for axes in figure.axes[4:]] == ['cat', 'cat']


def test_counts_by_hand(tmp_path):
  run = read.load(workdirs.make_attacked(tmp_path))
  expected = [
    ['wrong when clean', '1', '75.0'],
    ['apgd-t', '1', '50.0'],
    ['square', '1', '25.0'],
  ]
  assert contents.autoattack(run)[0].table.rows == expected
  # Older results have no counts, and older records no table.
  details = run.results['autoattack']['aggregated']['autoattack']
  del details['broken_by']
  path = tmp_path / 'evaluation' / 'aggregated' / 'autoattack.npz'
  np.savez(path, robust=np.array([1, 0, 0, 0], bool))
  counts, sentence = contents.autoattack(run)
  assert counts.table.rows == expected
  assert sentence.text.startswith('Which images these are is not known')


def test_a_record_of_other_results_is_not_listed(tmp_path):
  run = read.load(workdirs.make_attacked(tmp_path))
  run.results['accuracy']['aggregated']['autoattack'] = 0.5
  assert len(contents.autoattack(run)) == 2


def test_long_lists_are_cut_evenly():
  groups = np.array([''] * 5 + ['a'] * 5 + ['b'])
  assert broken.spread(groups, 5).tolist() == [0, 1, 5, 6, 10]
  assert broken.spread(groups, 100).tolist() == list(range(11))


def test_a_cut_list_says_so_and_stays_light(tmp_path):
  count = 10_000
  broken_by = np.array(['square', '', 'apgd-t', ''] * (count // 4))
  arrays = {
    name: np.resize(values, count) for name, values in workdirs.BROKEN.items()
  }
  arrays['broken_by'] = broken_by
  run = read.load(workdirs.make_attacked(tmp_path, **arrays))
  grid = contents.autoattack(run)[-1]
  rows = grid.table.rows
  assert len(rows) == broken.LONGEST
  assert f'{broken.LONGEST} of 10000 images: the first ones of' in grid.caption
  assert sum(len(cell) for row in rows for cell in row) < 100 * broken.LONGEST


def test_best_known_accuracy_stands_at_the_top(text):
  text = plain(text)
  head = text[: text.index('<nav')]
  assert '<b>Best known accuracy: 25.0 %.</b>' in head
  assert (
    'All attacks together leave the aggregated output 25.0 points less than '
    'AutoAttack alone, on 4 images: transfer_main breaks 1 image that '
    'AutoAttack left robust.'
  ) in head


@pytest.mark.parametrize('best', [None, {**BEST, 'accuracy': 0.5}])
def test_nothing_is_said_where_autoattack_is_the_strongest(tmp_path, best):
  run = read.load(workdirs.make_attacked(tmp_path, best))
  assert headline.best_known(run) is None
