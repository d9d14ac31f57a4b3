"""Draws docs/terminal.svg: a terminal in which the digits run was recorded.

    python docs/tools/terminal.py --record LOG    take a log, and draw it
    python docs/tools/terminal.py                 draw docs/terminal.txt again
    python docs/tools/terminal.py --check         exit with 1 if out of date

LOG is what README's command wrote to stdout and stderr. docs/terminal.txt keeps
the last state of each line, as a terminal shows it, without the messages that
libraries log while they start.
"""

import html
import pathlib
import re
import sys

DOCS = pathlib.Path(__file__).parents[1]
TEXT, PICTURE = DOCS / 'terminal.txt', DOCS / 'terminal.svg'
COMMAND = (
  'python -m dhat_jax.main --config=configs/digits.py --workdir=runs/digits'
)
# The C++ libraries below JAX log in this form: level, date, time, place.
LIBRARY_LINE = re.compile(r'WARNING: All log messages before|[IWE]\d{4} ')
COLUMNS = 118
CHARACTER, LINE, MARGIN, BAR = 7.25, 17, 14, 30  # pixels
INK, PAPER, PROMPT, PALE = '#e6e6e6', '#1e2228', '#7fd88f', '#9aa4af'


def last_states(log: str) -> list[str]:
  """Returns the lines of a log as a terminal leaves them."""
  lines = [line.split('\r')[-1].rstrip() for line in log.split('\n')]
  return [line for line in lines if not LIBRARY_LINE.match(line)]


def _row(index: int, line: str) -> str:
  """Returns one line of text as SVG."""
  prompt = line.startswith('$ ')
  progress = '|' in line and '%' in line
  fill = PROMPT if prompt else PALE if progress else INK
  # Plain spaces would collapse into one.
  words = html.escape(line).replace(' ', '\u00a0')
  y = BAR + MARGIN + LINE * (index + 0.8)
  return f'<text x="{MARGIN}" y="{y:.1f}" fill="{fill}">{words}</text>'


def picture(lines: list[str]) -> str:
  """Returns a terminal with some lines as SVG."""
  for line in lines:
    if len(line) > COLUMNS:
      raise ValueError(f'line of {len(line)} characters, at most {COLUMNS}')
  width = round(COLUMNS * CHARACTER + 2 * MARGIN)
  height = BAR + 2 * MARGIN + LINE * len(lines)
  dots = ''.join(
    f'<circle cx="{MARGIN + 6 + 20 * index}" cy="{BAR / 2:g}" r="5.5" '
    f'fill="{colour}"/>'
    for index, colour in enumerate(('#ff5f57', '#febc2e', '#28c840'))
  )
  head = (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
    'font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, '
    '\'DejaVu Sans Mono\', monospace" font-size="12">\n'
    f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}"/>\n'
    f'<rect width="{width}" height="{BAR}" rx="8" fill="#2c323a"/>{dots}\n'
  )
  rows = [_row(index, line) for index, line in enumerate(lines) if line]
  return head + '\n'.join(rows) + '\n</svg>\n'


def main() -> None:
  """Records, draws or checks."""
  if '--record' in sys.argv:
    log = pathlib.Path(sys.argv[sys.argv.index('--record') + 1])
    with open(log, newline='') as file:
      lines = last_states(file.read().strip())
    TEXT.write_text('\n'.join([f'$ {COMMAND}', *lines]) + '\n')
  drawn = picture(TEXT.read_text().rstrip().split('\n'))
  if '--check' in sys.argv:
    same = PICTURE.exists() and PICTURE.read_text() == drawn
    sys.exit(0 if same else f'{PICTURE}: out of date')
  PICTURE.write_text(drawn)


if __name__ == '__main__':
  main()
