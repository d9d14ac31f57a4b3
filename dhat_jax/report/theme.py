"""Colours and sizes of figures, and figures as files."""

import io
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure


class Colour(NamedTuple):
  """One colour of the figures, as #rrggbb in lower case.

  Attributes:
    light: on a light page, and in PNG files.
    dark: on a dark page.
  """

  light: str
  dark: str


# Okabe and Ito's hues, which colour-blind readers can tell apart; as dark, or
# as light, as a contrast of 3 with either page needs.
COLOURS = {
  'ink': Colour('#1a1a1a', '#e6e6e6'),
  'blue': Colour('#0072b2', '#56b4e9'),
  'green': Colour('#00805f', '#2fc79a'),
  'vermilion': Colour('#c44e00', '#ff8a4c'),
  'grey': Colour('#757575', '#a6a6a6'),
  'yellow': Colour('#b07400', '#e6b422'),
  'purple': Colour('#b0578b', '#e39bc4'),
  'sky': Colour('#2b84b8', '#9fd8ff'),
}
INK, BLUE, GREEN, VERMILION, GREY, YELLOW, PURPLE, SKY = (
  colour.light for colour in COLOURS.values()
)
# Of the outputs, in their order; further ones start again.
OUTPUT_COLOURS = (BLUE, YELLOW, GREY, VERMILION, GREEN, PURPLE, SKY)
OUTPUT_MARKERS = 'os^Dvpx'
# The page has room for the wide one on a desk, for the narrow one on a phone.
WIDE_INCHES, NARROW_INCHES = 8.4, 3.7
# What stands on an image or in a coloured cell; the same on either page.
BLACK, WHITE = '#000000', '#ffffff'
STYLE = {
  'font.size': 9,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.titlesize': 10,
  'legend.frameon': False,
  'figure.dpi': 110,
  # The layout is `new_figure`'s, whatever a user's matplotlibrc asks for.
  'figure.autolayout': False,
  'figure.constrained_layout.use': False,
  'text.parse_math': False,  # a $ in a name is a $
  'svg.hashsalt': 'dhat_jax',  # the same figure is the same file
  **dict.fromkeys(
    (
      'text.color',
      'axes.edgecolor',
      'axes.labelcolor',
      'xtick.color',
      'ytick.color',
    ),
    INK,
  ),
}


def new_figure(
  rows: int, columns: int, *, width: float, height: float, **options
) -> tuple[Figure, np.ndarray]:
  """Returns a figure of a size in inches, and its axes [rows, columns].

  Args:
    rows: of axes.
    columns: of axes.
    width: in inches.
    height: in inches.
    **options: of `Figure.subplots`.
  """
  figure = Figure(figsize=(width, height), layout='constrained')
  return figure, figure.subplots(rows, columns, squeeze=False, **options)


def to_png(figure: Figure) -> bytes:
  """Formats a figure as PNG, in the light colours on white."""
  return _save(figure, 'png')


def to_svg(figure: Figure) -> bytes:
  """Formats a figure as SVG whose colours follow the reader's light or dark."""
  text = _save(
    figure, 'svg', transparent=True, dpi=150, metadata={'Date': None}
  ).decode()
  for name, colour in COLOURS.items():
    text = text.replace(colour.light, f'var(--{name})')
  return text.replace(
    '<defs>', f'<style>{_svg_style()}</style><defs>', 1
  ).encode()


def _save(figure: Figure, file_format: str, **options) -> bytes:
  content = io.BytesIO()
  with matplotlib.rc_context(STYLE):
    _settle(figure)
    figure.savefig(content, format=file_format, **options)
  return content.getvalue()


def _settle(figure: Figure) -> None:
  """Computes a figure's layout once for all formats: it takes long."""
  engine = figure.get_layout_engine()
  if engine is not None:
    engine.execute(figure)
    # With any engine, even 'none', saving draws the whole figure twice.
    figure.set_layout_engine(None)


def _svg_style() -> str:
  light, dark = (
    ''.join(f'--{name}:{colour[i]};' for name, colour in COLOURS.items())
    for i in (0, 1)
  )
  return f':root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}'
