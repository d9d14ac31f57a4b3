"""Imports of other libraries that import more than is used of them."""

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def hidden(name: str) -> Iterator[None]:
  """Lets imports inside the context see a package as not installed.

  For libraries that import an optional package. A package that is imported
  already stays visible.

  Args:
    name: of the package.
  """
  if name in sys.modules:
    yield
    return
  sys.modules[name] = None
  try:
    yield
  finally:
    del sys.modules[name]
