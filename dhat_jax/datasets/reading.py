"""One door for what libraries raise over a user's files."""

import contextlib
import textwrap
from collections.abc import Iterator

_MAX_REASON = 300


class DataError(ValueError):
  """Files of a data set that are not what they should be: one line."""


def reason(error: Exception) -> str:
  """Returns what a library raised as one line, shortened: 'OSError: ...'."""
  text = textwrap.shorten(str(error), _MAX_REASON, placeholder=' ...')
  return f'{type(error).__name__}: {text}' if text else type(error).__name__


@contextlib.contextmanager
def reading(path: str, what: str) -> Iterator[None]:
  """Turns whatever a library raises into one line that names the file.

  TFDS, PIL, NumPy and SciPy raise a great many types, most of which do not say
  which file was read.

  Args:
    path: the file or the folder.
    what: what it should be: 'image'.

  Raises:
    DataError: a `DataError` from inside as it is, else made of the error.
  """
  try:
    yield
  except DataError:
    raise
  except Exception as error:
    raise DataError(
      f'{path}: is not a readable {what} ({reason(error)})'
    ) from error
