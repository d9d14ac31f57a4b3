"""The step under `jit`, `shard_map` and `vmap` trains as under `pmap` does.

On 8 simulated devices, each with two images of the batch.
"""

import numpy as np
import pytest

from dhat_jax.training.stages import roles
from tests.helpers import mesh_steps, processes

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def arrays(tmp_path_factory):
  """What `tests.helpers.mesh_steps` writes."""
  path = str(tmp_path_factory.mktemp('mesh') / 'steps.npz')
  processes.run(
    ['tests.helpers.mesh_steps', path], count=1, cpu_devices=8, timeout=400
  )
  with np.load(path) as file:
    return dict(file)


def of(arrays, way, stage):
  prefix = f'{way}/{stage}/'
  return {
    name.removeprefix(prefix): array
    for name, array in arrays.items()
    if name.startswith(prefix)
  }


def check_equal(got, expected):
  """Compares metrics, parameters, statistics and momenta after each step.

  Only the order of sums differs: 3e-6 after the first step, where measured
  (float32 has 6e-8, over sums of some hundred terms). Each step multiplies
  that by up to 3. Statistics of other images differ by .01, see below.
  """
  assert got.keys() == expected.keys()
  assert len(got) > 20 * mesh_steps.STEPS
  for name, array in got.items():
    tolerance = 2e-5 * 3 ** int(name[0])
    np.testing.assert_allclose(
      array, expected[name], rtol=tolerance, atol=tolerance, err_msg=name
    )


def largest_difference(got, expected, word):
  """The largest one of arrays with a word in their names, at any step."""
  differences = [
    np.abs(array - expected[name]).max()
    for name, array in got.items()
    if word in name
  ]
  return max(differences)


@pytest.mark.parametrize('stage', list(roles()))
def test_jit_of_the_global_batch_equals_pmap(arrays, stage):
  """Batch norm's statistics too: they are the global batch's on both sides."""
  got = of(arrays, 'jit', stage)
  check_equal(got, of(arrays, 'pmap', stage))
  assert any('batch_stats' in name for name in got)
  for part in roles()[stage].trains:
    first, last = (
      {n[2:]: a for n, a in got.items() if n.startswith(f'{step}/')}
      for step in (0, mesh_steps.STEPS - 1)
    )
    assert largest_difference(last, first, f'params/{part}') > 1e-3


def test_shard_map_equals_pmap(arrays):
  check_equal(
    of(arrays, 'shard_map', 'main_head'), of(arrays, 'pmap', 'main_head')
  )


def test_shard_map_sums_gradients_that_it_checks(arrays):
  """Under `check_vma`, its default, and the step sums them again."""
  got, expected = (
    of(arrays, way, 'main_head') for way in ('shard_map_checked', 'pmap')
  )
  norm = '0/sums/grad_norm/0'
  assert got[norm] / expected[norm] == pytest.approx(8, rel=1e-4)


def test_statistics_of_each_device_need_the_step_of_one_replica(arrays):
  """`sync_batch_norm=False`: under `jit` of the global batch no device shows.

  `vmap` of the replica's step keeps each one's statistics.
  """
  expected = of(arrays, 'own_pmap', 'second_head')
  check_equal(of(arrays, 'own_vmap', 'second_head'), expected)
  for way in ('jit', 'pmap'):
    got = of(arrays, way, 'second_head')
    assert largest_difference(got, expected, 'batch_stats') > 5e-3
