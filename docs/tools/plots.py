"""Draws performance.svg and results*.svg in docs from docs/results/*.json.

python docs/tools/plots.py

Needs matplotlib.
"""

import math
import pathlib
import sys

import matplotlib

matplotlib.use('svg')
import matplotlib.pyplot as plt

DOCS = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(DOCS.parent))
from dhat_jax.runtime import documents  # noqa: E402
from experiments import tables  # noqa: E402

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREY = '#0072B2', '#D55E00', '#999999'


def axis_rows(record, axis):
  """Returns the rows along one axis, in order."""
  return [row for row in record['rows'] if row['axis'] == axis]


def curve(axes, x, seconds, xlabel):
  """Measured times, and the line through the largest and the origin."""
  axes.plot(x, seconds, 'o-', color=BLUE, label='measured')
  axes.plot(
    [0, x[-1]],
    [0, seconds[-1]],
    '--',
    color=GREY,
    label='proportional',
    zorder=0,
  )
  axes.set_xlabel(xlabel)
  axes.set_xlim(left=0)
  axes.set_ylim(bottom=0)
  axes.set_ylabel('seconds')
  axes.legend(frameon=False)


def bars(axes, labels, seconds, xlabel):
  """One bar for each of a few choices."""
  places = range(len(labels))
  axes.bar(places, seconds, color=BLUE, width=0.6)
  for place, value in zip(places, seconds, strict=True):
    axes.annotate(f'{value:.2f}', (place, value), ha='center', va='bottom')
  axes.set_xticks(places, labels)
  axes.set_xlabel(xlabel)
  axes.set_ylim(top=1.15 * max(seconds))
  axes.set_ylabel('seconds')


def panel(axes, record, axis, xlabel):
  """One axis of the benchmark: a curve over numbers, bars over names."""
  rows = axis_rows(record, axis)
  values = [row['value'] for row in rows]
  seconds = [row['step_seconds'] for row in rows]
  if isinstance(values[0], int) and len(values) > 2:
    curve(axes, values, seconds, xlabel)
  else:
    labels = [str(value).replace(' ', '\n') for value in values]
    bars(axes, labels, seconds, xlabel)


def memory(axes, record):
  """Temporary memory over the batch."""
  rows = axis_rows(record, 'batch_size')
  held = [row['memory']['temporaries'] / 2**20 for row in rows]
  axes.plot([row['value'] for row in rows], held, 'o-', color=ORANGE)
  axes.set_xlabel('images in a batch')
  axes.set_ylabel('temporaries, MiB')
  axes.set_xlim(left=0)
  axes.set_ylim(bottom=0)


def network(axes, record):
  """Time over arithmetic, for networks of several depths and widths."""
  rows = axis_rows(record, 'backbone')
  for row in rows:
    point = row['gflop_per_image'], row['step_seconds']
    axes.plot(*point, 'o', color=BLUE)
    axes.annotate(
      row['value'].replace('wrn', 'WRN-').replace('_', '-'),
      point,
      xytext=(6, -3),
      textcoords='offset points',
    )
  axes.set_xlabel('GFLOP per image')
  axes.set_ylabel('seconds')
  axes.set_xlim(0, 1.5 * max(row['gflop_per_image'] for row in rows))
  axes.set_ylim(bottom=0)


def forest(axes, points, attack, title):
  """Differences in points with their intervals, one line each.

  Args:
    axes: where.
    points: [(label, {attack: (mean, low, high)})].
    attack: which.
    title: of the axes.
  """
  for place, (_, by_attack) in enumerate(points):
    mean, low, high = by_attack[attack]
    if math.isnan(low):
      low = high = mean
    certain = low > 0 or high < 0
    axes.errorbar(
      mean,
      place,
      xerr=[[mean - low], [high - mean]],
      fmt='o',
      color=BLUE if certain else GREY,
      capsize=3,
    )
  axes.axvline(0, color='black', linewidth=0.8)
  axes.set_yticks(range(len(points)), [label for label, _ in points])
  axes.invert_yaxis()
  axes.set_title(title)
  axes.set_xlabel('points')


def results(document, name, **options):
  """Draws an experiment's differences.

  Args:
    document: its JSON's name.
    name: of the file.
    **options: of `tables.intervals`.
  """
  record = documents.read(f'{DOCS}/results/{document}.json')
  points = tables.intervals(record, **options)
  attacks = tables.attacks(record)
  figure, grid = plt.subplots(
    ncols=len(attacks),
    figsize=(3 * len(attacks) + 2, 0.26 * len(points) + 1),
    layout='constrained',
    sharey=True,
  )
  for axes, attack in zip(grid, attacks, strict=True):
    forest(axes, points, attack, tables.title(attack))
    axes.label_outer()
  figure.savefig(DOCS / name, metadata={'Date': None})


def main():
  """Draws all files."""
  plt.rcParams.update({'svg.hashsalt': 'dhat', 'font.size': 9})
  performance()
  results('experiment_cifar10_cpu', 'results.svg', by_image=True)
  results('experiment_digits', 'results_digits.svg')


def performance():
  """Draws all panels of the benchmark into one file."""
  record = documents.read(f'{DOCS}/results/scaling.json')
  figure, grid = plt.subplots(2, 4, figsize=(13, 5.8), layout='constrained')
  axes = list(grid.flat)
  panel(axes[0], record, 'batch_size', 'images in a batch')
  memory(axes[1], record)
  panel(axes[2], record, 'attack_steps', 'attack steps')
  network(axes[3], record)
  panel(axes[4], record, 'devices', 'simulated devices on 2 cores')
  panel(axes[5], record, 'classes', 'classes and aggregator')
  panel(axes[6], record, 'autoattack_images', 'images under AutoAttack')
  axes[7].set_visible(False)
  figure.savefig(DOCS / 'performance.svg', metadata={'Date': None})


if __name__ == '__main__':
  main()
