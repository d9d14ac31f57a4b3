"""The first steps of every stage, on any number of devices and processes.

    python -m tests.helpers.first_steps FILE.npz CONFIG:STAGE,... \\
        [--cpu_devices=4 ...]

CONFIG is 'tiny' or 'modern', the helpers that make it. Options with dashes are
those of `processes.initialize`. The file gets `<config>/<stage>/<step>/<name>`
of the metrics, the variables after each step, and what the loss remembers.
"""

import ast
import sys

import jax
import numpy as np

from dhat_jax import from_config
from dhat_jax.from_config import data
from dhat_jax.runtime import devices, processes
from dhat_jax.training import checkpoint
from dhat_jax.training.stages import initial_state
from tests.helpers import modern_run, tiny_run
from tests.helpers.tiny import random_like

STEPS = 3


def first_steps(config, dataset, name):
  """Trains one stage from random weights; returns {name: array}."""
  source = data.batch_maker(config, dataset)(
    dataset.train,
    batch_size=config[name].batch_size,
    seed=0,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  stage = from_config.make_stage(
    config,
    name,
    len(dataset.train.labels),
    steps_per_epoch=source.steps_per_epoch,
  )
  image_shape = dataset.train.images.shape[1:]
  state = initial_state(stage, image_shape)
  variables = random_like(state.variables(), seed=1)
  state = initial_state(stage, image_shape, variables)
  step = devices.pmap_train_step(stage.step)
  arrays, state = {}, devices.replicate(state)
  for number in range(STEPS):
    state, sums = step(state, devices.shard(source.batch(number)))
    for key, (total, count) in devices.to_host(sums).items():
      arrays[f'{name}/{number}/{key}'] = total / count
    host = devices.to_host(state)
    values = {**host.variables(), 'loss': host.loss_state}
    arrays |= {
      f'{name}/{number}/{key}': array
      for key, array in checkpoint.flatten(values).items()
    }
  return arrays


CONFIGS = {
  'tiny': lambda: tiny_run.get_config(
    **{'dataset.crop_padding': 1, 'dataset.flip': True}
  ),
  'modern': modern_run.get_config,
}


def main():
  """Runs the stages and writes the file."""
  path, *arguments = sys.argv[1:]
  options = [text for text in arguments if text.startswith('--')]
  pairs = (option.removeprefix('--').partition('=') for option in options)
  processes.initialize(**{k: ast.literal_eval(v) for k, _, v in pairs})
  arrays = {}
  for text in arguments[: len(arguments) - len(options)]:
    name, _, stages = text.partition(':')
    config = CONFIGS[name]()
    dataset = from_config.load_dataset(config)
    for stage in stages.split(','):
      steps = first_steps(config, dataset, stage)
      arrays |= {f'{name}/{key}': array for key, array in steps.items()}
  if processes.is_first():
    np.savez(path, **arrays)


if __name__ == '__main__':
  main()
