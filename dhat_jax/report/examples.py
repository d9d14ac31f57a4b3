"""The figure of attacked images."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from dhat_jax.report.read import Run
from dhat_jax.report.theme import NARROW_INCHES, new_figure
from dhat_jax.runtime import pictures

_MAX_FACTOR = 10  # by which the changes of an attack are enlarged
_NARROW_IMAGES = 4  # as many side by side can be seen on a phone


def shown_attack(run: Run) -> str | None:
  """Returns the strongest stored attack on the final output, or None."""
  if not run.outputs:
    return None
  output = run.final_output.name
  accuracies = {
    attack: accuracy
    for attack, accuracy in run.results['accuracy'][output].items()
    if attack != 'clean' and _has_images(run, attack)
  }
  if not accuracies or not _has_images(run, 'clean'):
    return None
  return min(accuracies, key=accuracies.get)


def _has_images(run: Run, attack: str) -> bool:
  return len(run.arrays(run.final_output.name, attack).get('examples', ())) > 0


def examples(run: Run, width: float) -> Figure | None:
  """Clean image, change and attacked image, with predictions.

  Args:
    run: with the arrays of its evaluation.
    width: the most inches that it may take; in little room there are fewer
      images.
  """
  attack = shown_attack(run)
  if attack is None or 'examples' not in run.results:
    return None
  clean = run.arrays(run.final_output.name, 'clean')
  attacked = run.arrays(run.final_output.name, attack)
  shown = _NARROW_IMAGES if width <= NARROW_INCHES else None
  places = run.results['examples']['places'][:shown]
  labels = run.results['examples']['labels'][:shown]
  before, after = (
    arrays['examples'][:shown].astype(float) for arrays in (clean, attacked)
  )  # [n, H, W, C]
  figure, grid = new_figure(3, len(places), width=width, height=3.8)
  show_changes(grid, before, after, epsilon=run.results['epsilon'])
  for axes, label in zip(grid[0], labels, strict=True):
    axes.set_title(run.class_names[label], fontsize=8)
  for axes, arrays in ((grid[0], clean), (grid[2], attacked)):
    for cell, place, label in zip(axes, places, labels, strict=True):
      cell.set_xlabel(_predictions(run, arrays, place, label), fontsize=7)
  return figure


def show_changes(
  grid: np.ndarray, before: np.ndarray, after: np.ndarray, *, epsilon: float
) -> None:
  """Draws images, what an attack changed, and the result: a row each.

  Args:
    grid: axes [3, n].
    before: float [n, H, W, C] in [0, 1].
    after: likewise.
    epsilon: radius of the attack; small changes are enlarged.
  """
  # As large as can be shown around gray.
  factor = max(1, min(_MAX_FACTOR, int(0.5 / epsilon)))
  rows = {
    'clean': before,
    f'change x {factor}': 0.5 + factor * (after - before),
    'attacked': after,
  }
  for axes, (title, images) in zip(grid, rows.items(), strict=True):
    _show_row(axes, title, images)


def _show_row(axes: np.ndarray, title: str, images: np.ndarray) -> None:
  for cell, image in zip(axes, images.clip(0, 1), strict=True):
    cell.imshow(pictures.rgb(image))
    cell.set(xticks=[], yticks=[])
  axes[0].set_ylabel(title)


def _predictions(
  run: Run, arrays: dict[str, np.ndarray], place: int, label: int
) -> str:
  """Returns what each trained output predicts for an image, a line each."""
  names = [output.name for output in run.outputs if output.trained]
  lines = []
  for name, short in zip(names, shortened(names), strict=True):
    prediction = arrays[f'{name}_predictions'][place]
    mark = '' if prediction == label else ' \N{BALLOT X}'
    # Logits that are not finite predict no class.
    known = 0 <= prediction < len(run.class_names)
    shown = run.class_names[prediction] if known else 'none'
    lines.append(f'{short}: {shown}{mark}')
  return '\n'.join(lines)


def shortened(names: Sequence[str]) -> list[str]:
  """Returns as many first letters of each name as tell it from the others."""

  def short(name: str) -> str:
    others = [other for other in names if other != name]
    for end in range(1, len(name)):
      if not any(other.startswith(name[:end]) for other in others):
        return name[:end]
    return name

  return [short(name) for name in names]
