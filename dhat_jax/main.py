"""Command line: python -m dhat_jax.main --config=configs/digits.py."""

import logging
import os
import signal
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
_DISTRIBUTED = flags.DEFINE_bool(
  'distributed',
  False,
  'Several processes, which JAX finds: on a TPU pod, under SLURM, Open MPI.',
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator_address',
  None,
  'HOST:PORT of the first of several processes; then also the next two.',
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'How many processes the run has.', lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'Which of them this is, from 0.', lower_bound=0
)
_CPU_DEVICES = flags.DEFINE_integer(
  'cpu_devices', None, 'Runs on so many simulated CPU devices.', lower_bound=1
)


def _fail(message: object) -> None:
  print(f'error: {message}', file=sys.stderr)
  sys.exit(2)


def _fail_at_once(message: object) -> None:
  """Fails without the usual waits at the end of a process.

  Orbax's threads wait minutes for what others of them could not write, and one
  of several processes for those that are gone.
  """
  print(f'error: {message}', file=sys.stderr)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(2)


def _hide_late_callbacks(unraisable) -> None:
  """A `sys.unraisablehook`, but for threads of TensorStore that come late.

  The event loop was closed by Orbax because of an error, and it is that error
  which is told.
  """
  if str(unraisable.exc_value) != 'Event loop is closed':
    sys.__unraisablehook__(unraisable)


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


def _log_to_console(level: int) -> None:
  # Orbax logs every file that it touches through absl.
  absl_logging.set_verbosity(absl_logging.WARNING)
  # What goes wrong in Orbax's threads comes as an exception as well.
  absl_logging.get_absl_logger().addFilter(
    lambda record: f'{os.sep}orbax{os.sep}' not in record.pathname
  )
  sys.unraisablehook = _hide_late_callbacks
  logger = logging.getLogger('dhat_jax')
  logger.setLevel(level)
  logger.propagate = False
  logger.addHandler(logging.StreamHandler())


def run(config, workdir: str, mode: str, **start_up) -> None:
  """Runs a config; what the user can mend ends in one clear message.

  Args:
    config: the run's config.
    workdir: its folder.
    mode: 'train' or 'evaluate'.
    **start_up: as `devices.initialize` takes them.
  """
  # Not before the flags are known to be good: JAX takes a second to import.
  import jax

  from dhat_jax.runtime import devices, files
  from dhat_jax.training import loop, metrics

  fail = _fail
  try:
    devices.initialize(**start_up)
    if devices.process_count() > 1:
      fail = _fail_at_once
    _log_to_console(logging.INFO if devices.is_first() else logging.WARNING)
    loop.train_and_evaluate(config, workdir, mode=mode)
    if devices.is_first():
      _report(workdir)
  except loop.Preempted as stop:
    print(f'stopped at {stop}: saved; resume with the same command')
  except files.WriteError as error:
    _fail_at_once(error)
  except (ValueError, metrics.NonFiniteError, OSError) as error:
    fail(error)
  except jax.errors.JaxRuntimeError as error:
    if fail is _fail:
      raise
    fail(
      f'lost another process of this run ({str(error).splitlines()[0]}); '
      'resume with the same commands on all hosts'
    )


def _report(workdir: str) -> None:
  """Writes the report; what the run found is safe whatever happens here."""
  try:
    from dhat_jax.report.write import write

    print(f'report: {write([workdir])}')
  except Exception as error:
    print(
      f'warning: no report ({type(error).__name__}: {error}); try again with '
      f'python -m dhat_jax.report --workdir={workdir}',
      file=sys.stderr,
    )


def _stop(*_) -> None:
  """On SIGTERM while no stage trains: what is finished is on disk already."""
  print('stopped: what is finished is saved; resume with the same command')
  sys.stdout.flush()
  os._exit(0)


def main(argv: list[str]) -> None:
  """Runs the config that the flags name."""
  signal.signal(signal.SIGTERM, _stop)
  if len(argv) > 1:
    _fail(f'arguments: got {argv[1:]}, expected flags only')
  config = _CONFIG.value
  run(
    config,
    _WORKDIR.value or os.path.join('runs', config.name),
    _MODE.value,
    distributed=_DISTRIBUTED.value,
    coordinator_address=_COORDINATOR.value,
    num_processes=_NUM_PROCESSES.value,
    process_id=_PROCESS_ID.value,
    cpu_devices=_CPU_DEVICES.value,
  )


if __name__ == '__main__':
  sys.path.insert(
    0, os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  )
  app.run(main, flags_parser=_parse)
