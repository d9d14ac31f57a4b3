"""The figures of numbers. Each returns None where a run lacks what it shows."""

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dhat_jax.report.read import Run
from dhat_jax.report.theme import (
  BLACK,
  BLUE,
  GREEN,
  GREY,
  INK,
  NARROW_INCHES,
  OUTPUT_COLOURS,
  OUTPUT_MARKERS,
  VERMILION,
  WHITE,
  new_figure,
)

_CHART_INCHES = 6.0  # the width of one chart alone, where there is room


def curves(run: Run, width: float) -> Figure | None:
  """Loss, accuracy and learning rate of every stage over its steps.

  Args:
    run: with its records.
    width: the most inches that it may take.
  """
  stages = run.stages
  if not stages:
    return None
  narrow = width <= NARROW_INCHES
  width = min(2 + 2.2 * len(stages), width)
  # Side by side in little room, the stages share their scales.
  figure, grid = new_figure(
    3, len(stages), width=width, height=6, sharey='row' if narrow else 'none'
  )
  for stage, axes in zip(stages, grid.T, strict=True):
    axes[0].set_title(stage, fontsize=8 if narrow else 10)
    _draw_stage(run, stage, axes)
    for cell in axes:
      cell.xaxis.set_major_locator(ticker.MaxNLocator(2 if narrow else 5))
  labels = ('loss', 'accuracy, %', 'learning rate')
  for axes, label in zip(grid[:, 0], labels, strict=True):
    axes.set_ylabel(label)
  handles, labels = grid[1, 0].get_legend_handles_labels()
  if handles:
    figure.legend(handles, labels, loc='outside lower center', ncols=2)
  return figure


def _draw_stage(run: Run, stage: str, axes: np.ndarray) -> None:
  """Draws a stage's loss, accuracies and learning rate, one below the other."""
  loss, accuracy, rate = axes
  _line(loss, run.series(stage, 'train/loss'), color=GREEN)
  _accuracies(accuracy, run, stage)
  rates = run.series(stage, 'train/learning_rate')
  _line(rate, rates, color=GREY, drawstyle='steps-pre')
  rate.set_ylim(bottom=0)
  rate.set_xlabel('step')


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


def sweep(run: Run, width: float) -> Figure | None:
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
    width,
  )
  axes.set_xlabel('epsilon, in 255ths')
  axes.set_ylabel('accuracy, %')
  axes.set_ylim(0, 100)
  axes.axvline(
    255 * run.results['epsilon'], color=GREY, linestyle=':', zorder=0
  )
  return figure


def loss_by_steps(run: Run, width: float) -> Figure | None:
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
    width,
  )
  axes.set_xlabel('attack steps')
  axes.set_xscale('symlog')
  steps = next(iter(results.values()))
  axes.set_xticks([int(step) for step in steps], steps)
  axes.minorticks_off()
  axes.set_ylabel('mean cross entropy')
  return figure


def _over_numbers(
  run: Run, points: dict[str, list[tuple[float, float]]], width: float
) -> tuple[Figure, Axes]:
  """A line for each output.

  Args:
    run: whose outputs they are.
    points: {output: (x, y) of its line}.
    width: the most inches that it may take.
  """
  width = min(width, _CHART_INCHES)
  figure, grid = new_figure(1, 1, width=width, height=3.4)
  axes = grid[0, 0]
  for index, output in enumerate(run.outputs):
    if points.get(output.name):
      axes.plot(
        *np.transpose(points[output.name]),
        marker=OUTPUT_MARKERS[index % len(OUTPUT_MARKERS)],
        color=OUTPUT_COLOURS[index % len(OUTPUT_COLOURS)],
        label=output.label,
        markersize=4,
      )
  axes.legend()
  return figure, axes


def per_class(run: Run, width: float) -> Figure | None:
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
    width,
  )
  axes.set_xlim(0, 100)
  axes.set_xlabel('accuracy, %')
  return figure


def influence(run: Run, width: float) -> Figure | None:
  """How much each head's logit of a class moves the aggregated one."""
  heads = run.results.get('heads', {}).get('influence')
  if not heads:
    return None
  values = {run.label(head): values for head, values in heads.items()}
  figure, axes = _class_bars(run.class_names, values, OUTPUT_COLOURS, width)
  axes.axvline(0, color=INK, linewidth=0.8)
  axes.set_xlabel(
    f"change of the {run.final_output.label} output's logit\n"
    "per change of the head's"
  )
  return figure


def _class_bars(
  names: list[str],
  values: dict[str, list[float]],
  colours: tuple[str, ...],
  width: float,
) -> tuple[Figure, Axes]:
  """Bars for every class, one of each of the values: {label: [K numbers]}."""
  height = max(2.2, 0.28 * len(names) + 1)
  figure, grid = new_figure(
    1, 1, width=min(width, _CHART_INCHES), height=height
  )
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


def confusion(run: Run, width: float) -> Figure | None:
  """What the final output takes each class for, clean and attacked."""
  results = run.results.get('confusion', {})
  counts = results.get(run.final_output.name) if run.outputs else None
  if not counts:
    return None
  names = run.class_names
  narrow = width <= NARROW_INCHES
  size = min(1.4 + 0.3 * len(names), width if narrow else width / 2)
  rows, columns = (2, 1) if narrow else (1, 2)
  figure, grid = new_figure(
    rows,
    columns,
    width=columns * size,
    height=rows * (size + 0.3),
    sharey='row',
  )
  clean, attacked = grid.ravel()
  clean.set_title('clean')
  _matrix(clean, np.array(counts['clean']), names)
  attacked.set_title(f'under {counts["attack"]}')
  _matrix(attacked, np.array(counts['attacked']), names)
  for axes in grid[:, 0]:
    axes.set_ylabel('true class')
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
        color=BLACK if shares[row, column] > 0.5 else WHITE,
        fontsize=6,
        ha='center',
        va='center',
      )
