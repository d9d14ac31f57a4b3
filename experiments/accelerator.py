"""The first half hour on a GPU or TPU, in slices that resume.

    python -m experiments.accelerator doctor
    python -m experiments.accelerator speed
    python -m experiments.accelerator train --data_dir=cifar10

`doctor` compares training steps and attacks with the CPU's values, `speed`
measures training steps and AutoAttack, beside PyTorch where it is installed,
`train` trains DH-AT on CIFAR-10 and attacks it. Each ends within `--seconds`.
A second call resumes with what is missing. Exit codes: 0 if all is done, 1 if
something failed or differs, 2 for a mistake in the command, 3 if the time was
too short for something. A `train` that is stopped in time and saved exits
with 0.
"""

import argparse
import math
import os
import shlex
import sys
from collections.abc import Sequence

from dhat_jax.runtime import cli, files

SECONDS = 480
# Compiling is most of the doctor's time, and a machine has cores for it.
WORKERS = 4
# Of the flags; the others have to be above 0.
LOWEST = {
  **dict.fromkeys(('workers', 'repeats', 'batch_size', 'images'), 1),
  **dict.fromkeys(('pgd_steps', 'n_iter', 'n_queries'), 1),
  **dict.fromkeys(('train_images', 'test_images', 'autoattack_images'), 0),
}


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='accelerator', description=__doc__.partition('\n')[0]
  )
  slices = parser.add_subparsers(dest='slice', required=True, metavar='SLICE')
  for name, text in (
    ('doctor', 'compares with the CPU'),
    ('reference', "computes the CPU's values; the doctor calls it"),
  ):
    doctor = _add(slices, name, text)
    doctor.add_argument('--config', default='configs/cifar10.py:trades_wrn10_2')
    doctor.add_argument(
      '--workers', type=int, default=WORKERS, help='threads that compile'
    )
  speed = _add(slices, 'speed', 'measures steps and AutoAttack')
  speed.add_argument(
    '--config',
    nargs='+',
    default=[
      'configs/cifar10.py:trades_wrn34_10',
      'configs/cifar10.py:trades_resnet18',
    ],
  )
  speed.add_argument(
    '--batch_size', nargs='+', type=int, default=[128, 256, 512, 1024]
  )
  speed.add_argument('--repeats', type=int, default=7, help='timed steps')
  speed.add_argument(
    '--images', type=int, default=256, help='that AutoAttack attacks'
  )
  speed.add_argument(
    '--torch_compile',
    action=argparse.BooleanOptionalAction,
    default=True,
    help='whether PyTorch also runs compiled',
  )
  _define_train(_add(slices, 'train', 'trains DH-AT on CIFAR-10'))
  return parser


