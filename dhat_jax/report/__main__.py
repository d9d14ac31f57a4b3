"""Makes a page out of one or several runs.

    python -m dhat_jax.report --workdir=runs/x [--workdir=runs/y ...]

writes report.html, one file that opens without a network, and beside it the
folder report/ with its figures (PNG) and tables (CSV, Markdown, LaTeX).

--workdir=DIR   A run, finished or not; several are put side by side, and those
                that differ in their seed alone are averaged.
--out=DIR       Where to write. Default: the (first) workdir.
"""

import os
import sys
from collections.abc import Sequence

from absl import flags

from dhat_jax.report import page, read
from dhat_jax.runtime import cli


def write(workdirs: Sequence[str], out: str | None = None) -> str:
  """Writes the report of some runs.

  Args:
    workdirs: their folders, at least one.
    out: the folder to write to; default: the first workdir.

  Returns:
    The path of the page.

  Raises:
    ValueError: a workdir that is no folder.
    OSError: nothing can be written there.
  """
  runs = read.load_all(workdirs)
  out = workdirs[0] if out is None else out
  files: dict[str, bytes] = {}
  html = page.make(runs, files)
  folder = os.path.join(out, 'report')
  os.makedirs(folder, exist_ok=True)
  for name, data in files.items():
    with open(os.path.join(folder, name), 'wb') as file:
      file.write(data)
  path = os.path.join(out, 'report.html')
  with open(path, 'w', encoding='utf-8') as file:
    file.write(html)
  return path


def main(argv: Sequence[str]) -> None:
  """Writes what the flags name; argv[0] is the program."""
  if '--help' in argv:
    print(__doc__)
    return
  values = flags.FlagValues()
  flags.DEFINE_multi_string('workdir', [], 'A run.', flag_values=values)
  flags.DEFINE_string('out', None, 'Where to write.', flag_values=values)
  with cli.mistakes_in_one_line():
    rest = values(list(argv))[1:]
    if rest:
      raise ValueError(f'arguments: got {rest}, expected flags only')
    if not values.workdir:
      raise ValueError('--workdir: got nothing, expected the folder of a run')
    path = write(values.workdir, values.out)
  print(f'report: {path}')


if __name__ == '__main__':
  main(sys.argv)
