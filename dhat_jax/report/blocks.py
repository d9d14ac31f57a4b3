"""The parts of a page: sentences, tables and figures, as plain data."""

import base64
import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from dhat_jax.report import tables
from dhat_jax.report.tables import Table


@dataclasses.dataclass(frozen=True)
class Sentence:
  """A sentence that stands out.

  Attributes:
    text: what it says.
    title: what comes before it in bold.
    is_flag: whether it is a warning.
    is_verdict: whether it is what the page is about.
  """

  template: ClassVar[str] = 'sentence'
  text: str
  title: str = ''
  is_flag: bool = False
  is_verdict: bool = False


@dataclasses.dataclass(frozen=True)
class Notes:
  """Sentences in smaller type, one below the other.

  Attributes:
    texts: at least one.
  """

  template: ClassVar[str] = 'notes'
  texts: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Grid:
  """A table.

  Attributes:
    table: its cells.
    file_name: without an ending, of its copies in files; '' for none.
    folded: what to click on to see it; '' if it is seen at once.
    caption: what stands above it; '' for nothing.
    copied: what its copies hold where that is laid out otherwise.
    is_sortable: whether a click on a heading sorts it.
    filters: columns with a menu that shows some of the rows; such a table is
      long, and scrolls inside of its own frame.
  """

  template: ClassVar[str] = 'grid'
  table: Table
  file_name: str = ''
  folded: str = ''
  caption: str = ''
  copied: Table | None = None
  is_sortable: bool = False
  filters: Sequence[str] = ()

  @property
  def filter_places(self) -> str:
    """The places of the filters' columns: '2 3'."""
    return ' '.join(str(self.table.header.index(n)) for n in self.filters)

  @property
  def copies(self) -> dict[str, str]:
    """The table as text to paste: {format: text}."""
    if not self.file_name:
      return {}
    table = self.copied or self.table
    return {
      'Markdown': tables.to_markdown(table),
      'LaTeX': tables.to_latex(table),
    }


@dataclasses.dataclass(frozen=True)
class Picture:
  """A figure.

  Attributes:
    wide: SVG for a page with room.
    narrow: SVG for a phone.
    png: PNG, for the file beside the page.
    alt: what is seen, for readers who do not see it.
    file_name: without an ending.
  """

  template: ClassVar[str] = 'picture'
  wide: bytes
  narrow: bytes
  png: bytes
  alt: str
  file_name: str

  @property
  def sources(self) -> dict[str, str]:
    """Both SVGs as data URLs, for a page of one file: {name: URL}."""
    return {
      name: 'data:image/svg+xml;base64,' + base64.b64encode(svg).decode()
      for name, svg in (('wide', self.wide), ('narrow', self.narrow))
    }


Block = Sentence | Notes | Grid | Picture


def files_of(block: Block) -> dict[str, bytes]:
  """Returns the files that hold what a block shows: {name: content}."""
  if isinstance(block, Picture):
    return {f'{block.file_name}.png': block.png}
  if isinstance(block, Grid) and block.file_name:
    table = block.copied or block.table
    texts = {
      'md': tables.to_markdown(table),
      'tex': tables.to_latex(table),
      'csv': tables.to_csv(table),
    }
    return {
      f'{block.file_name}.{ending}': text.encode()
      for ending, text in texts.items()
    }
  return {}
