"""Writes the report of one or several runs.

    python -m dhat_jax.report --workdir=runs/x [--workdir=runs/y ...]

writes report.html, one file that opens without a network, and beside it the
folder report/ with its figures (PNG) and tables (CSV, Markdown, LaTeX).

--workdir=DIR   A run, finished or not; several are put side by side, and those
                that differ in their seed alone are averaged.
--out=DIR       Where to write. Default: the (first) workdir.
"""

import sys
from collections.abc import Sequence

from absl import flags

from dhat_jax.report.write import write
from dhat_jax.runtime import cli


def main(argv: Sequence[str]) -> None:
  """Writes the report that the flags ask for; argv[0] is the program."""
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
