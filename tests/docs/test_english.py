"""The pages are in plain English: short sentences, in the field's words."""

import re

import pytest

from tests.docs.pages import DOCS, PAGES, ROOT

MOST_WORDS = 30
# What a reader of the field would not say, and what he would.
PHRASES = {
  r'\bgo(es)? on(?! to)\b': 'resumes, continues',
  r'\b(is|are) told\b': 'is reported',
  r'\bmade (again|anew)\b': 'computed again',
  r'of one\'s own': 'of your own',
  r'aimed at': 'what was measured',
  r'the aim of': 'what was measured',
  r'\b(is|are|was|were) missed\b': 'what was measured',
  r'somebody else\'s (?!checkpoint)': 'another',
}
PROSE = [
  page for page in PAGES if page.parent in (ROOT, DOCS, DOCS / 'callables')
]


def prose(text):
  """A page without code, formulas, generated tables, and links' targets."""
  text = re.sub(r'<!-- (\w+): .*?<!-- end -->', '', text, flags=re.DOTALL)
  text = re.sub(r'<!--.*?-->', '', text, flags=re.DOTALL)
  text = re.sub(r'```.*?```', '', text, flags=re.DOTALL)
  text = re.sub(r'\$\$.*?\$\$', 'formula', text, flags=re.DOTALL)
  text = re.sub(r'\]\([^)]*\)', ']', text)
  text = re.sub(r'\$[^$]+\$|`[^`]+`', 'Code', text)
  return re.sub(r'[*_\[\]!]', '', text)


def blocks_of(text):
  """Paragraphs, list items, headings and cells of tables, each in one line."""
  for paragraph in re.split(r'\n\s*\n', text):
    if paragraph.lstrip().startswith('|'):
      yield from re.split(r'[|\n]', paragraph)
    else:
      for item in re.split(r'\n\s*(?:[-#]+|\d+\.) ', f'\n{paragraph}'):
        yield ' '.join(item.split())


def sentences(text):
  """The sentences of a page."""
  for block in blocks_of(prose(text)):
    yield from filter(None, re.split(r'(?<=[.?!])\)?\s+(?=[A-Z(])', block))


def words(sentence):
  return re.findall(r"[\w'’.-]*\w[\w'’.-]*", sentence)


@pytest.mark.parametrize('page', PROSE, ids=lambda page: page.name)
def test_sentences_are_short(page):
  long = [
    f'{len(words(sentence))}: {sentence}'
    for sentence in sentences(page.read_text())
    if len(words(sentence)) > MOST_WORDS
  ]
  assert long == [], '\n'.join(long)


@pytest.mark.parametrize('page', PROSE, ids=lambda page: page.name)
def test_words_are_those_of_the_field(page):
  text = ' '.join(prose(page.read_text()).split())
  for phrase, better in PHRASES.items():
    match = re.search(phrase, text)
    assert not match, f'{match[0]!r}: rather {better!r}'


def test_the_checks_find_what_they_look_for():
  text = '# A title\n\nIt is short. Word' + ' word' * 30 + '.\n- one\n- two\n'
  counts = [len(words(sentence)) for sentence in sentences(text)]
  assert counts == [2, 3, 31, 1, 1]
  assert re.search(next(iter(PHRASES)), 'the run goes on with it')
