"""Command lines that take a config, apart from `dhat_jax.main`'s."""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence

from absl import flags
from ml_collections import config_flags


def new_flags(argv: Sequence[str]) -> flags.FlagValues:
  """Returns a set of flags, beside other commands', that has --config.

  Args:
    argv: the command line; argv[0] is the program.
  """
  values = flags.FlagValues()
  config_flags.DEFINE_config_file(
    'config',
    help_string='Config file, FILE.py or FILE.py:variant.',
    flag_values=values,
    sys_argv=list(argv),
  )
  return values


def parse(values: flags.FlagValues, argv: Sequence[str]) -> None:
  """Parses a command line into its flags.

  Config files of a user's own may import this project's, `configs.<name>`.

  Raises:
    ValueError, absl.flags.Error, AttributeError, KeyError, TypeError: a
      mistake in it, or in the values that it gives to the config.
  """
  sys.path.insert(0, os.path.dirname(os.path.dirname(__file__)))
  for argument in argv:
    if argument.startswith('--config='):
      # Configs import each other as `configs.<name>`.
      path = os.path.abspath(argument.partition('=')[2].partition(':')[0])
      sys.path.insert(0, os.path.dirname(os.path.dirname(path)))
  rest = values(list(argv))[1:]
  if rest:
    raise ValueError(f'arguments: got {rest}, expected flags only')


@contextlib.contextmanager
def mistakes_in_one_line(*others: type[Exception]) -> Iterator[None]:
  """Turns what a user can mend into one line on stderr and exit code 2.

  Args:
    *others: further exceptions that are a user's mistake.
  """
  try:
    yield
  except (
    flags.Error,
    AttributeError,
    ImportError,
    KeyError,
    OSError,
    TypeError,
    ValueError,
    *others,
  ) as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)
