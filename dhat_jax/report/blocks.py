"""What a page is made of: sentences, tables and figures, as plain data."""

import base64
import dataclasses
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
  """

  template: ClassVar[str] = 'sentence'
  text: str
  title: str = ''
  is_flag: bool = False


@dataclasses.dataclass(frozen=True)
class Grid:
  """A table.

  Attributes:
    table: its cells.
    file_name: without an ending, of its copies in files; '' for none.
    folded: what to click on to see it; '' if it is seen at once.
  """

  template: ClassVar[str] = 'grid'
  table: Table
  file_name: str = ''
  folded: str = ''

  @property
  def copies(self) -> dict[str, str]:
    """The table as text to paste: {format: text}."""
    if not self.file_name:
      return {}
    return {
      'Markdown': tables.to_markdown(self.table),
      'LaTeX': tables.to_latex(self.table),
    }


@dataclasses.dataclass(frozen=True)
class Picture:
  """A figure.

  Attributes:
    png: the file's bytes.
    alt: what is seen, for readers who do not see it.
    file_name: without an ending.
  """

  template: ClassVar[str] = 'picture'
  png: bytes
  alt: str
  file_name: str

  @property
  def base64(self) -> str:
    """The bytes as text, for a page of one file."""
    return base64.b64encode(self.png).decode()


Block = Sentence | Grid | Picture


def files_of(block: Block) -> dict[str, bytes]:
  """Returns the files that hold what a block shows: {name: content}."""
  if isinstance(block, Picture):
    return {f'{block.file_name}.png': block.png}
  if isinstance(block, Grid) and block.file_name:
    texts = {
      'md': tables.to_markdown(block.table),
      'tex': tables.to_latex(block.table),
      'csv': tables.to_csv(block.table),
    }
    return {
      f'{block.file_name}.{ending}': text.encode()
      for ending, text in texts.items()
    }
  return {}
