r"""Measures speed on this machine.

    python -m dhat_jax.benchmark --config=configs/cifar10.py:trades_wrn16_4

--what=training     A training step of every stage (or --stage), for each batch
                    size and dtype: time, images/s, compile time, arithmetic
                    against the measured peak of matrix products, memory.
--what=main_job     The whole run of --config by its command, twice: where the
                    time goes, what compiles, memory. The second start has the
                    compilation cache of the first.
--what=evaluation   The whole evaluation of --config, with its records, on a
                    tenth of --images and on all, twice each: memory. Untrained
                    weights, random images, that the last output has right.
--what=pipeline     What 300 steps wait for their batches.
--what=scaling      How time and memory grow with batch, attack steps, network,
                    classes, devices; and AutoAttack's time with images.
--what=peer         A training step against PyTorch's: the published procedure
                    and an optimised one, taking turns.
--what=operations   Each distinct convolution and batch norm of the network
                    against PyTorch's, taking turns.
--what=autoattack   AutoAttack's attacks against pyautoattack's, taking turns.
                    With --workdir on a trained run and its test images;
                    without it on random ones, on which nothing breaks.
--what=parity       AutoAttack's attacks and pyautoattack's, image by image:
                    robust flags under several seeds of each side, margins, and
                    each side's adversarial images judged by both networks.
                    --workdir as above.
--what=compile      What the compilers for TPUs and GPUs make of the programs:
                    training steps, evaluation, passes of AutoAttack. Runs
                    nothing and needs no accelerator. --target=h100:2 needs the
                    extra [compile-gpu], --target=v5e:2x2 [compile-tpu].
--what=largest      The largest batch per device that the memory of --target's
                    one device holds, for each stage and --backbones.

Four need PyTorch or its originals, peer, operations, autoattack and parity: pip
install 'dhat_jax[oracle]'.

--stage=NAME        One stage; default: all of the config.
--batch_size=64     Comma-separated for several (training).
--dtype=float32     Of the network, comma-separated for several (training).
--target=h100:2     Chip and topology, comma-separated for several (compile,
                    largest).
--backbones=NAME    In place of the config's, comma-separated (largest).
--programs=training Of compile: training, evaluation, apgd-ce, apgd-dlr, apgd-t,
                    fab, fab-t, square; comma-separated; default: all.
--images=256        Images that are attacked (evaluation, autoattack, parity).
--n_iter=100        Iterations of APGD and FAB.
--n_queries=5000    Queries of Square.
--seeds=3           Runs of each side with other random draws (parity).
--steps=300         Steps of --what=pipeline.
--repeats=5         Timed calls.
--cpu_devices=N     Simulated CPU devices.
--out=FILE.json     Writes the results there; compile and largest write after
                    each program.
--resume            Continues --out: programs in it are not compiled again, but
                    for errors. Config, JAX and compilers must be the same.
--json              Prints one JSON line last: what was measured; of a single
                    training step its row alone.

The exit code is 1 if a program of --what=compile does not compile.
"""

import importlib
import json
import os
import shlex
import sys
from types import ModuleType
from typing import Any

from absl import flags

from dhat_jax.runtime import cli

