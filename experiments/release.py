"""A trained network as files to give away: a small workdir, and PyTorch's.

    python -m experiments.release --workdir=runs/cifar10 --out=docs/models/NAME

writes `run/`, which `dhat_jax.load_run` and `--mode=evaluate` read, and
`model.pt`, a state dict with the keys of the published code (needs the extra
[oracle]). `run/` has the weights that the workdir evaluates, averaged if its
stage averages, and nothing that training would need.
"""

import argparse
import os
import pathlib

import dhat_jax
from dhat_jax import convert
from dhat_jax.pytorch import state_dicts
from dhat_jax.runtime import cli, files
from dhat_jax.training import loop
from dhat_jax.training.checkpoint import Checkpoints

LIMIT = 2_000_000  # bytes, of all files
CONFIG = 'config.json'


def release(
  workdir: str, out: str, *, data: str = 'images.npz', limit: int = LIMIT
) -> int:
  """Writes a trained run's network as files to give away.

  Args:
    workdir: the run.
    out: the new folder.
    data: what the config names as the images, in place of this machine's path.
    limit: of the size.

  Returns:
    The size of all files, in bytes.

  Raises:
    ValueError: the folder is there, no trained run, or too large.
  """
  if os.path.exists(out):
    raise ValueError(f'--out: {out} is there already; choose another one')
  run = dhat_jax.load_run(workdir)
  stage = run.config.stages[-1]
  folder = loop.checkpoint_folder(os.path.join(out, 'run'), stage)
  with Checkpoints(folder, keep=1) as checkpoints:
    checkpoints.save(1, dict(run.variables))
  # Orbax notes where it wrote.
  for path in pathlib.Path(out).rglob('commit_success.txt'):
    path.write_text('Checkpoint commit was successful')
  config = files.read_json(os.path.join(workdir, CONFIG))
  config['dataset']['data_dir'] = data
  files.write_json(os.path.join(out, 'run', CONFIG), config)
  state_dicts.write_state_dict(
    os.path.join(out, 'model.pt'), convert.export_workdir(workdir)
  )
  size = sum(p.stat().st_size for p in pathlib.Path(out).rglob('*'))
  if size > limit:
    raise ValueError(f'{out}: got {size:,} bytes, expected at most {limit:,}')
  return size


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
  """Returns the flags; those of the command line by default."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for name, text in (('--workdir', 'the run'), ('--out', 'the new folder')):
    parser.add_argument(name, required=True, type=files.user_path, help=text)
  return parser.parse_args(arguments)


def main() -> None:
  """Writes the files."""
  options = parse()
  size = release(options.workdir, options.out)
  print(f'{options.out}: {size:,} bytes')


if __name__ == '__main__':
  with cli.mistakes_in_one_line():
    main()
