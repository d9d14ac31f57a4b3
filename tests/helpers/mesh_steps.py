"""The first training steps, spread over the devices in several ways.

    python -m tests.helpers.mesh_steps FILE.npz [--cpu_devices=8 ...]

Options with dashes are those of `processes.initialize`. The file gets
`<way>/<stage>/<step>/<name>` of the state and the sums after each step.
"""

import ast
import functools
import sys

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dhat_jax.runtime import devices, processes
from dhat_jax.training.stages import roles
from tests.helpers.tiny import flat
from tests.training.test_step import make, make_batch

STEPS = 3
BATCH = 16


def mesh():
  """Returns all devices in the order in which pmap takes them."""
  return jax.sharding.Mesh(jax.devices(), (devices.AXIS,))


def shardings():
  """Returns the sharding of a state, whole, and of a batch, split."""
  return (
    NamedSharding(mesh(), P()),
    NamedSharding(mesh(), P(devices.AXIS)),
  )


def by_pmap(step):
  """The step of one replica, mapped as a run maps it."""
  mapped = devices.pmap_train_step(step)

  def call(state, batch):
    if not state.step.shape:
      state = devices.replicate(state)
    return mapped(state, devices.shard(batch))

  return call


def by_jit(step):
  """The step of the global batch, which XLA splits."""
  whole, split = shardings()
  return jax.jit(
    step,
    in_shardings=(whole, split),
    out_shardings=whole,
    donate_argnums=0,
  )


def by_shard_map(step, check_vma=False):
  """The step of one replica, mapped as JAX advises new code to.

  The step sums its gradients itself: with `check_vma` they would be summed
  twice.
  """
  mapped = jax.shard_map(
    step,
    mesh=mesh(),
    in_specs=(P(), P(devices.AXIS)),
    out_specs=P(),
    check_vma=check_vma,
  )
  return jax.jit(mapped, donate_argnums=0)


def by_vmap(step):
  """The step of one replica, for all of them in one program, which XLA splits.

  What leaves the step has been summed over the replicas, so that `vmap` knows
  it to be the same for all.
  """
  mapped = by_jit(
    jax.vmap(step, in_axes=(None, 0), out_axes=None, axis_name=devices.AXIS)
  )
  return lambda state, batch: mapped(state, devices.shard(batch))


def first_steps(state, step):
  """Takes `STEPS` steps; returns {'<step>/<name>': array}."""
  arrays = {}
  for number in range(STEPS):
    batch = make_batch(number, BATCH)
    # All of the last device's, and a part of the one before.
    batch['mask'][-3:] = False
    # What is enqueued without waiting can deadlock on simulated devices.
    state, sums = jax.block_until_ready(step(state, batch))
    values = {'state': state.replace(rng=None), 'sums': sums}
    values = flat(devices.to_host(values) if state.step.shape else values)
    arrays |= {f'{number}/{name}': value for name, value in values.items()}
  return arrays


def cases():
  """Yields (way, how it spreads a step, options of the step, stages)."""
  shared, own = {'axis_name': devices.AXIS}, {'shared': False}
  checked = functools.partial(by_shard_map, check_vma=True)
  yield 'pmap', by_pmap, shared, roles()
  yield 'jit', by_jit, {}, roles()
  yield 'shard_map', by_shard_map, shared, ['main_head']
  yield 'shard_map_checked', checked, shared, ['main_head']
  yield 'own_pmap', by_pmap, shared | own, ['second_head']
  yield 'own_vmap', by_vmap, shared | own, ['second_head']


def main():
  """Takes the steps and writes the file."""
  path, *options = sys.argv[1:]
  pairs = (option.removeprefix('--').partition('=') for option in options)
  processes.initialize(**{k: ast.literal_eval(v) for k, _, v in pairs})
  arrays = {}
  for way, spread, options, stages in cases():
    for stage in stages:
      state, step = make(stage, **options)
      for name, value in first_steps(state, spread(step)).items():
        arrays[f'{way}/{stage}/{name}'] = value
  np.savez(path, **arrays)


if __name__ == '__main__':
  main()
