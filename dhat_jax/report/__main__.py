"""Writes the report of one or several runs.

    python -m dhat_jax.report --workdir=runs/x [--workdir=runs/y ...]

writes report.html, one file that opens without a network, and beside it the
folder report/ with its figures (PNG) and tables (CSV, Markdown, LaTeX).

--workdir=DIR   A run, finished or not. Several are compared in tables that
                sort; those that differ in their seed alone are averaged.
--out=DIR       Where to write. Default: the (first) workdir.
"""

import sys
from collections.abc import Sequence

from absl import flags

from dhat_jax.report.write import write
from dhat_jax.runtime import cli


def _parse(argv: Sequence[str]) -> flags.FlagValues:
  values = cli.new_flags(__doc__)
  cli.define_path(values, 'workdir', 'A run.', several=True)
  cli.define_path(values, 'out', 'Where to write.')
  cli.parse(values, argv)
  if not values.workdir:
    raise ValueError('--workdir: got nothing, expected the folder of a run')
  return values


def main(argv: Sequence[str]) -> None:
  """Writes the report that the flags ask for; argv[0] is the program."""
  with cli.mistakes_in_one_line():
    values = _parse(argv)
    path = write(values.workdir, values.out)
  print(f'report: {path}')


if __name__ == '__main__':
  main(sys.argv)