def _define_train(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `train`; 0 images are all."""
  parser.add_argument(
    '--data_dir',
    required=True,
    type=files.user_path,
    help='a folder with cifar10.npz, or with train/ and test/ of images',
  )
  parser.add_argument('--config', default='configs/cifar10.py:trades_resnet18')
  parser.add_argument('--dtype', default='bfloat16', help='of the network')
  parser.add_argument(
    '--epochs', type=float, default=3, help="the main head's; 100 as published"
  )
  for name, default, text in (
    ('batch_size', 128, 'of all stages'),
    ('train_images', 0, 'that train'),
    ('test_images', 1000, 'that PGD attacks'),
    ('autoattack_images', 250, 'that AutoAttack attacks'),
    ('pgd_steps', 40, 'of PGD'),
    ('n_iter', 100, "of AutoAttack's APGD and FAB"),
    ('n_queries', 5000, "of AutoAttack's Square"),
  ):
    parser.add_argument(f'--{name}', type=int, default=default, help=text)


def _add(slices, name: str, text: str) -> argparse.ArgumentParser:
  """Adds a slice with the flags that all have."""
  parser = slices.add_parser(
    name,
    help=text,
    description=text,
    formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  parser.add_argument(
    '--workdir',
    type=files.user_path,
    default='runs/experiments/accelerator',
    help='for what is needed to continue',
  )
  parser.add_argument(
    '--out',
    type=files.user_path,
    default=argparse.SUPPRESS,
    help='JSON that takes a row after every measurement (default: '
    f'accelerator_{name}.json in the workdir)',
  )
  parser.add_argument(
    '--seconds', type=float, default=SECONDS, help='that it may take'
  )
  return parser


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
  """Returns the flags; those of the command line by default.

  Raises:
    ValueError: a number that cannot be.
  """
  options = _parser().parse_args(arguments)
  if not hasattr(options, 'out'):
    name = f'accelerator_{options.slice}.json'
    options.out = os.path.join(options.workdir, name)
  for name, lowest in LOWEST.items():
    value = getattr(options, name, lowest)
    for number in value if isinstance(value, list) else [value]:
      if number < lowest:
        raise ValueError(f'--{name}: got {number}, expected at least {lowest}')
  for name in ('seconds', 'epochs'):
    value = getattr(options, name, 1)
    if not 0 < value < math.inf:
      raise ValueError(
        f'--{name}: got {value}, expected a finite number above 0'
      )
  if options.slice == 'speed':  # what is given twice is measured once
    options.config = list(dict.fromkeys(options.config))
    options.batch_size = list(dict.fromkeys(options.batch_size))
  return options


def _doctor(options: argparse.Namespace, start):
  """Compares with the CPU; returns the slice."""
  from dhat_jax.runtime import config_file, devices
  from experiments import accelerator_cases, accelerator_doctor
  from experiments.accelerator_identity import identity

  devices.check_batch_size('batch size', accelerator_cases.BATCH_SIZE)
  config = config_file.read(options.config)
  part = start(accelerator_doctor.table, identity([options.config], [config]))
  accelerator_doctor.run(
    part,
    config,
    config_path=options.config,
    workdir=options.workdir,
    workers=options.workers,
  )
  return part


def _speed(options: argparse.Namespace, start):
  """Measures steps and attacks; returns the slice."""
  from dhat_jax.runtime import config_file, devices
  from experiments import accelerator_speed
  from experiments.accelerator_identity import identity

  for size in options.batch_size:
    devices.check_batch_size('--batch_size', size)
  configs = [config_file.read(path) for path in options.config]
  networks = [config.model.backbone for config in configs]
  if len(set(networks)) < len(networks):
    raise ValueError(f'--config: got the backbones {networks}, expected others')
  part = start(
    accelerator_speed.table,
    identity(
      options.config,
      configs,
      peers=('torch', 'pyautoattack'),
      flags={
        'repeats': options.repeats,
        'torch_compile': options.torch_compile,
      },
    ),
  )
  accelerator_speed.run(
    part,
    configs,
    options.batch_size,
    repeats=options.repeats,
    compiled=options.torch_compile,
    images=options.images,
  )
  return part


SLICES = {'doctor': _doctor, 'speed': _speed}


def _shown(arguments: Sequence[str]) -> list[str]:
  """Returns the arguments without what is this machine's own."""
  own = '--out=', '--workdir=', '--seconds='
  return [argument for argument in arguments if not argument.startswith(own)]


def _train(options: argparse.Namespace) -> int:
  from experiments import accelerator_train

  return 0 if accelerator_train.run(options) else 1


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs a slice; returns its exit code.

  Returns:
    As the module says.
  """
  options = parse(arguments)
  # PyTorch and JAX share the GPU.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  if options.slice == 'train':  # whose session starts JAX
    return _train(options)
  from dhat_jax.runtime import processes

  processes.initialize()
  if options.slice == 'reference':
    return _reference(options)
  typed = sys.argv[1:] if arguments is None else arguments
  part = SLICES[options.slice](options, _starter(options, typed))
  print('', *part.table(), '', part.end(), sep='\n', flush=True)
  return part.exit_code


def _reference(options: argparse.Namespace) -> int:
  from dhat_jax.runtime import config_file
  from experiments import accelerator_doctor

  accelerator_doctor.write_reference(
    config_file.read(options.config), options.workdir, workers=options.workers
  )
  return 0


def _starter(options: argparse.Namespace, typed: Sequence[str]):
  """Returns (table, identity) -> the slice."""
  from experiments import accelerator_budget

  command = ['python', '-m', 'experiments.accelerator', *_shown(typed)]

  def start(table, identity):
    return accelerator_budget.Slice(
      options.slice,
      options.out,
      seconds=options.seconds,
      identity=identity,
      command=shlex.join(command),
      table=table,
      report=lambda line: print(line, flush=True),
    )

  return start


if __name__ == '__main__':
  with cli.mistakes_in_one_line():
    sys.exit(main())
