"""All of today's parts in one stage: its types, its state, its cost."""

import jax
import jax.numpy as jnp

from dhat_jax import from_config
from dhat_jax.runtime import devices
from dhat_jax.training import checkpoint
from dhat_jax.training.stages import initial_state
from tests.helpers import modern_run


def test_a_step_returns_the_types_that_it_takes():
  """Otherwise the second step would compile again."""
  stage = from_config.make_stage(modern_run.get_config(), 'second_head', 1309)
  state = jax.eval_shape(lambda: initial_state(stage, (8, 8, 1)))
  batch = {
    'images': jnp.zeros((8, 8, 8, 1), jnp.uint8),
    'labels': jnp.zeros(8, jnp.int32),
    'mask': jnp.ones(8, bool),
    'own': jnp.ones(8, bool),
  }
  step = jax.vmap(stage.step, axis_name=devices.AXIS)
  before, batch = (
    jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(
        (1, *leaf.shape), leaf.dtype, weak_type=getattr(leaf, 'weak_type', 0)
      ),
      tree,
    )
    for tree in (state, batch)
  )
  after, metrics = jax.eval_shape(step, before, batch)
  assert jax.tree.structure(before) == jax.tree.structure(after)
  for (path, old), new in zip(
    jax.tree_util.tree_leaves_with_path(before),
    jax.tree.leaves(after),
    strict=True,
  ):
    name = jax.tree_util.keystr(path)
    assert (old.shape, old.dtype) == (new.shape, new.dtype), name
    assert old.weak_type == new.weak_type, name
  assert {'own_loss', 'loss', 'own_robust_accuracy'} <= metrics.keys()
  assert stage.gradients == 2


def test_the_checkpoint_has_all_that_the_parts_remember():
  stage = from_config.make_stage(modern_run.get_config(), 'second_head', 1309)
  state = jax.eval_shape(lambda: initial_state(stage, (8, 8, 1)))
  flat = checkpoint.flatten(
    jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), state.replace(rng=None))
  )
  groups = {name.partition('/')[0] for name in flat}
  assert {'loss_state', 'ema_params', 'ema_batch_stats'} <= groups
  # Of the trained part alone.
  assert {
    name.split('/')[1] for name in flat if name.startswith('ema_params')
  } == {'second_head'}
