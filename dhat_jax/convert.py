r"""Converts PyTorch state dicts to workdirs and back.

    python -m dhat_jax.convert --from_torch=model.pt \
        --config=configs/cifar10.py --workdir=runs/imported
    python -m dhat_jax.convert --to_torch=model.pt --workdir=runs/cifar10

`.pt`, `.pth`, `.tar`, `.bin` and `.ckpt` files need PyTorch (the extra
[oracle]). `.npz` files, with one array per key, do not. The keys are those of
the published code (see `dhat_jax.pytorch.names`); a common prefix is ignored.
Of several state dicts in a file the likeliest is read, or the one that
`--entry` names, as `--entry=ema`.

Batch norm's running variances are copied unchanged. PyTorch's estimate is
unbiased and ours is not (see `dhat_jax.models.layers`), but in evaluation they
have the same meaning. A state dict has no per-channel normalisation of the
images; the config has it.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

if __name__ == '__main__':
  from dhat_jax.runtime.cli import mistakes_in_one_line

  with mistakes_in_one_line():
    import jax  # it reads the environment

import jax
import ml_collections
import numpy as np
from absl import flags

from dhat_jax import from_config, run
from dhat_jax.pytorch import state_dicts
from dhat_jax.pytorch.state_dicts import from_torch, to_torch
from dhat_jax.runtime import cli, files, lock, processes
from dhat_jax.training import loop
from dhat_jax.training.checkpoint import Checkpoints
from dhat_jax.training.stages import Stage, initial_state
from dhat_jax.training.state import TrainState

__all__ = ['export_workdir', 'from_torch', 'import_workdir', 'to_torch']


def import_workdir(
  state_dict: Mapping[str, Any],
  config: ml_collections.ConfigDict,
  directory: str,
  *,
  source: str,
) -> None:
  """Writes a workdir whose stages are finished, for `--mode=evaluate`.

  Each stage gets one checkpoint, at its last step. The size of the training set
  determines that step, so the data set must be available. The optimiser state
  is zero.

  Args:
    state_dict: {key: array} of all parts that the config's stages train.
    config: the run's config.
    directory: the workdir; it must not hold checkpoints.
    source: where the weights came from, for the records.

  Raises:
    ValueError: bad config, workdir or state dict, or NaN in it.
  """
  directory = files.user_path(directory)
  from_config.check(config)
  if config.compare_with_natural:
    raise ValueError(
      'config.compare_with_natural: got True, but there are no weights of a '
      'naturally trained network; give --config.compare_with_natural=false'
    )
  for name in config.stages:
    folder = loop.checkpoint_folder(directory, name)
    if os.path.isdir(folder):
      raise ValueError(f'{folder} is there already; choose another --workdir')
  dataset = from_config.load_dataset(config)
  experiment = from_config.make_experiment(config, dataset)
  try:
    variables = state_dicts.from_torch(
      state_dict,
      from_config.make_network(config),
      image_channels=experiment.image_shape[-1],
    )
  except ValueError as error:
    raise ValueError(f'{source}: {error}') from error
  data = from_config.digests(config, dataset)
  with lock.held(directory):
    run.prepare_workdir(config, directory, data=data)
    for stage in experiment.stages:
      state = _trained_state(stage, variables, experiment.image_shape)
      folder = loop.checkpoint_folder(directory, stage.name)
      with Checkpoints(folder, keep=config.checkpoint.keep) as checkpoints:
        checkpoints.save(
          stage.num_steps,
          state,
          info={'seconds': 0.0, 'imported_from': source},
        )


def export_workdir(directory: str) -> dict[str, np.ndarray]:
  """Returns the network that a workdir evaluates, as a state dict.

  Args:
    directory: the workdir.

  Raises:
    ValueError: no run, not trained, or NaN in its weights.
  """
  trained = run.load_run(directory)
  return state_dicts.to_torch(trained.variables, trained.net)


def _trained_state(
  stage: Stage,
  variables: Mapping[str, Any],
  image_shape: tuple[int, int, int],
) -> TrainState:
  """Returns a stage's last state, with a zero optimiser state."""
  # Shapes alone: initialising the network would have to be compiled.
  shapes = jax.eval_shape(lambda: initial_state(stage, image_shape))
  state = jax.tree.map(
    lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes.replace(rng=None)
  )
  params, batch_stats = (
    {part: variables[group][part] for part in parts}
    for group, parts in (
      ('params', state.params),
      ('batch_stats', state.batch_stats),
    )
  )
  ema_params, ema_batch_stats = (
    averages and {part: values[part] for part in averages}
    for averages, values in (
      (state.ema_params, params),
      (state.ema_batch_stats, batch_stats),
    )
  )
  return state.replace(
    step=np.full_like(state.step, stage.num_steps),
    rng=stage.rng,
    params=params,
    batch_stats=batch_stats,
    ema_params=ema_params,
    ema_batch_stats=ema_batch_stats,
  )


def _parse(argv: list[str]) -> flags.FlagValues:
  """Parses the flags of this command."""
  values = cli.new_flags(__doc__, takes_config=True)
  for name, text in (
    ('workdir', 'Folder of the run.'),
    ('from_torch', 'State dict to make the workdir of.'),
    ('to_torch', 'File to write the state dict of the workdir to.'),
  ):
    cli.define_path(values, name, text)
  flags.DEFINE_string(
    'entry', None, 'Which of several state dicts.', flag_values=values
  )
  cli.parse(values, argv, needs_config=False)
  if values.workdir is None:
    raise ValueError('--workdir: got nothing, expected it to be given')
  if (values.from_torch is None) == (values.to_torch is None):
    raise ValueError('give one of --from_torch and --to_torch')
  if values.from_torch and values.config is None:
    raise ValueError('--config: got nothing, expected FILE.py')
  state_dicts.check_path(values.from_torch or values.to_torch)
  return values


@contextlib.contextmanager
def _log_lines() -> Iterator[None]:
  """Logs to stderr what was read, and how."""
  logger, handler = (
    logging.getLogger('dhat_jax.pytorch'),
    logging.StreamHandler(),
  )
  logger.setLevel(logging.INFO)
  logger.addHandler(handler)
  try:
    yield
  finally:
    logger.removeHandler(handler)


def main(argv: list[str]) -> None:
  """Converts what the flags name; argv[0] is the program."""
  with cli.mistakes_in_one_line(), _log_lines():
    _convert(_parse(argv))


def _convert(values: flags.FlagValues) -> None:
  processes.initialize()
  config, directory = values.config, values.workdir
  if values.from_torch:
    state_dict = state_dicts.read_state_dict(values.from_torch, values.entry)
    source = os.path.basename(values.from_torch)
    import_workdir(state_dict, config, directory, source=source)
    print(f'{directory}: ready for dhat_jax.main --mode=evaluate')
  else:
    if config is not None:  # which may register what the run names
      run.check_workdir(config, directory, may_differ=('evaluation.',))
    state_dict = export_workdir(directory)
    state_dicts.write_state_dict(values.to_torch, state_dict)
    print(f'{values.to_torch}: {len(state_dict)} arrays')


if __name__ == '__main__':
  main(sys.argv)
