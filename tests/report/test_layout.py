"""What lets a page be read on a phone, in the dark, and by a screen reader."""

import re

import matplotlib
import numpy as np
import pytest

from dhat_jax.report import examples, plots, read, theme
from dhat_jax.report.contents import picture
from dhat_jax.report.sections import SECTIONS
from tests.report import workdirs
from tests.report.pages import TEMPLATES, page_of, svgs

PHONE_PIXELS = 400
CSS = (TEMPLATES / 'style.css').read_text()
_, LIGHT, DARK = CSS.split(':root {')


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  """The page of a run in which every section has something to show."""
  return page_of(workdirs.make(tmp_path_factory.mktemp('report') / 'one'))


def colours(block):
  """The custom properties of a block of CSS: {name: #rrggbb}."""
  return dict(re.findall(r'--(\w+): (#[0-9a-f]{6})', block.partition('}')[0]))


def luminance(colour):
  """Relative luminance as WCAG 2 defines it."""
  channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
  linear = [
    c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
    for c in channels
  ]
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
  low, high = sorted(map(luminance, (one, other)))
  return (high + 0.05) / (low + 0.05)


def test_contrast_of_wcags_own_examples():
  assert contrast('#000000', '#ffffff') == pytest.approx(21)
  assert contrast('#777777', '#ffffff') == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize('block', [LIGHT, DARK], ids=['light', 'dark'])
def test_contrast_of_text(block):
  palette = colours(block)
  assert palette.keys() == colours(LIGHT).keys()
  for letters in ('ink', 'soft', 'link'):
    for ground in ('page', 'raised'):
      pair = (palette[letters], palette[ground])
      assert contrast(*pair) >= 4.5, (letters, ground)
  for mark in ('good', 'bad'):
    assert contrast(palette[mark], palette['page']) >= 3


@pytest.mark.parametrize('mode', ['light', 'dark'])
def test_contrast_of_figures(mode):
  page = colours(LIGHT if mode == 'light' else DARK)['page']
  for name, colour in theme.COLOURS.items():
    least = 4.5 if name == 'ink' else 3
    assert contrast(getattr(colour, mode), page) >= least, name


def test_all_colours_of_a_figure_follow_light_and_dark(text):
  figures = svgs(text)
  assert len(figures) == 7
  for svg in (svg for pair in figures for svg in pair):
    style, _, body = svg.partition('</style>')
    assert '@media(prefers-color-scheme:dark)' in style
    used = set(re.findall(r'#[0-9a-f]{6}\b', body))
    # Those that stand on an image, in either mode.
    assert used <= {theme.BLACK, theme.WHITE}
    assert set(re.findall(r'var\(--(\w+)\)', body)) <= theme.COLOURS.keys()
    assert 'var(--ink)' in body


def test_narrow_figures_fit_a_phone(text):
  padding = 2 * 0.8 * 16  # of the page, in CSS pixels
  for wide, narrow in svgs(text):
    (wide, narrow) = (
      float(re.search(r'<svg[^>]* width="([\d.]+)pt"', svg)[1]) * 96 / 72
      for svg in (wide, narrow)
    )
    assert narrow <= PHONE_PIXELS - padding
    assert narrow <= wide <= 60 * 16 - 2 * 16


def test_a_figure_is_the_same_file_each_time(tmp_path):
  run = read.load(workdirs.make(tmp_path))
  (section,) = [s for s in SECTIONS if s.title == 'Accuracy against epsilon']
  assert section.show(run) == section.show(run)


def test_nothing_is_drawn_of_what_a_run_lacks(tmp_path):
  run = read.load(workdirs.make(tmp_path))
  assert picture(lambda run, width: None, 'nothing')(run) == []


