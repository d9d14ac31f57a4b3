r"""Trains a network and evaluates it.

    python -m dhat_jax.main --config=configs/digits.py --workdir=runs/digits

Flags, in any order:

--config=FILE       Config file, FILE.py or FILE.py:variant. Default:
                    configs/digits.py. Where the current folder has no such
                    file, configs/NAME.py means the installed one.
--workdir=DIR       Folder of the run. Default: runs/ and the config's name.
--mode=MODE         train: train what is missing, then evaluate; the default.
                    evaluate: evaluate (again).
--distributed       Run in several processes that JAX finds itself: on a TPU
                    pod, under SLURM or Open MPI.
--coordinator_address=ADDRESS
                    HOST:PORT of the first of several processes. It needs the
                    next two flags.
--num_processes=N   Number of processes of the run.
--process_id=I      Number of this process, from 0.
--cpu_devices=N     Run on N simulated CPU devices.
--only_check_args   Check the flags and the config, without data and devices,
                    and exit.

Any key of the config can be overridden by a flag:

    python -m dhat_jax.main --config=configs/digits.py --workdir=runs/short \
      --config.seed=3 --config.main_head.epochs=5 \
      --config.evaluation.attacks='("clean","pgd_20")'

docs/config_reference.md has the types, units and choices of all keys.
"""

import contextlib
import faulthandler
import gc
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from absl import logging as absl_logging

from dhat_jax.runtime import cli, signals

_START_UP = (
  'distributed',
  'coordinator_address',
  'num_processes',
  'process_id',
  'cpu_devices',
)


def parse(argv: Sequence[str]) -> flags.FlagValues:
  """Parses a command line.

  Raises:
    SystemExit: --help was given.
    ValueError, absl.flags.Error: a mistake in it, or in the config file.
  """
  values = cli.new_flags(
    __doc__, takes_config=True, default_config='configs/digits.py'
  )
  cli.define_path(values, 'workdir', 'Folder of the run.')
  for name, default in (('distributed', False), ('only_check_args', False)):
    flags.DEFINE_bool(name, default, '', flag_values=values)
  flags.DEFINE_enum(
    'mode', 'train', ['train', 'evaluate'], '', flag_values=values
  )
  flags.DEFINE_string('coordinator_address', None, '', flag_values=values)
  for name, lowest in (
    ('num_processes', 1),
    ('process_id', 0),
    ('cpu_devices', 1),
  ):
    flags.DEFINE_integer(name, None, '', lower_bound=lowest, flag_values=values)
  cli.parse(values, argv, describe=_describe)
  return values


def _describe(config: Any) -> str:
  # Imported late: it takes seconds, which only --help needs to wait for.
  from dhat_jax.from_config import reference

  return reference.help_text(config)


def _fail_at_once(message: object) -> None:
  """Fails without the usual waits at the end of a process.

  Orbax's threads wait minutes for files that other threads could not write. One
  of several processes waits for processes that are gone.
  """
  print(f'error: {message}', file=sys.stderr)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(2)


def _hide_late_callbacks(unraisable) -> None:
  """A `sys.unraisablehook` that ignores late threads of TensorStore.

  Orbax closed the event loop because of an error, and that error is reported.
  """
  if str(unraisable.exc_value) != 'Event loop is closed':
    sys.__unraisablehook__(unraisable)


@contextlib.contextmanager
def _logged_to_console(level: int) -> Iterator[None]:
  """Logs to stderr inside the context, and restores the logger after it."""
  # Orbax logs every file that it touches through absl.
  absl_logging.set_verbosity(absl_logging.WARNING)
  # What goes wrong in Orbax's threads comes as an exception as well.
  absl_logging.get_absl_logger().addFilter(
    lambda record: f'{os.sep}orbax{os.sep}' not in record.pathname
  )
  sys.unraisablehook = _hide_late_callbacks
  logger, handler = logging.getLogger('dhat_jax'), logging.StreamHandler()
  before = logger.level, logger.propagate
  logger.setLevel(level)
  logger.propagate = False
  logger.addHandler(handler)
  try:
    yield
  finally:
    logger.removeHandler(handler)
    logger.setLevel(before[0])
    logger.propagate = before[1]


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
  """Looks for unreachable objects less often inside the context.

  Tracing creates millions of objects, and nearly all of them stay.
  """
  before = gc.get_threshold()
  gc.set_threshold(50_000, 20, 20)
  try:
    yield
  finally:
    gc.set_threshold(*before)


