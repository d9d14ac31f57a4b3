"""The figures of numbers. Each returns None where a run lacks what it shows."""

import io
from collections.abc import Callable

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dhat_jax.report.read import Run

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, GREEN, VERMILION, GREY = '#0072B2', '#009E73', '#D55E00', '#999999'
YELLOW, PURPLE, SKY = '#E69F00', '#CC79A7', '#56B4E9'
# Of the outputs, in their order; further ones begin again.
_COLOURS = (BLUE, YELLOW, GREY, VERMILION, GREEN, PURPLE, SKY)
_MARKERS = 'os^Dvpx'
WIDTH_INCHES = 8.4  # fits the page
_STYLE = {
  'font.size': 9,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.titlesize': 10,
  'legend.frameon': False,
  'figure.dpi': 110,
  'text.parse_math': False,  # a $ in a name is a $
}


def png(draw: Callable[[Run], Figure | None], run: Run) -> bytes | None:
  """Returns a figure of a run as a PNG file, None if there is none."""
  with matplotlib.rc_context(_STYLE):
    figure = draw(run)
    if figure is None:
      return None
    content = io.BytesIO()
    figure.savefig(content, format='png')
  return content.getvalue()


def new_figure(
  rows: int, columns: int, *, width: float, height: float
) -> tuple[Figure, np.ndarray]:
  """Returns a figure of a size in inches, and its axes [rows, columns]."""
  figure = Figure(figsize=(width, height), layout='constrained')
  return figure, figure.subplots(rows, columns, squeeze=False)


def curves(run: Run) -> Figure | None:
  """Loss, accuracy and learning rate of every stage over its steps."""
  stages = run.stages
  if not stages:
    return None
  width = min(2 + 2.2 * len(stages), WIDTH_INCHES)
  figure, grid = new_figure(3, len(stages), width=width, height=6)
  for stage, (loss, accuracy, rate) in zip(stages, grid.T, strict=True):
    loss.set_title(stage)
    _line(loss, run.series(stage, 'train/loss'), color=GREEN)
    _accuracies(accuracy, run, stage)
    rates = run.series(stage, 'train/learning_rate')
    _line(rate, rates, color=GREY, drawstyle='steps-pre')
    rate.set_ylim(bottom=0)
    rate.set_xlabel('step')
  labels = ('loss', 'accuracy, %', 'learning rate')
  for axes, label in zip(grid[:, 0], labels, strict=True):
    axes.set_ylabel(label)
  handles, labels = grid[1, 0].get_legend_handles_labels()
  if handles:
    figure.legend(handles, labels, loc='outside lower center', ncols=2)
  return figure


def _line(axes: Axes, points: tuple[list, list], **style) -> None:
  """Draws a line; one record alone is a point."""
  axes.plot(*points, marker='o' if len(points[0]) == 1 else '', **style)


def _accuracies(axes: Axes, run: Run, stage: str) -> None:
  for key, label, colour, style in (
    ('train/clean_accuracy', 'training, clean', BLUE, '-'),
    ('train/robust_accuracy', 'training, attacked', VERMILION, '-'),
    ('validation/clean_accuracy', 'held out, clean', BLUE, 'o:'),
    ('validation/robust_accuracy', 'held out, attacked', VERMILION, 'o:'),
  ):
    steps, values = run.series(stage, key)
    if steps:
      axes.plot(
        steps,
        100 * np.array(values),
        style if len(steps) > 1 else 'o',
        color=colour,
        label=label,
        markersize=3,
      )
  axes.set_ylim(0, 100)


def sweep(run: Run) -> Figure | None:
  """Accuracy over epsilon."""
  results = run.results.get('sweep')
  if not results:
    return None
  figure, axes = _over_numbers(
    run,
    {
      output: [
        (float(radius.partition('/')[0]), 100 * accuracy)
        for radius, accuracy in row.items()
      ]
      for output, row in results.items()
    },
  )
  axes.set_xlabel('epsilon, in 255ths')
  axes.set_ylabel('accuracy, %')
  axes.set_ylim(0, 100)
  axes.axvline(
    255 * run.results['epsilon'], color=GREY, linestyle=':', zorder=0
  )
  return figure


