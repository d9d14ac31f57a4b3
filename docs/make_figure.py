"""Draws docs/dhat.svg: the network and its three stages.

python docs/make_figure.py
"""

import pathlib

WIDTH, HEIGHT = 860, 330
# Okabe and Ito's colours, which colour-blind people can tell apart.
COLOURS = {1: '#0072B2', 2: '#D55E00', 3: '#009E73'}
INK = '#222222'


def box(x, y, width, height, title, line, stage):
  """A part of the network, in the colour of the stage that trains it."""
  colour = COLOURS[stage]
  middle = x + width / 2
  return (
    f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" '
    f'fill="{colour}" fill-opacity="0.14" stroke="{colour}" '
    f'stroke-width="2"/>'
    f'<text x="{middle}" y="{y + height / 2 - 4}" font-weight="bold">{title}'
    f'</text><text x="{middle}" y="{y + height / 2 + 15}" font-size="13">'
    f'{line}</text>'
  )


def arrow(x1, y1, x2, y2, label=''):
  """An arrow, with a word above its middle."""
  text = ''
  if label:
    text = (
      f'<text x="{(x1 + x2) / 2}" y="{(y1 + y2) / 2 - 8}" font-size="12">'
      f'{label}</text>'
    )
  return (
    f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{INK}" '
    f'stroke-width="1.6" marker-end="url(#tip)"/>{text}'
  )


def legend():
  """What each stage trains, and on what."""
  lines = {
    1: 'stage 1 trains trunk and main head',
    2: 'stage 2 trains the second head, the rest frozen',
    3: 'stage 3 trains the aggregator, the rest frozen',
  }
  parts = []
  for index, (stage, text) in enumerate(lines.items()):
    x = 16 + 280 * index
    parts.append(
      f'<rect x="{x}" y="292" width="16" height="16" rx="3" '
      f'fill="{COLOURS[stage]}" fill-opacity="0.14" '
      f'stroke="{COLOURS[stage]}" stroke-width="2"/>'
      f'<text x="{x + 24}" y="305" font-size="12" text-anchor="start">{text}'
      '</text>'
    )
  return ''.join(parts)


def figure():
  """Returns the whole drawing."""
  parts = [
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
    f'font-family="sans-serif" font-size="15" text-anchor="middle" '
    f'fill="{INK}">',
    f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" '
    'markerWidth="7" markerHeight="7" orient="auto">'
    f'<path d="M0 0 L8 4 L0 8 z" fill="{INK}"/></marker></defs>',
    '<text x="48" y="150" font-weight="bold">image</text>',
    '<text x="48" y="168" font-size="12">clean and attacked</text>',
    arrow(100, 152, 138, 152),
    box(140, 112, 140, 80, 'trunk', 'conv, block1', 1),
    arrow(280, 140, 338, 82),
    arrow(280, 164, 338, 222),
    box(340, 40, 170, 80, 'main head', 'block2, block3, linear', 1),
    box(340, 184, 170, 80, 'second head', 'block2, block3, linear', 2),
    arrow(510, 80, 588, 136, 'logits'),
    arrow(510, 224, 588, 168, 'logits'),
    box(590, 112, 150, 80, 'aggregator', 'light CNN', 3),
    arrow(740, 152, 776, 152),
    '<text x="816" y="150" font-weight="bold">class</text>',
    '<text x="816" y="168" font-size="12">scores</text>',
    legend(),
    '</svg>',
  ]
  return '\n'.join(parts) + '\n'


if __name__ == '__main__':
  pathlib.Path(__file__).with_name('dhat.svg').write_text(figure())
