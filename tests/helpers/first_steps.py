"""The first steps of every stage, on any number of devices and processes.

    python -m tests.helpers.first_steps FILE.npz STAGE,... [--cpu_devices=4 ...]

Options with dashes are those of `processes.initialize`. The file gets
`<stage>/<step>/<name>` of the metrics and the variables after each step.
"""

import ast
import sys

import jax
import numpy as np

from dhat_jax import build
from dhat_jax.benchmark import training
from dhat_jax.datasets import batches as input_pipeline
from dhat_jax.runtime import devices, processes
from dhat_jax.training import checkpoint
from tests.helpers import tiny_run
from tests.helpers.tiny import random_like

STEPS = 3


def first_steps(config, dataset, name):
  """Trains one stage from random weights; returns {name: array}."""
  stage = build.stage(config, name, len(dataset.train.labels))
  net = build.stage_model(config, stage)
  state = training.make_state(config, stage)
  variables = random_like(state.variables(), seed=1)
  state = training.make_state(config, stage, variables)
  step = devices.pmap_train_step(build.train_step(config, stage, net))
  batches = input_pipeline.train_batches(
    dataset.train,
    batch_size=stage.batch_size,
    seed=0,
    start_step=0,
    num_steps=STEPS,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  found, state = {}, devices.replicate(state)
  for number, batch in enumerate(batches):
    state, sums = step(state, devices.shard(batch))
    for key, (total, count) in devices.to_host(sums).items():
      found[f'{name}/{number}/{key}'] = total / count
    variables = checkpoint.flatten(devices.to_host(state).variables())
    found |= {f'{name}/{number}/{key}': v for key, v in variables.items()}
  return found


def main():
  """Runs the stages and writes the file."""
  path, stages, *options = sys.argv[1:]
  pairs = (option.removeprefix('--').partition('=') for option in options)
  processes.initialize(**{k: ast.literal_eval(v) for k, _, v in pairs})
  tiny_run.use_tiny_backbone()
  config = tiny_run.get_config(
    **{'dataset.crop_padding': 1, 'dataset.flip': True}
  )
  dataset = build.dataset(config)
  found = {}
  for name in stages.split(','):
    found |= first_steps(config, dataset, name)
  if processes.is_first():
    np.savez(path, **found)


if __name__ == '__main__':
  main()