def loss_by_steps(run: Run) -> Figure | None:
  """Mean loss over the number of attack steps."""
  results = run.results.get('loss_by_steps')
  if not results:
    return None
  figure, axes = _over_numbers(
    run,
    {
      output: [(int(steps), loss) for steps, (loss, _) in row.items()]
      for output, row in results.items()
    },
  )
  axes.set_xlabel('attack steps')
  axes.set_xscale('symlog')
  steps = next(iter(results.values()))
  axes.set_xticks([int(step) for step in steps], steps)
  axes.minorticks_off()
  axes.set_ylabel('mean cross entropy')
  return figure


def _over_numbers(
  run: Run, points: dict[str, list[tuple[float, float]]]
) -> tuple[Figure, Axes]:
  """A line for each output.

  Args:
    run: whose outputs they are.
    points: {output: (x, y) of its line}.
  """
  figure, grid = new_figure(1, 1, width=6, height=3.4)
  axes = grid[0, 0]
  for index, output in enumerate(run.outputs):
    if points.get(output.name):
      axes.plot(
        *np.transpose(points[output.name]),
        marker=_MARKERS[index % len(_MARKERS)],
        color=_COLOURS[index % len(_COLOURS)],
        label=output.label,
        markersize=4,
      )
  axes.legend()
  return figure, axes


def per_class(run: Run) -> Figure | None:
  """Accuracy of the final output on every class."""
  names = run.class_names
  if not names:
    return None
  rows = run.results['per_class'][run.final_output.name]
  figure, axes = _class_bars(
    names,
    {
      label: [100 * (rows[name][key] or 0) for name in names]
      for key, label in (
        ('clean', 'clean'),
        ('worst_case', 'under all attacks'),
      )
    },
    (BLUE, VERMILION),
  )
  axes.set_xlim(0, 100)
  axes.set_xlabel('accuracy, %')
  return figure


def influence(run: Run) -> Figure | None:
  """How much each head's logit of a class moves the aggregated one."""
  heads = run.results.get('heads', {}).get('influence')
  if not heads:
    return None
  values = {f'{head} head': values for head, values in heads.items()}
  figure, axes = _class_bars(run.class_names, values, _COLOURS)
  axes.axvline(0, color='black', linewidth=0.8)
  axes.set_xlabel('change of the aggregated logit per change of the head')
  return figure


def _class_bars(
  names: list[str], values: dict[str, list[float]], colours: tuple[str, ...]
) -> tuple[Figure, Axes]:
  """Bars for every class, one of each of the values: {label: [K numbers]}."""
  height = max(2.2, 0.28 * len(names) + 1)
  figure, grid = new_figure(1, 1, width=6, height=height)
  axes = grid[0, 0]
  distance = 0.8 / len(values)
  for index, (label, numbers) in enumerate(values.items()):
    axes.barh(
      np.arange(len(names)) + distance * (index - (len(values) - 1) / 2),
      numbers,
      height=0.95 * distance,
      color=colours[index % len(colours)],
      label=label,
    )
  axes.set_yticks(np.arange(len(names)), names)
  axes.invert_yaxis()
  figure.legend(loc='outside lower center', ncols=2)
  return figure, axes


def confusion(run: Run) -> Figure | None:
  """What the final output takes each class for, clean and attacked."""
  results = run.results.get('confusion', {})
  counts = results.get(run.final_output.name) if run.outputs else None
  if not counts:
    return None
  names = run.class_names
  size = min(1.4 + 0.3 * len(names), WIDTH_INCHES / 2)
  figure, grid = new_figure(1, 2, width=2 * size, height=size + 0.3)
  clean, attacked = grid[0]
  clean.set_title('clean')
  clean.set_ylabel('true class')
  _matrix(clean, np.array(counts['clean']), names)
  attacked.set_title(f'under {counts["attack"]}')
  _matrix(attacked, np.array(counts['attacked']), names)
  attacked.tick_params(labelleft=False)
  return figure


def _matrix(axes: Axes, counts: np.ndarray, names: list[str]) -> None:
  """Draws counts int [K, K], coloured by their share of the row."""
  shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
  axes.imshow(shares, cmap='cividis', vmin=0, vmax=1)
  axes.set_xlabel('predicted')
  if len(names) > 20:
    return
  axes.set_xticks(range(len(names)), names, rotation=90)
  axes.set_yticks(range(len(names)), names)
  for (row, column), count in np.ndenumerate(counts):
    if count:
      axes.text(
        column,
        row,
        str(count),
        color='black' if shares[row, column] > 0.5 else 'white',
        fontsize=6,
        ha='center',
        va='center',
      )
