"""The figures. Each function returns None where a run lacks what it shows."""

from collections.abc import Callable

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from dhat_jax.report.read import Run

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = {
  'main': '#0072B2',
  'second': '#E69F00',
  'mean': '#999999',
  'aggregated': '#D55E00',
}
WIDTH = 8.4  # inches that fit the page
BLUE, GREEN, ORANGE, GREY = '#0072B2', '#009E73', '#D55E00', '#999999'
MARKERS = {'main': 'o', 'second': 's', 'mean': '^', 'aggregated': 'D'}
STYLE = {
  'font.size': 9,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.titlesize': 10,
  'legend.frameon': False,
  'figure.dpi': 110,
}


def _figure(rows: int, columns: int, width: float, height: float):
  return plt.subplots(
    *(rows, columns),
    figsize=(width, height),
    squeeze=False,
    layout='constrained',
  )


def curves(run: Run) -> Figure | None:
  """Loss, accuracy and learning rate of every stage over its steps."""
  if not run.stages:
    return None
  stages = run.stages
  figure, grid = _figure(3, len(stages), min(2 + 2.2 * len(stages), WIDTH), 6)
  lines = (
    ('train/clean_accuracy', 'training, clean', BLUE, '-'),
    ('train/robust_accuracy', 'training, attacked', ORANGE, '-'),
    ('validation/clean_accuracy', 'held out, clean', BLUE, 'o:'),
    ('validation/robust_accuracy', 'held out, attacked', ORANGE, 'o:'),
  )
  for column, stage in enumerate(stages):
    loss, accuracy, rate = grid[:, column]
    loss.set_title(stage)
    losses = run.series(stage, 'train/loss')
    # One record alone is no line.
    marker = 'o' if len(losses[0]) == 1 else ''
    loss.plot(*losses, color=GREEN, marker=marker)
    for key, label, colour, style in lines:
      steps, values = run.series(stage, key)
      if steps:
        percent = 100 * np.array(values)
        accuracy.plot(
          *(steps, percent, style if len(steps) > 1 else 'o'),
          color=colour,
          label=label,
          markersize=3,
        )
    accuracy.set_ylim(0, 100)
    rates = run.series(stage, 'train/learning_rate')
    rate.plot(*rates, color=GREY, drawstyle='steps-pre', marker=marker)
    rate.set_ylim(bottom=0)
    rate.set_xlabel('step')
  for axes, label in zip(
    grid[:, 0], ('loss', 'accuracy, %', 'learning rate'), strict=True
  ):
    axes.set_ylabel(label)
  handles, labels = grid[1, 0].get_legend_handles_labels()
  if handles:
    figure.legend(handles, labels, loc='outside lower center', ncols=2)
  return figure


def _by_output(run: Run, key: str, value: Callable, label: str):
  """A line for each output over the numbers that are a table's keys."""
  figure, grid = _figure(1, 1, 6, 3.4)
  axes = grid[0, 0]
  for output in run.outputs:
    row = run.results[key].get(output)
    if row:
      x, y = zip(*(value(name, found) for name, found in row.items()))  # noqa: B905
      axes.plot(
        *(x, y, MARKERS[output]),
        linestyle='-',
        color=COLOURS[output],
        label=output,
        markersize=4,
      )
  axes.set_xlabel(label)
  axes.legend()
  return figure, axes


def sweep(run: Run) -> Figure | None:
  """Accuracy over epsilon."""
  if not run.results.get('sweep'):
    return None

  def point(name, accuracy):
    return float(name.partition('/')[0]), 100 * accuracy

  figure, axes = _by_output(run, 'sweep', point, 'epsilon, in 255ths')
  axes.set_ylabel('accuracy, %')
  axes.set_ylim(0, 100)
  axes.axvline(
    255 * run.results['epsilon'], color=GREY, linestyle=':', zorder=0
  )
  return figure


def loss_by_steps(run: Run) -> Figure | None:
  """Mean loss over the number of attack steps."""
  if not run.results.get('loss_by_steps'):
    return None

  def point(name, found):
    return int(name), found[0]

  figure, axes = _by_output(run, 'loss_by_steps', point, 'attack steps')
  axes.set_xscale('symlog')
  steps = next(iter(run.results['loss_by_steps'].values()))
  axes.set_xticks([int(step) for step in steps], steps)
  axes.minorticks_off()
  axes.set_ylabel('mean cross entropy')
  return figure


def per_class(run: Run) -> Figure | None:
  """Accuracy of the final output on every class."""
  rows = run.results.get('per_class', {}).get(run.final_output)
  if not rows:
    return None
  names = list(rows)
  figure, grid = _figure(1, 1, 6, max(2.2, 0.28 * len(names) + 1))
  axes = grid[0, 0]
  places = np.arange(len(names))
  for shift, key, colour, label in (
    (-0.2, 'clean', BLUE, 'clean'),
    (0.2, 'worst_case', ORANGE, 'under all attacks'),
  ):
    shares = [100 * (rows[name][key] or 0) for name in names]
    axes.barh(places + shift, shares, 0.38, color=colour, label=label)
  axes.set_yticks(places, names)
  axes.invert_yaxis()
  axes.set_xlim(0, 100)
  axes.set_xlabel('accuracy, %')
  figure.legend(loc='outside lower center', ncols=2)
  return figure


