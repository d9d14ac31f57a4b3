"""Progress bars."""

import time
from collections.abc import Callable

import tqdm


def progress_bar(
  title: str,
  total: int,
  initial: int = 0,
  *,
  unit: str,
  disable: bool = False,
) -> tqdm.tqdm:
  """Returns a progress bar with rate and time left."""
  return tqdm.tqdm(
    desc=title,
    total=total,
    initial=initial,
    unit=unit,
    dynamic_ncols=True,
    mininterval=0.5,
    disable=disable,
  )


def throttled(bar: tqdm.tqdm) -> Callable[[str], None]:
  """Returns a function that shows a line after a bar when the bar moves."""
  shown = time.monotonic()

  def show(text: str) -> None:
    nonlocal shown
    due = time.monotonic() - shown >= bar.mininterval
    bar.set_postfix_str(text, refresh=due)
    if due:
      shown = time.monotonic()

  return show
