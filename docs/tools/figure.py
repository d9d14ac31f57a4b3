"""Draws docs/dhat.svg: the network, and what each of its stages trains.

python docs/tools/figure.py            write it
python docs/tools/figure.py --check    exit with 1 if it is out of date
"""

import pathlib
import sys

PATH = pathlib.Path(__file__).parents[1] / 'dhat.svg'
WIDTH, HEIGHT = 840, 500
# Okabe and Ito's colours, which colour-blind people can tell apart.
INK, BLUE, RED = '#222222', '#0072B2', '#D55E00'
GREY, PALE = '#767676', '#a0a0a0'

# How a part is drawn in a stage: (fill, border, text, dashes).
STATES = {
  'trains': (BLUE, BLUE, '#ffffff', ''),
  'frozen': ('#e8e8e8', GREY, '#444444', ''),
  'absent': ('none', PALE, PALE, ' stroke-dasharray="4 4"'),
  'plain': ('#ffffff', INK, INK, ''),
}
# Stage: (how trunk, main head, second head and aggregator are drawn, the
# output that is attacked, what is trained).
STAGES = {
  '1: main_head': (('trains', 'trains', 'absent', 'absent'), 'main', 6),
  '2: second_head': (('frozen', 'frozen', 'trains', 'absent'), 'second', 3),
  '3: aggregator': (('frozen', 'frozen', 'frozen', 'trains'), 'aggregated', 3),
}


def text(x, y, words, size=13, *, bold=False, colour=INK, anchor='middle'):
  """One line of text."""
  weight = ' font-weight="bold"' if bold else ''
  return (
    f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" '
    f'fill="{colour}"{weight}>{words}</text>'
  )


def box(x, y, width, height, title, lines=(), *, state='plain', size=15):
  """A part of the network: its name, and lines of detail below it."""
  fill, border, colour, dashes = STATES[state]
  middle, pitch = x + width / 2, 18
  top = y + height / 2 + size * 0.35 - len(lines) * pitch / 2
  parts = [
    f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="7" '
    f'fill="{fill}" stroke="{border}" stroke-width="1.8"{dashes}/>',
    text(middle, top, title, size, bold=True, colour=colour),
  ]
  for index, line in enumerate(lines, 1):
    parts.append(text(middle, top + index * pitch, line, colour=colour))
  return ''.join(parts)


def path(points, *, colour=INK, tip=True, dashes=''):
  """A line through points, with an arrow's tip at its end."""
  steps = ' L'.join(f'{x} {y}' for x, y in points)
  end = (
    f' marker-end="url(#{"tip" if colour == INK else "red"})"' if tip else ''
  )
  return (
    f'<path d="M{steps}" fill="none" stroke="{colour}" stroke-width="1.6"'
    f'{dashes}{end}/>'
  )


def network():
  """The network with its layers, and its outputs by name."""
  head = ('block2, block3,', 'pooling, linear layer')
  return [
    text(42, 118, 'image', 15, bold=True),
    path([(72, 113), (98, 113)]),
    box(100, 76, 130, 74, 'trunk', ['conv, block1']),
    path([(230, 98), (282, 58)]),
    path([(230, 128), (282, 168)]),
    box(284, 16, 180, 84, 'main head', head),
    box(284, 126, 180, 84, 'second head', head),
    path([(464, 58), (492, 58)]),
    path([(464, 168), (492, 168)]),
    text(498, 63, 'main', 15, anchor='start'),
    text(498, 173, 'second', 15, anchor='start'),
    path([(538, 64), (582, 94)]),
    path([(552, 160), (582, 136)]),
    box(584, 72, 138, 82, 'aggregator', ['small CNN on the', '2 x K logits']),
    path([(722, 113), (748, 113)]),
    text(752, 118, 'aggregated', 15, anchor='start'),
  ]


