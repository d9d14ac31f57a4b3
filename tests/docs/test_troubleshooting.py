"""Each message on the page is one that the package prints."""

import ast
import functools
import re

import pytest

from tests.docs.pages import DOCS, ROOT

PAGE = (DOCS / 'troubleshooting.md').read_text()
MESSAGES = re.findall(r'^\| `([^`]+)` \|', PAGE, re.MULTILINE)


def text_of(node):
  """A string of the source, with … for what is filled in; None for others."""
  if isinstance(node, ast.Constant) and isinstance(node.value, str):
    return re.sub(r'%[srd]', '…', node.value)
  if isinstance(node, ast.JoinedStr):
    return ''.join(
      part.value if isinstance(part, ast.Constant) else '…'
      for part in node.values
    )
  return None


@functools.cache
def texts():
  """All strings of the package, each in one line."""
  return [
    ' '.join(text.split())
    for path in (ROOT / 'dhat_jax').rglob('*.py')
    for node in ast.walk(ast.parse(path.read_text()))
    if (text := text_of(node)) is not None
  ]


def is_printed(message):
  """Whether all pieces between a message's … stand in strings of the package.

  A piece without letters would stand anywhere.
  """
  pieces = [' '.join(piece.split()) for piece in message.split('…')]
  pieces = [piece for piece in pieces if re.search('[a-zA-Z]', piece)]
  return bool(pieces) and all(
    any(piece in text for text in texts()) for piece in pieces
  )


def test_there_are_messages():
  assert len(MESSAGES) > 40


@pytest.mark.parametrize('message', MESSAGES)
def test_messages_are_those_of_the_package(message):
  assert is_printed(message)


@pytest.mark.parametrize(
  'message', ['workdir …: is on fire', '…: …', 'config.…: no such kei; …']
)
def test_others_are_found_out(message):
  assert not is_printed(message)