WHAT = (
  'training',
  'main_job',
  'evaluation',
  'pipeline',
  'scaling',
  'peer',
  'operations',
  'autoattack',
  'parity',
  'compile',
  'largest',
)
# What takes long enough to be stored piece by piece.
RESUMABLE = ('compile', 'largest')
_APART = ('main_job', 'evaluation')  # whole runs, in processes of their own
# Flags that only some measurements read.
READ_BY = {
  'batch_size': tuple(
    what for what in WHAT if what not in ('largest', *_APART)
  ),
  'stage': tuple(what for what in WHAT if what not in _APART),
  'cpu_devices': tuple(what for what in WHAT if what not in _APART),
  'dtype': ('training', 'compile', 'largest'),
  'target': RESUMABLE,
  'programs': ('compile',),
  'backbones': ('largest',),
  'seeds': ('parity',),
}
# Those of which a measurement takes several.
SEVERAL = {'batch_size': ('training',), 'dtype': ('training', 'compile')}
INTEGERS = {
  'images': 256,
  'n_iter': 100,
  'n_queries': 5000,
  'seeds': 3,
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
  flags.DEFINE_bool('resume', False, 'Continues --out.', **define)
  flags.DEFINE_bool('json', False, 'JSON as the last line.', **define)
  flags.DEFINE_list('batch_size', ['64'], 'Batch sizes.', **define)
  flags.DEFINE_list('dtype', ['float32'], 'Precisions.', **define)
  flags.DEFINE_list('target', [], 'What is compiled for.', **define)
  flags.DEFINE_list('backbones', [], 'Networks that are compared.', **define)
  flags.DEFINE_list('programs', [], 'What is compiled.', **define)
  for name, default in INTEGERS.items():
    flags.DEFINE_integer(name, default, '', lower_bound=1, **define)
  flags.DEFINE_integer('cpu_devices', None, '', lower_bound=1, **define)
  cli.parse(values, argv)
  _check(values)
  return values


def _check(values: flags.FlagValues) -> None:
  """Raises ValueError for flags that do not fit together."""
  what = values.what
  for name, readers in READ_BY.items():
    if values[name].present and what not in readers:
      raise ValueError(
        f'--{name}: got --what={what}, on which it has no effect, choices '
        f'are {readers}'
      )
  for size in values.batch_size:
    if not (size.isascii() and size.isdigit()) or int(size) < 1:
      raise ValueError(f'--batch_size: got {size!r}, expected integers >= 1')
  for name, readers in SEVERAL.items():
    if not values[name].value:
      raise ValueError(f'--{name}: got nothing, expected one or more')
    if what not in readers and len(values[name].value) != 1:
      raise ValueError(
        f'--{name}: got {values[name].value}, expected one for --what={what}'
      )
  folder = os.path.dirname(values.out or '')
  if folder and not os.path.isdir(folder):
    raise ValueError(f'--out: got {values.out!r}, but {folder!r} is no folder')
  if values.out and os.path.isdir(values.out):
    raise ValueError(f'--out: got {values.out!r}, a folder, expected a file')


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


def _arguments(
  values: flags.FlagValues, argv: list[str]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
  """Returns what a measurement's `run` takes: (positions, options)."""
  config = values.config
  stages = (values.stage,) if values.stage else tuple(config.stages)
  sizes = tuple(int(size) for size in values.batch_size)
  repeats = {'repeats': values.repeats}
  if values.what == 'training':
    return (stages, sizes, tuple(values.dtype)), repeats
  if values.what == 'main_job':
    return (), {}
  if values.what == 'evaluation':
    return (values.images,), {}
  if values.what == 'pipeline':
    return (stages, sizes[0]), {'num_steps': values.steps}
  if values.what == 'scaling':
    return (stages[0], sizes[0], argv[1:]), repeats
  if values.what == 'peer':
    return (stages, sizes[0]), repeats
  if values.what == 'operations':
    return (stages[0], sizes[0]), repeats
  if values.what == 'compile':
    options = {'targets': values.target, 'programs': values.programs}
    return (stages, sizes[0], tuple(values.dtype)), options
  if values.what == 'largest':
    options = {'targets': values.target, 'backbones': values.backbones}
    return (stages, values.dtype[0]), options
  budget = {'n_iter': values.n_iter, 'n_queries': values.n_queries}
  options = {'seeds': values.seeds} if values.what == 'parity' else repeats
  return (values.workdir, values.images, sizes[0]), options | budget


def _previous(
  values: flags.FlagValues, module: ModuleType
) -> tuple[list[dict[str, Any]], dict[str, str]]:
  """Returns what --resume continues from: (rows, their compilers' versions)."""
  from dhat_jax.benchmark import compile_resume
  from dhat_jax.runtime import documents

  if not values.resume:
    return [], {}
  if values.what not in RESUMABLE or not values.out:
    raise ValueError(
      f'--resume: got --what={values.what} and --out={values.out}, expected '
      f'one of {RESUMABLE} and a file'
    )
  if not os.path.exists(values.out):
    return [], {}
  document = documents.read(values.out)
  rows = compile_resume.rows(
    document,
    values.out,
    what=values.what,
    identity=compile_resume.identity(values.config, values.what),
    keys=module.KEYS,
    table=module.table,
  )
  return rows, document['compilers']


def _measure(
  values: flags.FlagValues, argv: list[str]
) -> tuple[dict[str, Any], str]:
  """Returns (the document of what was measured, its table)."""
  # JAX reads its flags when it starts.
  from dhat_jax.runtime import documents, processes

  if values.what in RESUMABLE:
    from dhat_jax.benchmark import compile_targets

    compile_targets.prepare()
  processes.initialize(cpu_devices=values.cpu_devices)
  from dhat_jax.benchmark import compile_resume, timing

  config = values.config
  _check_config(values)
  positions, options = _arguments(values, argv)
  module = importlib.import_module(f'dhat_jax.benchmark.{values.what}')
  done, compilers = _previous(values, module)
  # A resumed command is recorded as one that never stopped.
  words = [word for word in argv[1:] if word != '--resume']
  command = shlex.join(['python', '-m', 'dhat_jax.benchmark', *words])
  body = {'what': values.what, 'config': config.name, **options}
  if values.what in RESUMABLE:
    body |= compile_resume.identity(config, values.what)

  def as_document(measured: dict[str, Any]) -> dict[str, Any]:
    # Some of the earlier rows may be of other compilers.
    if values.what in RESUMABLE:
      measured['compilers'] = compilers | measured['compilers']
    return documents.document('benchmark', body | measured, command=command)

  progress = {'done': done} if values.what in RESUMABLE else {}
  if progress and values.out:
    progress['save'] = lambda measured: documents.write(
      values.out, as_document(measured)
    )
  with timing.no_compilation_cache():
    measured = module.run(
      config, *positions, **options, **progress, report=_say
    )
  document = as_document(measured)
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
  failed = sum('error' in row for row in document['rows'])
  if failed:
    total = len(document['rows'])
    print(f'error: {failed} of {total} do not compile', file=sys.stderr)
    sys.exit(1)


if __name__ == '__main__':
  main(sys.argv)