@contextlib.contextmanager
def session(**start_up: Any) -> Iterator[None]:
  """Starts JAX for a run inside the context.

  A user's mistake ends in one clear message and exit code 2. A run that is
  asked to stop is saved, and exits with `signals.exit_code`.

  Args:
    **start_up: as `processes.initialize` takes them.
  """
  with signals.watched(_stop) as watch, _rare_collections():
    # JAX reads the environment when it is imported; not before the flags are
    # known to be good, for it takes a second.
    with cli.mistakes_in_one_line():
      import jax

      from dhat_jax.runtime import files, preemption, processes
      from dhat_jax.training import metrics

    fail = cli.fail
    try:
      processes.initialize(**start_up)
      if processes.process_count() > 1:
        fail = _fail_at_once
        watch.handle = preemption.forward
      level = logging.INFO if processes.is_first() else logging.WARNING
      with _logged_to_console(level):
        yield
    except preemption.Preempted as stop:
      print(f'stopped at {stop}: saved; resume with the same command')
      sys.exit(signals.exit_code(watch.received))
    except files.WriteError as error:
      _fail_at_once(error)
    except (ValueError, metrics.NonFiniteError, OSError) as error:
      fail(error)
    except jax.errors.JaxRuntimeError as error:
      if fail is cli.fail:
        raise
      fail(
        f'lost another process of this run ({str(error).splitlines()[0]}); '
        'resume with the same commands on all hosts'
      )


def run(
  config: Any, workdir: str, mode: str, *, report: bool = True, **start_up: Any
) -> None:
  """Runs a config; a user's mistake ends in one clear message.

  Args:
    config: the run's config.
    workdir: its folder.
    mode: 'train' or 'evaluate'.
    report: whether a report is written at the end.
    **start_up: as `processes.initialize` takes them.
  """
  with session(**start_up):
    from dhat_jax.run import train_and_evaluate
    from dhat_jax.runtime import processes

    train_and_evaluate(config, workdir, mode=mode)
    if report and processes.is_first():
      _report(workdir)


def _report(workdir: str) -> None:
  """Writes the report; an error here does not affect the results."""
  try:
    from dhat_jax.report.write import write

    print(f'report: {write([workdir])}')
  except Exception as error:
    print(
      f'warning: no report ({type(error).__name__}: {error}); try again with '
      f'python -m dhat_jax.report --workdir={workdir}',
      file=sys.stderr,
    )


def _stop(number: int) -> None:
  """Exits at a signal while no stage trains; everything is on disk."""
  print('stopped: what is finished is saved; resume with the same command')
  sys.stdout.flush()
  os._exit(signals.exit_code(number))


def workdir_of(values: flags.FlagValues) -> str:
  """Returns the folder of the run that a command line names.

  Raises:
    ValueError: neither --workdir nor a name in the config.
  """
  if values.workdir:
    return values.workdir
  name = values.config.get('name')
  if not isinstance(name, str) or not name:
    raise ValueError(
      f'config.name: got {name!r}, expected a name of the run; without one '
      'give --workdir'
    )
  return os.path.join('runs', name)


def check(config: Any, cpu_devices: int | None) -> None:
  """Checks a config on the CPU alone, without the other processes of a run.

  Args:
    config: the run's config.
    cpu_devices: number of simulated devices; None: that of JAX.

  Raises:
    ValueError: any mistake in the config.
  """
  import jax

  from dhat_jax import from_config
  from dhat_jax.runtime import backend

  jax.config.update('jax_platforms', 'cpu')
  if cpu_devices is not None:
    backend.use_cpu(cpu_devices)
  from_config.check(config)


def main(argv: Sequence[str]) -> None:
  """Runs the config that the flags name; argv[0] is the program."""
  with cli.mistakes_in_one_line():
    values = parse(argv)
    directory = workdir_of(values)
    if values.only_check_args:
      check(values.config, values.cpu_devices)
      return
  run(
    values.config,
    directory,
    values.mode,
    **{name: values[name].value for name in _START_UP},
  )


if __name__ == '__main__':
  faulthandler.enable()
  main(sys.argv)
