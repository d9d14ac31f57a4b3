"""The page as HTML, by the templates in templates/."""

import functools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jinja2
from markupsafe import Markup, escape

from dhat_jax.report import comparison, sections, summary
from dhat_jax.report.blocks import Block, Grid, Sentence, files_of
from dhat_jax.report.read import Run
from dhat_jax.report.sections import SECTIONS, Missing, Section

_ENVIRONMENT = jinja2.Environment(
  loader=jinja2.PackageLoader('dhat_jax.report'),
  autoescape=True,
  undefined=jinja2.StrictUndefined,
  trim_blocks=True,
  lstrip_blocks=True,
)


def _breakable(text: str) -> Markup:
  """Returns text as HTML; lines may break after , and ( and before capitals.

  Numbers stay whole, with their brackets.
  """
  places = r'(?<=[,(])(?![+\-\u2212\d])|(?<=[a-z])(?=[A-Z])'
  return Markup(re.sub(places, '<wbr>', str(escape(_unbroken(text)))))


def _unbroken(text: str) -> str:
  """Returns text in which % and ± stay on the line of their number."""
  space = '\N{NO-BREAK SPACE}'
  return text.replace(' %', f'{space}%').replace('± ', f'±{space}')


_ENVIRONMENT.filters |= {'breakable': _breakable, 'unbroken': _unbroken}


class Page(NamedTuple):
  """A report.

  Attributes:
    html: the page, which needs no other file.
    files: its figures and tables: {name: content}.
  """

  html: str
  files: dict[str, bytes]


class Chapter(NamedTuple):
  """The part of the page that is about one run.

  Attributes:
    name: the run's.
    summary: what stands above its sections.
    sections: with what each of them shows.
    missing: what was not measured.
  """

  name: str
  summary: list[Block]
  sections: list[tuple[Section, list[Block]]]
  missing: list[Missing]


def render(runs: Sequence[Run]) -> Page:
  """Returns the page of some runs, at least one."""
  compared = _or_sentence(lambda: comparison.blocks(runs))
  chapters = [_chapter(run) for run in runs]
  in_chapters = [
    block
    for chapter in chapters
    for _, blocks in chapter.sections
    for block in blocks
  ]
  html = _ENVIRONMENT.get_template('page.html').render(
    title='Dual Head Adversarial Training: ' + ', '.join(r.name for r in runs),
    comparison=compared,
    chapters=chapters,
    scripts=_scripts((compared if len(runs) > 1 else []) + in_chapters),
  )
  shown = compared + in_chapters
  files: dict[str, bytes] = {}
  for block in shown:
    files |= files_of(block)
  return Page(html, files)


def _scripts(blocks: Sequence[Block]) -> list[str]:
  """Returns the scripts that the blocks of a page use."""
  grids = [block for block in blocks if isinstance(block, Grid)]
  used = {
    'sort.js': any(grid.is_sortable for grid in grids),
    'filter.js': any(grid.filters for grid in grids),
  }
  return [script for script, is_used in used.items() if is_used]


def _chapter(run: Run) -> Chapter:
  problems = [Sentence(text, is_flag=True) for text in run.problems]
  opening = _or_sentence(lambda: summary.blocks(run))
  shown = [
    (section, _or_sentence(functools.partial(section.show, run)))
    for section in SECTIONS
  ]
  missing = [
    *sections.not_run(run),
    *(
      sections.missing(run, section) for section, blocks in shown if not blocks
    ),
  ]
  return Chapter(
    run.name, problems + opening, [row for row in shown if row[1]], missing
  )


def _or_sentence(show: Callable[[], list[Block]]) -> list[Block]:
  """Calls what computes a part of the page; errors become a sentence."""
  try:
    return show()
  except Exception as error:
    return [
      Sentence(
        'This cannot be shown: the files of the run are damaged or of another '
        f'version ({type(error).__name__}: {error}).',
        is_flag=True,
      )
    ]
