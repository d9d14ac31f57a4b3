r"""Measures speed on this machine.

    python -m dhat_jax.benchmark --config=configs/cifar10.py:trades_wrn16_4

--what=training     A training step of every stage (or --stage), for each batch
                    size and dtype: time, images/s, compile time, arithmetic
                    against the measured peak of matrix products, memory.
--what=pipeline     What 300 steps wait for their batches.
--what=scaling      How time and memory grow with batch, attack steps, network,
                    classes, devices; and AutoAttack's time with images.
--what=peer         A training step against PyTorch's: the published procedure
                    and an optimised one, taking turns.
--what=autoattack   AutoAttack's attacks against pyautoattack's, taking turns.
                    With --workdir on a trained run and its test images;
                    without it on random ones, on which nothing breaks.

The last two need the PyTorch originals: pip install 'dhat_jax[oracle]'.

--stage=NAME        One stage; default: all of the config.
--batch_size=64     Comma-separated for several (training).
--dtype=float32     Of the network, comma-separated for several (training).
--images=256        Images that are attacked.
--n_iter=100        Iterations of APGD and FAB.
--n_queries=5000    Queries of Square.
--steps=300         Steps of --what=pipeline.
--repeats=5         Timed calls.
--cpu_devices=N     Simulated CPU devices.
--out=FILE.json     Keeps what was measured.
--json              Prints one JSON line last: what was measured; of a single
                    training step its row alone.
"""

import importlib
import json
import os
import shlex
import sys
from typing import Any

from absl import flags

from dhat_jax.runtime import cli

WHAT = ('training', 'pipeline', 'scaling', 'peer', 'autoattack')
INTEGERS = {
  'images': 256,
  'n_iter': 100,
  'n_queries': 5000,
  'steps': 300,
  'repeats': 5,
}


def _parse(argv: list[str]) -> flags.FlagValues:
  values = cli.new_flags(__doc__, takes_config=True)
  define = {'flag_values': values}
  flags.DEFINE_enum('what', 'training', WHAT, 'What is measured.', **define)
  flags.DEFINE_string('stage', None, 'Stage.', **define)
  cli.define_path(values, 'workdir', 'Trained run.')
  cli.define_path(values, 'out', 'JSON file to write.')
  flags.DEFINE_bool('json', False, 'JSON as the last line.', **define)
  flags.DEFINE_list('batch_size', ['64'], 'Batch sizes.', **define)
  flags.DEFINE_list('dtype', ['float32'], 'Precisions.', **define)
  for name, default in INTEGERS.items():
    flags.DEFINE_integer(name, default, '', lower_bound=1, **define)
  flags.DEFINE_integer('cpu_devices', None, '', lower_bound=1, **define)
  cli.parse(values, argv)
  for size in values.batch_size:
    if not (size.isascii() and size.isdigit()) or int(size) < 1:
      raise ValueError(f'--batch_size: got {size!r}, expected integers >= 1')
  if values.what != 'training' and len(values.batch_size) > 1:
    raise ValueError(
      f'--batch_size: got {values.batch_size}, expected one for '
      f'--what={values.what}'
    )
  folder = os.path.dirname(values.out or '')
  if folder and not os.path.isdir(folder):
    raise ValueError(f'--out: got {values.out!r}, but {folder!r} is no folder')
  return values


def _say(line: str) -> None:
  print(line, flush=True)


def _check_config(values: flags.FlagValues) -> None:
  """Raises ValueError for what cannot work in the config, or with it."""
  from dhat_jax import arguments, from_config
  from dhat_jax.models.layers import DTYPES

  from_config.check(values.config)
  if values.stage is not None:
    arguments.one_of('--stage', values.stage, tuple(values.config.stages))
  for dtype in values.dtype:
    arguments.one_of('--dtype', dtype, DTYPES)


def _measure(
  values: flags.FlagValues, argv: list[str]
) -> tuple[dict[str, Any], str]:
  """Returns (the document of what was measured, its table)."""
  # JAX reads its flags when it starts.
  from dhat_jax.runtime import documents, processes

  processes.initialize(cpu_devices=values.cpu_devices)
  from dhat_jax.benchmark import timing

  config = values.config
  _check_config(values)
  stages = (values.stage,) if values.stage else tuple(config.stages)
  sizes = tuple(int(size) for size in values.batch_size)
  options = {'repeats': values.repeats}
  if values.what == 'training':
    arguments = stages, sizes, tuple(values.dtype)
  elif values.what == 'pipeline':
    arguments, options = (stages, sizes[0]), {'num_steps': values.steps}
  elif values.what == 'scaling':
    arguments = stages[0], sizes[0], argv[1:]
  elif values.what == 'peer':
    arguments = stages, sizes[0]
  else:
    arguments = values.workdir, values.images, sizes[0]
    options |= {'n_iter': values.n_iter, 'n_queries': values.n_queries}
  module = importlib.import_module(f'dhat_jax.benchmark.{values.what}')
  with timing.no_compilation_cache():
    measured = module.run(config, *arguments, **options, report=_say)
  document = documents.document(
    'benchmark',
    {'what': values.what, 'config': config.name, **options, **measured},
    command=shlex.join(['python', '-m', 'dhat_jax.benchmark', *argv[1:]]),
  )
  return document, module.table(document)


def main(argv: list[str]) -> None:
  """Measures what the flags name; argv[0] is the program."""
  with cli.mistakes_in_one_line():
    values = _parse(argv)
    document, table = _measure(values, argv)
  print(f'\n{table}')
  if values.out:
    from dhat_jax.runtime import documents

    documents.write(values.out, document)
    print(f'\nwritten: {values.out}')
  if values.json:
    rows = document['rows']
    alone = values.what == 'training' and len(rows) == 1
    print(json.dumps(rows[0] if alone else document))


if __name__ == '__main__':
  main(sys.argv)
