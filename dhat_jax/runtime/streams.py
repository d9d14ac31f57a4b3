"""Random streams by name.

Draws depend on a name, never on a place in a table. So a new stage, attack or
output changes no other numbers.
"""

import zlib

import chex
import jax

# Names that had numbers before they had streams. They keep them, so that runs
# of then resume bit for bit and the published tables can be reproduced.
_NUMBERED = {
  'stage/main_head': 0,
  'stage/second_head': 1,
  'stage/aggregator': 2,
  'stage/joint': 0,  # alone in its run
  'autoattack/apgd-ce': 0,
  'autoattack/apgd-dlr': 1,
  'autoattack/apgd-t': 2,
  'autoattack/fab': 3,
  'autoattack/fab-t': 4,
  'autoattack/square': 5,
  'autoattack/noise': 6,
  'step/augment': 0,
  'step/attack': 1,
}


def number(name: str) -> int:
  """Returns the number of a stream: CRC-32 of its name."""
  return _NUMBERED.get(name, zlib.crc32(name.encode()))


def fold_in(rng: chex.PRNGKey, name: str) -> chex.PRNGKey:
  """Returns the key of a stream: one typed key in, one out."""
  return jax.random.fold_in(rng, number(name))


def fold_in_each(rngs: chex.PRNGKey, name: str) -> chex.PRNGKey:
  """Returns the keys of a stream: typed keys [B] in, [B] out."""
  return jax.vmap(lambda rng: fold_in(rng, name))(rngs)


def key(seed: int) -> chex.PRNGKey:
  """Returns the typed key of a seed: threefry, whatever JAX's default is.

  With other generators an example's noise would depend on its batch.
  """
  return jax.random.key(seed, impl='threefry2x32')
