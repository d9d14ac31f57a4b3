"""Writes a report: the page, and its figures and tables beside it."""

import os
from collections.abc import Sequence

from dhat_jax.report import page, read
from dhat_jax.runtime import files


def write(workdirs: Sequence[str], out: str | None = None) -> str:
  """Writes the report of some runs: report.html and the folder report/.

  Args:
    workdirs: their folders, at least one.
    out: the folder to write to; default: the first workdir.

  Returns:
    The path of the page.

  Raises:
    ValueError: a workdir that is no folder, or holds no run.
    OSError: nothing can be written there.
  """
  workdirs = [files.user_path(workdir) for workdir in workdirs]
  out = files.user_path(out) or workdirs[0]
  report = page.render(read.load_all(workdirs))
  for name, content in report.files.items():
    with files.replacing(os.path.join(out, 'report', name), 'wb') as file:
      file.write(content)
  path = os.path.join(out, 'report.html')
  with files.replacing(path, 'wb') as file:
    file.write(report.html.encode())
  return path