def test_wide_tables_scroll_by_keyboard_others_fit(text):
  """A table of more than five columns scrolls inside of its own frame."""
  tables = re.findall(
    r'<div class="wide"(.*?)>\n<table.*?<thead>(.*?)</thead>', text, re.S
  )
  assert len(tables) >= 7
  for options, head in tables:
    assert ('tabindex="0"' in options) == (head.count('<th') > 5)
  # On the page of one run there is none.
  assert not any(options for options, _ in tables)
  assert re.search(r'\.wide \{[^}]*overflow-x: auto', CSS)
  assert re.search(r'img \{[^}]*max-width: 100%', CSS)
  assert '<meta name="viewport" content="width=device-width' in text


def test_each_section_says_what_to_look_at(text):
  # AutoAttack alone was not run.
  assert text.count('<b>What to look at:</b>') == len(SECTIONS) - 1
  for section in SECTIONS:
    for sentence in re.split(r'[.:;] ', f'{section.look} {section.text}'):
      assert len(sentence.split()) <= 30, sentence


def test_page_opens_with_the_verdict(text):
  verdict = text.index('<p class="verdict')
  table = text.index('<table')
  assert text.index('<h2') < verdict < table < text.index('<nav')
  head = text[table:].partition('</thead>')[0]
  assert re.findall(r'<th[^>]*>(.*?)</th>', head.replace('<wbr>', '')) == [
    'output',
    'clean',
    'PGD-2',
    'AutoAttack',
    'worst case',
  ]
  rows = text[table:].partition('</table>')[0]
  for label, _ in workdirs.OUTPUTS.values():
    assert f'<th scope="row">{label}</th>' in rows
  assert rows.count('<td class="number">not run</td>') == 4


def test_narrow_curves_share_their_scales(tmp_path):
  """Side by side in little room, one axis with numbers must do for a row."""
  run = read.load(workdirs.make(tmp_path))
  wide = plots.curves(run, theme.WIDE_INCHES)
  narrow = plots.curves(run, theme.NARROW_INCHES)
  assert narrow.get_figwidth() <= theme.NARROW_INCHES < wide.get_figwidth()
  for figure, shared in ((wide, False), (narrow, True)):
    first, second = figure.axes[:2]
    assert first.get_shared_y_axes().joined(first, second) == shared


def test_narrow_matrices_stand_below_each_other(tmp_path):
  run = read.load(workdirs.make(tmp_path))
  for width, below in ((theme.WIDE_INCHES, False), (theme.NARROW_INCHES, True)):
    figure = plots.confusion(run, width)
    figure.get_layout_engine().execute(figure)
    clean, attacked = (axes.get_position() for axes in figure.axes)
    assert (attacked.y1 < clean.y0) == below
    assert (attacked.x0 > clean.x1) == (not below)


def test_fewer_images_side_by_side_on_a_phone(tmp_path):
  results = workdirs.results_of()
  results['examples'] = {'places': [0, 1, 2, 3] * 2, 'labels': [0] * 8}
  run = read.load(workdirs.make(tmp_path, results=results))
  for attack in ('clean', 'pgd_2'):
    path = tmp_path / 'evaluation' / 'aggregated' / f'{attack}.npz'
    with np.load(path) as file:
      arrays = dict(file)
    arrays['examples'] = np.tile(arrays['examples'], (4, 1, 1, 1))
    np.savez(path, **arrays)
  for width, images in ((theme.WIDE_INCHES, 8), (theme.NARROW_INCHES, 4)):
    assert len(examples.examples(run, width).axes) == 3 * images


@pytest.mark.parametrize(
  'key', ['figure.autolayout', 'figure.constrained_layout.use']
)
def test_a_users_layout_changes_no_figure(key):
  """Of matplotlib's own settings; each figure has its layout computed once."""

  def drawn():
    figure, ((left, right),) = theme.new_figure(1, 2, width=5, height=3)
    left.plot([1, 2])
    figure.colorbar(right.imshow(np.eye(3)), ax=right)
    content = theme.to_svg(figure)
    assert figure.get_layout_engine() is None
    return content, theme.to_png(figure)

  expected = drawn()
  with matplotlib.rc_context({key: True}):
    assert drawn() == expected