def attack_line(x, y, output):
  """From the attacked output back to the image, below the network."""
  starts = {
    'main': [(x + 196, y + 66), (x + 206, y + 66)],
    'second': [(x + 196, y + 118), (x + 206, y + 118)],
    'aggregated': [(x + 240, y + 108)],
  }
  points = starts[output]
  bend = points[-1][0]
  points = [*points, (bend, y + 158), (x + 22, y + 158), (x + 22, y + 106)]
  return path(points, colour=RED, dashes=' stroke-dasharray="6 3"') + text(
    x + 118, y + 176, f'attack on {output}', colour=RED
  )


def stage(x, y, name, states, output, beta):
  """One stage: the network with what trains, and what is attacked."""
  trunk, main, second, aggregator = states
  arrows = [
    [(x + 34, y + 92), (x + 46, y + 92)],
    [(x + 106, y + 82), (x + 122, y + 68)],
    [(x + 106, y + 102), (x + 122, y + 116)],
  ]
  # To the aggregator, where there is one.
  if aggregator != 'absent':
    arrows += [
      [(x + 196, y + 68), (x + 210, y + 82)],
      [(x + 196, y + 116), (x + 210, y + 102)],
    ]
  elif second == 'absent':
    del arrows[2]
  return [
    f'<rect x="{x}" y="{y}" width="272" height="214" rx="8" fill="#fafafa" '
    f'stroke="#d0d0d0"/>',
    text(x + 14, y + 28, f'Stage {name}', 15, bold=True, anchor='start'),
    text(x + 20, y + 97, 'x', 16),
    *(path(points) for points in arrows),
    box(x + 48, y + 74, 58, 36, 'trunk', state=trunk, size=13),
    box(x + 124, y + 50, 72, 34, 'main', state=main, size=13),
    box(x + 124, y + 100, 72, 34, 'second', state=second, size=13),
    box(x + 212, y + 74, 50, 36, 'aggr.', state=aggregator, size=13),
    attack_line(x, y, output),
    text(
      x + 136,
      y + 200,
      f'TRADES, beta {beta}, on the {output} logits',
      size=12.5,
    ),
  ]


def legend(y):
  """What colours and lines mean."""
  parts, x = [], 18
  words = {
    'trains': 'trains',
    'frozen': 'frozen: weights and batch statistics stay',
    'absent': 'not there yet',
  }
  for state, line in words.items():
    fill, border, _, dashes = STATES[state]
    parts.append(
      f'<rect x="{x}" y="{y}" width="22" height="16" rx="4" fill="{fill}" '
      f'stroke="{border}" stroke-width="1.8"{dashes}/>'
    )
    parts.append(text(x + 30, y + 13, line, anchor='start'))
    x += 62 + 6.6 * len(line)
  line = path(
    [(x, y + 8), (x + 34, y + 8)], colour=RED, dashes=' stroke-dasharray="6 3"'
  )
  return [*parts, line, text(x + 42, y + 13, 'the attack', anchor='start')]


def figure():
  """Returns the whole drawing."""
  tips = ''.join(
    f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
    f'markerHeight="7" orient="auto"><path d="M0 0 L8 4 L0 8 z" '
    f'fill="{colour}"/></marker>'
    for name, colour in (('tip', INK), ('red', RED))
  )
  stages = [
    part
    for index, (name, what) in enumerate(STAGES.items())
    for part in stage(2 + 282 * index, 236, name, *what)
  ]
  return '\n'.join(
    [
      f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
      f'font-family="Helvetica, Arial, sans-serif">',
      f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
      f'<defs>{tips}</defs>',
      *network(),
      *stages,
      *legend(470),
      '</svg>\n',
    ]
  )


def main():
  """Writes the figure, or checks it."""
  if '--check' not in sys.argv[1:]:
    PATH.write_text(figure())
  elif PATH.read_text() != figure():
    sys.exit(f'{PATH} is out of date: run python docs/tools/figure.py')


if __name__ == '__main__':
  main()
