"""Command line: python -m dhat_jax.main --config=configs/digits.py."""

import logging
import os
import sys

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

_DEFAULT_CONFIG = os.path.join(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
  'configs',
  'digits.py',
)

_CONFIG = config_flags.DEFINE_config_file(
  'config', _DEFAULT_CONFIG, 'Config file, FILE.py or FILE.py:variant.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run. Default: runs/<config.name>.'
)
_MODE = flags.DEFINE_enum(
  'mode',
  'train',
  ['train', 'evaluate'],
  'train: train what is missing, then evaluate. evaluate: evaluate (again).',
)


def _fail(message: object) -> None:
  print(f'error: {message}', file=sys.stderr)
  sys.exit(2)


def _reason(error: BaseException) -> str:
  """Returns what an error says, without the traceback inside it.

  A config's own ValueError comes wrapped in the text of its traceback; for
  any other error of a config file that traceback is what its author needs.
  """
  message = str(error).strip('"\'')
  _, found, tail = message.rpartition('\nValueError: ')
  return (tail if found else message).strip() or type(error).__name__


def _parse(argv: list[str]) -> list[str]:
  """Parses flags; whatever is wrong with them becomes one line."""
  for argument in argv:
    if argument.startswith('--config='):
      path = argument.removeprefix('--config=').partition(':')[0]
      if not os.path.isfile(path):
        _fail(f'--config: got {path!r}, which is no file')
      # Configs import each other as `configs.<name>`.
      sys.path.insert(
        0, os.path.dirname(os.path.dirname(os.path.abspath(path)))
      )
  try:
    return flags.FLAGS(argv)
  except (
    flags.Error,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
  ) as error:
    _fail(_reason(error))


def run(config, workdir: str, mode: str) -> None:
  """Runs a config; what the user can mend ends in one clear message."""
  # Not before the flags are known to be good: JAX takes a second to import.
  from dhat_jax import metrics, parallel, train

  # Orbax logs every file that it touches through absl.
  absl_logging.set_verbosity(absl_logging.WARNING)
  logger = logging.getLogger('dhat_jax')
  logger.setLevel(logging.INFO)
  logger.propagate = False
  logger.addHandler(logging.StreamHandler())
  parallel.initialize()
  try:
    train.train_and_evaluate(config, workdir, mode=mode)
  except train.Preempted as stop:
    print(f'stopped at {stop}: saved; resume with the same command')
  except (ValueError, metrics.NonFiniteError, OSError) as error:
    _fail(error)


def main(argv: list[str]) -> None:
  """Runs the config that the flags name."""
  if len(argv) > 1:
    _fail(f'arguments: got {argv[1:]}, expected flags only')
  config = _CONFIG.value
  run(config, _WORKDIR.value or os.path.join('runs', config.name), _MODE.value)


if __name__ == '__main__':
  sys.path.insert(
    0, os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  )
  app.run(main, flags_parser=_parse)
