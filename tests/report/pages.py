"""Pages to check: how they are written, and what HTML they may hold."""

import base64
import html.parser
import pathlib

import dhat_jax.report
from dhat_jax.report.write import write

VOID = {'meta', 'img', 'br', 'link', 'source', 'wbr'}
TEMPLATES = pathlib.Path(dhat_jax.report.__file__).parent / 'templates'
SCRIPT = (TEMPLATES / 'sort.js').read_text()
FILTER = (TEMPLATES / 'filter.js').read_text()
SVG = 'data:image/svg+xml;base64,'


class Checker(html.parser.HTMLParser):
  """Collects what a page links to; raises where tags do not nest."""

  def __init__(self):
    super().__init__()
    self.open, self.images, self.links, self.ids = [], [], [], []
    self.narrow_images = []
    self.tags = set()

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.tags.add(tag)
    if tag not in VOID:
      self.open.append(tag)
    if tag == 'img':
      assert attrs['alt']
      self.images.append(attrs['src'])
    if tag == 'source':
      self.narrow_images.append(attrs['srcset'])
    if tag == 'th':
      assert attrs['scope'] in ('row', 'col')
    self.links += [attrs['href']] if 'href' in attrs else []
    self.ids += [attrs['id']] if 'id' in attrs else []

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def check(text):
  """Raises unless a page is well-formed and needs nothing from outside."""
  checker = Checker()
  checker.feed(text)
  checker.close()
  assert not checker.open
  assert len(checker.narrow_images) == len(checker.images)
  for source in checker.images + checker.narrow_images:
    assert source.startswith(SVG)
  assert all(link[1:] in checker.ids for link in checker.links)
  assert not checker.tags & {'iframe', 'object', 'link'}
  # The scripts are the page's own.
  known = [f'<script>\n{s.rstrip()}</script>' for s in (SCRIPT, FILTER)]
  counts = [text.count(script) for script in known]
  assert text.count('<script') == sum(counts)
  assert max(counts) <= 1
  assert '@import' not in text
  assert 'url(' not in text
  return checker


def page_of(*directories):
  """Writes the report of some workdirs; returns its page."""
  path = write([str(directory) for directory in directories])
  with open(path, encoding='utf-8') as file:
    return file.read()


def plain(text):
  """A page with ordinary spaces and without places for line breaks."""
  return text.replace('\N{NO-BREAK SPACE}', ' ').replace('<wbr>', '')


def svgs(text):
  """Returns the figures of a page: [(wide, narrow)], each as SVG text."""
  checker = check(text)
  pairs = zip(checker.images, checker.narrow_images, strict=True)
  return [
    tuple(base64.b64decode(each.removeprefix(SVG)).decode() for each in pair)
    for pair in pairs
  ]
