"""Pages to check: how they are written, and what HTML they may hold."""

import html.parser

from dhat_jax.report.write import write

VOID = {'meta', 'img', 'br', 'link'}


class Checker(html.parser.HTMLParser):
  """Collects what a page links to; raises where tags do not nest."""

  def __init__(self):
    super().__init__()
    self.open, self.images, self.links, self.ids = [], [], [], []
    self.tags = set()

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.tags.add(tag)
    if tag not in VOID:
      self.open.append(tag)
    if tag == 'img':
      assert attrs['alt']
      self.images.append(attrs['src'])
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
  assert all(src.startswith('data:image/png;base64,') for src in checker.images)
  assert all(link[1:] in checker.ids for link in checker.links)
  assert not checker.tags & {'script', 'iframe', 'object', 'link'}
  assert '@import' not in text
  assert 'url(' not in text
  return checker


def page_of(*directories):
  """Writes the report of some workdirs; returns its page."""
  path = write([str(directory) for directory in directories])
  with open(path, encoding='utf-8') as file:
    return file.read()
