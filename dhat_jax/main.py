"""Command line: python -m dhat_jax.main --config=configs/digits.py."""

import os
import sys

from absl import app, flags, logging
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
    _fail(str(error).strip('"\'') or type(error).__name__)


def main(argv: list[str]) -> None:
  """Runs the config that the flags name."""
  if len(argv) > 1:
    _fail(f'arguments: got {argv[1:]}, expected flags only')
  # Not before the flags are known to be good: JAX takes a second to import.
  from dhat_jax import metrics, parallel, train

  logging.set_verbosity(logging.INFO)
  parallel.initialize()
  config = _CONFIG.value
  workdir = _WORKDIR.value or os.path.join('runs', config.name)
  try:
    train.train_and_evaluate(config, workdir, mode=_MODE.value)
  except train.Preempted as stop:
    print(f'stopped at {stop}; resume with the same command')
  except (ValueError, metrics.NonFiniteError, OSError) as error:
    _fail(error)


if __name__ == '__main__':
  sys.path.insert(
    0, os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  )
  app.run(main, flags_parser=_parse)
