"""Draws docs/rows.svg: the rows of the package, from what the test checks.

python docs/tools/rows.py            writes it
python docs/tools/rows.py --check    exits with 1 if it is out of date
"""

import html
import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from tests.test_imports import ROWS  # noqa: E402

PATH = ROOT / 'docs' / 'rows.svg'
TEXTS = {
  'benchmark': 'speed, side by side',
  'main': 'command line of runs',
  'convert': 'PyTorch files in and out',
  'run': 'train, evaluate, load',
  'from_config': 'names and numbers become objects',
  'training': 'loop, step, state, checkpoints',
  'evaluation': 'attacks, records, results, audit',
  'losses': 'what is minimised',
  'pytorch': 'names, state dicts, modules',
  'attacks': 'PGD, APGD, FAB, Square, AutoAttack',
  'models': 'output table, trunk, heads, aggregator',
  'report': 'page, figures, tables',
  'runtime': 'devices, processes, files',
  'datasets': 'data sets, batches',
  'divergences': 'KL, margins',
  'registry': 'names to factories',
  'arguments': 'one line for a wrong value',
}
# Where a user adds a part of his own.
EXTENSIBLE = {'losses', 'attacks', 'models', 'datasets', 'training'}
EXTENSIBLE |= {'evaluation'}
WIDTH, HEIGHT, GAP, LEFT = 960, 58, 14, 90


def box(x: float, y: float, width: float, name: str) -> str:
  """Returns one room: its name, and what it is for."""
  fill = '#e8f1fa' if name in EXTENSIBLE else '#f6f6f6'
  middle = x + width / 2
  return (
    f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{HEIGHT}" '
    f'rx="6" fill="{fill}" stroke="#456"/>'
    f'<text x="{middle:.0f}" y="{y + 24:.0f}" font-size="16" '
    f'font-weight="600">{html.escape(name)}</text>'
    f'<text x="{middle:.0f}" y="{y + 43:.0f}" font-size="11.5" '
    f'fill="#345">{html.escape(TEXTS[name])}</text>'
  )


def figure() -> str:
  """Returns the drawing."""
  parts = []
  for index, names in enumerate(ROWS):
    y = GAP + index * (HEIGHT + GAP)
    width = (WIDTH - LEFT - GAP * len(names)) / len(names)
    for place, name in enumerate(names):
      parts.append(box(LEFT + place * (width + GAP), y, width, name))
  height = GAP + len(ROWS) * (HEIGHT + GAP)
  end = height - 2 * GAP
  arrow = (
    f'<path d="M40 {2 * GAP} V{end} m-7 -10 l7 10 l7 -10" fill="none" '
    f'stroke="#456" stroke-width="2"/><text x="24" y="{height / 2:.0f}" '
    f'font-size="13" transform="rotate(-90 24 {height / 2:.0f})">imports</text>'
  )
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
    'font-family="system-ui, sans-serif" text-anchor="middle">'
    f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>'
    + '\n'.join([arrow, *parts])
    + '</svg>\n'
  )


def main() -> None:
  """Writes or checks the drawing."""
  if '--check' in sys.argv:
    sys.exit(0 if PATH.read_text() == figure() else f'{PATH}: out of date')
  PATH.write_text(figure())


if __name__ == '__main__':
  main()
