"""The first half hour on a GPU or TPU, in slices that resume.

    python -m experiments.accelerator doctor
    python -m experiments.accelerator speed
    python -m experiments.accelerator train --data_dir=cifar10

`doctor` compares training steps and attacks with the CPU's values, `speed`
measures training steps and AutoAttack, beside PyTorch where it is installed,
`train` trains DH-AT on CIFAR-10 and attacks it. Each ends within `--seconds`.
A second call resumes with what is missing.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence

from dhat_jax.runtime import cli, files

SECONDS = 480
# Compiling is most of the doctor's time, and a machine has cores for it.
WORKERS = 4


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
    default=f'docs/results/accelerator_{name}.json',
    help='JSON that takes a row after every measurement',
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
  for name in ('seconds', 'workers', 'repeats'):
    value = getattr(options, name, 1)
    if not value > 0:
      raise ValueError(f'--{name}: got {value}, expected more than 0')
  return options


def _doctor(options: argparse.Namespace, part) -> bool:
  from dhat_jax.runtime import config_file
  from experiments import accelerator_doctor

  return accelerator_doctor.run(
    part,
    config_file.read(options.config),
    config_path=options.config,
    workdir=options.workdir,
    workers=options.workers,
  )


def _speed(options: argparse.Namespace, part) -> bool:
  from dhat_jax.runtime import config_file
  from experiments import accelerator_speed

  return accelerator_speed.run(
    part,
    [config_file.read(path) for path in options.config],
    options.batch_size,
    repeats=options.repeats,
    compiled=options.torch_compile,
    images=options.images,
  )


SLICES = {'doctor': _doctor, 'speed': _speed}


def _shown(arguments: Sequence[str]) -> list[str]:
  """Returns the arguments without what is this machine's own."""
  own = '--out=', '--workdir=', '--seconds='
  return [argument for argument in arguments if not argument.startswith(own)]


def _train(options: argparse.Namespace) -> int:
  from experiments import accelerator_train

  accelerator_train.run(options)
  return 0


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs a slice; returns its exit code.

  Returns:
    0, or 1 where something failed or differs.
  """
  options = parse(arguments)
  # PyTorch and JAX share the GPU.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  if options.slice == 'train':  # whose session starts JAX
    return _train(options)
  from dhat_jax.runtime import config_file, processes
  from experiments import (
    accelerator_budget,
    accelerator_doctor,
    accelerator_speed,
  )

  processes.initialize()
  if options.slice == 'reference':
    config = config_file.read(options.config)
    accelerator_doctor.write_reference(
      config, options.workdir, workers=options.workers
    )
    return 0
  typed = sys.argv[1:] if arguments is None else arguments
  part = accelerator_budget.Slice(
    options.slice,
    options.out,
    seconds=options.seconds,
    command=shlex.join(
      ['python', '-m', 'experiments.accelerator', *_shown(typed)]
    ),
    table={'doctor': accelerator_doctor, 'speed': accelerator_speed}[
      options.slice
    ].table,
    report=lambda line: print(line, flush=True),
  )
  fine = SLICES[options.slice](options, part)
  print('', *part.table(), sep='\n', flush=True)
  return 0 if fine and not part.failed else 1


if __name__ == '__main__':
  with cli.mistakes_in_one_line():
    sys.exit(main())
