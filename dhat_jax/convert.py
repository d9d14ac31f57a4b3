r"""PyTorch state dicts <-> Flax variables, and workdirs made of them.

    python -m dhat_jax.convert --from_torch=model.pt \
        --config=configs/cifar10.py --workdir=runs/imported
    python -m dhat_jax.convert --to_torch=model.pt \
        --config=configs/cifar10.py --workdir=runs/cifar10

`.pt`, `.pth`, `.tar` and `.bin` files are PyTorch's and need it (the extra
[oracle]); `.npz` files, one array per key, do not. The keys are those of the
published code: see `dhat_jax.pytorch.names`.

Batch norm's running variances are taken over as they are, though PyTorch's
estimate is unbiased and ours is not (see `dhat_jax.models.layers`): in
evaluation the numbers mean the same. Per-channel normalisation of the images
is no part of a state dict; it belongs to the config.
"""

import os
import pickle
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import flags

from dhat_jax.pytorch import state_dicts
from dhat_jax.pytorch.state_dicts import from_torch, to_torch
from dhat_jax.runtime import cli


def import_workdir(
  state_dict: Mapping[str, Any],
  config: Any,
  directory: str,
  *,
  source: str,
) -> None:
  """Writes a workdir whose stages are done, for `--mode=evaluate`.

  Each stage gets one checkpoint, at its last step: where that is, the size of
  the training set decides, so that the data set must be there. The optimiser
  starts at zero.

  Args:
    state_dict: {key: array}, of all the parts that the config's stages train.
    config: the run's config.
    directory: the workdir; must not hold checkpoints yet.
    source: where the weights came from, for the record.

  Raises:
    ValueError: bad config, workdir or state dict.
  """
  from dhat_jax import build
  from dhat_jax.datasets import batches as input_pipeline
  from dhat_jax.from_config import values as options
  from dhat_jax.runtime import workdir
  from dhat_jax.training import loop
  from dhat_jax.training.checkpoint import Checkpoints

  build.check(config)
  if config.compare_with_natural:
    raise ValueError(
      'config.compare_with_natural: got True, but there are no weights of a '
      'naturally trained network; give --config.compare_with_natural=false'
    )
  folders = {n: loop.checkpoint_folder(directory, n) for n in config.stages}
  for folder in folders.values():
    if os.path.isdir(folder):
      raise ValueError(f'{folder} is there already; choose another --workdir')
  dataset = build.dataset(config)
  variables = from_torch(
    state_dict,
    build.model(config),
    image_channels=dataset.train.images.shape[-1],
  )
  train_split, _ = input_pipeline.hold_out(
    dataset.train, config.dataset.validation_size, seed=0
  )
  workdir.prepare(directory, options.as_json(config))
  for name, folder in folders.items():
    state, stage = _empty_state(
      config,
      name,
      num_train=len(train_split.labels),
      image_shape=dataset.train.images.shape[1:],
    )
    with Checkpoints(folder, keep=config.checkpoint.keep) as checkpoints:
      checkpoints.save(
        stage.num_steps,
        _filled(state, stage.num_steps, variables),
        info={'seconds': 0.0, 'imported_from': source},
      )


def export_workdir(config: Any, directory: str) -> dict[str, np.ndarray]:
  """Returns a workdir's network, as it is evaluated, as a state dict.

  Args:
    config: the run's config.
    directory: the workdir.

  Raises:
    ValueError: the workdir is not trained, or of another config.
  """
  from dhat_jax import build
  from dhat_jax.from_config import values as options
  from dhat_jax.runtime import workdir
  from dhat_jax.training import loop
  from dhat_jax.training.checkpoint import Checkpoints

  build.check(config)
  name = config.stages[-1]
  folder = loop.checkpoint_folder(directory, name)
  if not os.path.isdir(folder):
    raise ValueError(f'workdir {directory}: stage {name!r} is not trained')
  workdir.prepare(
    directory, options.as_json(config), may_differ=('evaluation.',)
  )
  with Checkpoints(folder, keep=config.checkpoint.keep) as checkpoints:
    state = _stored_state(config, name, checkpoints)
  return to_torch(state.variables(), build.model(config))


