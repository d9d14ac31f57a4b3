"""The pages, their code blocks and their commands."""

import pathlib
import re
import shlex

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / 'docs'
PAGES = [
  page
  for page in (
    ROOT / 'README.md',
    ROOT / 'CONTRIBUTING.md',
    *sorted(DOCS.rglob('*.md')),
  )
  if '_build' not in page.parts
]
_FILE_NAME = re.compile(r'# (\w+\.py)\n')


def blocks(page, language):
  """The code blocks of a page."""
  return re.findall(rf'```{language}\n(.*?)```', page.read_text(), re.DOTALL)


def files(page):
  """The Python blocks of a page that are files: {name: text}."""
  return {
    match[1]: block
    for block in blocks(page, 'python')
    if (match := _FILE_NAME.match(block))
  }


def programs(page):
  """The Python blocks of a page that are no files."""
  return [b for b in blocks(page, 'python') if not _FILE_NAME.match(b)]


def commands(page):
  """The commands in a page's shell blocks, as lists of arguments."""
  for block in blocks(page, 'sh'):
    for line in block.replace('\\\n', ' ').strip().split('\n'):
      words = shlex.split(line, comments=True)
      while '&&' in words:
        place = words.index('&&')
        yield words[:place]
        words = words[place + 1 :]
      yield words
