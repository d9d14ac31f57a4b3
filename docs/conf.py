"""Sphinx's configuration.

python -m sphinx -W --keep-going -b html docs docs/_build/html
"""

import importlib
import os
import re
import sys

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

sys.path.insert(0, os.path.abspath('..'))

project = 'dhat_jax'
html_title = 'dhat_jax'
html_theme = 'furo'
html_static_path = ['_static']
html_css_files = ['style.css']
html_copy_source = False
html_show_copyright = False
smartquotes_action = 'De'  # dashes; quotes stay as they are
exclude_patterns = ['_build']
extensions = [
  'myst_parser',
  'sphinx.ext.autodoc',
  'sphinx.ext.napoleon',
  'sphinx.ext.viewcode',
]
myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 3
html_math_renderer = 'mathml'
default_role = 'code'
autodoc_member_order = 'bysource'
autodoc_typehints = 'none'
autodoc_mock_imports = ['torch', 'pyautoattack']
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False

_CODE = re.compile(r'(`[^`]+`)')
_logger = logging.getLogger(__name__)


def _place(module, dotted):
  """Returns the full name of what a module calls `dotted`, if it is ours."""
  found = module
  for part in dotted.split('.'):
    found = getattr(found, part, None)
  home = getattr(found, '__module__', None) or ''
  if callable(found) and home.startswith('dhat_jax.'):
    return f'{home}.{found.__qualname__}'
  return None


def _exists(name):
  """Whether `dhat_jax.module`, or an attribute of one, can be imported."""
  try:
    importlib.import_module(name)
  except ImportError:
    head, _, last = name.rpartition('.')
    return bool(head) and _exists(head) and hasattr(sys.modules[head], last)
  return True


def _code(name, module, where):
  """Returns `name` as a link to the API where it has a place there."""
  if re.fullmatch(r'dhat_jax(\.\w+)+', name):
    if not _exists(name):
      _logger.warning('no such name: %s', name, location=where)
    return f':py:obj:`{name}`'
  if re.fullmatch(r'[A-Za-z]\w*(\.\w+)*', name):
    place = _place(module, name)
    if place:
      return f':py:obj:`{name} <{place}>`'
  return f'``{name}``'


def _split_examples(lines):
  """Yields (whether it is an example, lines): indented after a blank line."""
  text, example = [], []
  indented = False  # whether the last line that is not blank is
  for line in lines:
    blank = not line.strip()
    starts = line.startswith('    ') and not indented and not (text or [''])[-1]
    if example and (blank or line.startswith('    ')):
      example.append(line)
    elif starts:
      yield False, text
      text, example = [], [line]
    else:
      if example:
        yield True, example
      text, example = [*text, line], []
    if not blank:
      indented = line.startswith(' ') and not example
  yield bool(example), example or text


def _with_links(text, module, name):
  """Returns plain text with `code` as reStructuredText."""
  pieces = _CODE.split(text)
  for index, piece in enumerate(pieces):
    if index % 2:
      pieces[index] = _code(' '.join(piece[1:-1].split()), module, name)
    else:
      pieces[index] = re.sub(r'([|*]|(?<=\w)_(?!\w))', r'\\\1', piece)
  # What comes before a colon there is no type.
  return re.sub(r'(?m)^( *Returns:\n +)(?=\S)', r'\1: ', ''.join(pieces))


def _read_docstring(app, what, name, obj, options, lines):
  """Docstrings are plain text with `code`, not reStructuredText."""
  del app, options
  if what == 'module' and name.endswith('__main__'):
    lines[:] = ['::', '', *(f'  {line}' for line in lines)]
    return
  owner = name if what == 'module' else getattr(obj, '__module__', None)
  module = sys.modules.get(owner) or sys.modules['dhat_jax']
  read = []
  for is_example, part in _split_examples(list(lines)):
    if is_example:
      read += ['::', '', *part, '']
    else:
      read += _with_links('\n'.join(part), module, name).split('\n')
  lines[:] = read


def _skip_fields(app, what, name, obj, skip, options):
  """Leaves out a NamedTuple's fields: its docstring has them."""
  del app, what, name, options
  return skip or type(obj).__name__ == '_tuplegetter'


def _inline_math(self, node):
  self.body.append(tex2mathml(node.astext(), as_block=False))
  raise nodes.SkipNode


def _block_math(self, node):
  self.body.append(f'<div>{tex2mathml(node.astext(), as_block=True)}</div>')
  raise nodes.SkipNode


def setup(app):
  """Connects all this; formulas become MathML, which needs no scripts."""
  app.connect('autodoc-process-docstring', _read_docstring, priority=400)
  app.connect('autodoc-skip-member', _skip_fields)
  app.add_html_math_renderer(
    'mathml', (_inline_math, None), (_block_math, None)
  )