def _empty_state(
  config: Any, name: str, *, num_train: int, image_shape: tuple[int, int, int]
) -> tuple[Any, Any]:
  """Returns (a stage's state as training makes it, all zeros; the stage)."""
  from dhat_jax import build
  from dhat_jax.training.state import create_train_state

  stage = build.stage(config, name, num_train)
  net = build.model(config, outputs=stage.role.outputs)
  rng = jax.random.key(config.seed)
  # Shapes alone: initialising the network would have to be compiled.
  shapes = jax.eval_shape(
    lambda: create_train_state(
      net=net,
      tx=stage.tx,
      trains=stage.role.trains,
      rng=rng,
      image_shape=image_shape,
      ema=stage.ema_decay > 0,
    )
  )
  state = jax.tree.map(
    lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes.replace(rng=None)
  )
  return state.replace(rng=rng), stage


def _filled(state: Any, step: int, variables: Mapping[str, Any]) -> Any:
  """Returns a state with the weights of the parts that it has."""
  params, batch_stats = (
    {part: variables[collection][part] for part in parts}
    for collection, parts in (
      ('params', state.params),
      ('batch_stats', state.batch_stats),
    )
  )
  ema_params = state.ema_params and {
    part: params[part] for part in state.ema_params
  }
  return state.replace(
    step=np.full_like(state.step, step),
    params=params,
    batch_stats=batch_stats,
    ema_params=ema_params,
  )


def _stored_state(config: Any, name: str, checkpoints: Any) -> Any:
  """Restores a stage's state without the data set, as evaluation takes it."""
  # Neither the number of images nor their size shapes the state.
  num_train = config[name].batch_size
  for channels in (3, 1):  # a config does not say whether images are grey
    like, stage = _empty_state(
      config, name, num_train=num_train, image_shape=(32, 32, channels)
    )
    restore = (
      checkpoints.restore_best
      if stage.keep == 'best'
      else checkpoints.restore_latest
    )
    try:
      restored = restore(like)
    except ValueError:
      if channels == 1:
        raise
      continue
    if restored is None:
      raise ValueError(f'{checkpoints.directory}: holds no whole checkpoint')
    return restored[1]


def _parse(argv: list[str]) -> flags.FlagValues:
  """Parses the flags, in a set of their own beside other commands'."""
  values = cli.new_flags(argv)
  for name, text in (
    ('workdir', 'Folder of the run.'),
    ('from_torch', 'State dict to make the workdir of.'),
    ('to_torch', 'File to write the state dict of the workdir to.'),
  ):
    flags.DEFINE_string(name, None, text, flag_values=values)
  cli.parse(values, argv)
  for name in ('config', 'workdir'):
    if values[name].value is None:
      raise ValueError(f'--{name}: got nothing, expected it to be given')
  if (values.from_torch is None) == (values.to_torch is None):
    raise ValueError('give one of --from_torch and --to_torch')
  return values


def main(argv: list[str]) -> None:
  """Converts what the flags name; argv[0] is the program."""
  if '--help' in argv:
    print(__doc__)
    return
  with cli.mistakes_in_one_line(pickle.UnpicklingError):
    _convert(_parse(argv))


def _convert(values: flags.FlagValues) -> None:
  config, directory = values.config, values.workdir
  if values.from_torch:
    state_dict = state_dicts.read_state_dict(values.from_torch)
    source = os.path.basename(values.from_torch)
    import_workdir(state_dict, config, directory, source=source)
    print(f'{directory}: ready for dhat_jax.main --mode=evaluate')
  else:
    state_dict = export_workdir(config, directory)
    state_dicts.write_state_dict(values.to_torch, state_dict)
    print(f'{values.to_torch}: {len(state_dict)} arrays')


if __name__ == '__main__':
  main(sys.argv)