def confusion(run: Run) -> Figure | None:
  """What the final output takes each class for, clean and attacked."""
  found = run.results.get('confusion', {}).get(run.final_output)
  if not found:
    return None
  names = list(run.results['per_class'][run.final_output])
  size = min(1.4 + 0.3 * len(names), WIDTH / 2)
  figure, grid = _figure(1, 2, 2 * size, size + 0.3)
  titles = ('clean', f'under {found["attack"]}')
  for axes, key, title in zip(
    grid[0], ('clean', 'attacked'), titles, strict=True
  ):
    counts = np.array(found[key], float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap='cividis', vmin=0, vmax=1)
    axes.set_title(title)
    axes.set_xlabel('predicted')
    if len(names) <= 20:
      axes.set_xticks(range(len(names)), names, rotation=90)
      axes.set_yticks(range(len(names)), names if key == 'clean' else [])
      for (row, column), count in np.ndenumerate(counts.astype(int)):
        if count:
          colour = 'black' if shares[row, column] > 0.5 else 'white'
          axes.text(
            *(column, row, str(count)),
            color=colour,
            fontsize=6,
            ha='center',
            va='center',
          )
  grid[0, 0].set_ylabel('true class')
  return figure


def shown_attack(run: Run) -> str | None:
  """Returns the strongest attack on the final output that kept images."""
  output = run.final_output
  clean = run.part(output, 'clean') if output else None
  if clean is None or not len(clean.get('examples', ())):
    return None
  kept = {
    name: value
    for name, value in run.results['accuracy'][output].items()
    if name != 'clean'
    and len((run.part(output, name) or {}).get('examples', ()))
  }
  return min(kept, key=kept.get) if kept else None


def examples(run: Run) -> Figure | None:
  """Clean image, change and attacked image, with predictions."""
  attack = shown_attack(run)
  if attack is None or 'examples' not in run.results:
    return None
  output = run.final_output
  names = list(run.results['per_class'][output])
  places = run.results['examples']['places']
  labels = run.results['examples']['labels']
  clean, attacked = run.part(output, 'clean'), run.part(output, attack)
  original = clean['examples'].astype(float)
  changed = attacked['examples'].astype(float)
  # As large as can be shown around gray, 10 times at most.
  factor = max(1, min(10, int(0.5 / run.results['epsilon'])))
  rows = (original, 0.5 + factor * (changed - original), changed)
  figure, grid = _figure(3, len(places), WIDTH, 3.8)
  for column, place in enumerate(places):
    for axes, images in zip(grid[:, column], rows, strict=True):
      image = images[column].clip(0, 1)
      axes.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, 'gray')
      axes.set(xticks=[], yticks=[])
    grid[0, column].set_title(names[labels[column]], fontsize=8)
    for axes, part in ((grid[0, column], clean), (grid[2, column], attacked)):
      text = _predictions(run, part, place, names, labels[column])
      axes.set_xlabel(text, fontsize=7)
  for axes, label in zip(
    grid[:, 0], ('clean', f'change x {factor}', 'attacked'), strict=True
  ):
    axes.set_ylabel(label)
  return figure


def _predictions(run, part, place, names, label) -> str:
  """What each trained output says of an image, a line each."""
  lines = []
  for output in run.outputs:
    if output != 'mean':
      found = part[f'{output}_predictions'][place]
      mark = '' if found == label else ' \N{BALLOT X}'
      lines.append(f'{output[0]}: {names[found]}{mark}')
  return '\n'.join(lines)


def influence(run: Run) -> Figure | None:
  """How much each head's logit of a class moves the aggregated one."""
  found = run.results.get('heads', {}).get('influence')
  if not found:
    return None
  names = list(run.results['per_class']['aggregated'])
  figure, grid = _figure(1, 1, 6, max(2.2, 0.28 * len(names) + 1))
  axes = grid[0, 0]
  places = np.arange(len(names))
  for shift, head in ((-0.2, 'main'), (0.2, 'second')):
    axes.barh(
      *(places + shift, found[head], 0.38),
      color=COLOURS[head],
      label=f'{head} head',
    )
  axes.set_yticks(places, names)
  axes.invert_yaxis()
  axes.axvline(0, color='black', linewidth=0.8)
  axes.set_xlabel('change of the aggregated logit per change of the head')
  figure.legend(loc='outside lower center', ncols=2)
  return figure


_FIGURES = {
  'curves': curves,
  'sweep': sweep,
  'per_class': per_class,
  'confusion': confusion,
  'loss_by_steps': loss_by_steps,
  'examples': examples,
  'influence': influence,
}


def draw(name: str, run: Run) -> Figure | None:
  """Draws the figure of a name; None if the run lacks what it shows."""
  with plt.rc_context(STYLE):
    return _FIGURES[name](run)
