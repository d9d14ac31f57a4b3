"""Progress bars."""

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
