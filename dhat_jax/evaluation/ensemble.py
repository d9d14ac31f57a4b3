"""AutoAttack, or one of its attacks, on one output of the network."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dhat_jax.attacks import autoattack
from dhat_jax.datasets.base import Split
from dhat_jax.evaluation.evaluator import parts_of, smallest
from dhat_jax.runtime import devices

# What the reference spends; anything less is named in the results.
STANDARD = {'n_iter': 100, 'n_queries': 5000, 'n_targets': 9}


@dataclasses.dataclass(frozen=True)
class Ensemble:
  """AutoAttack with its budget.

  Attributes:
    title: 'autoattack', or the name of a single attack.
    epsilon: radius in units of [0, 1].
    version: 'standard', 'plus', ..., or 'custom'.
    attacks: names, for 'custom'.
    n_iter: iterations of APGD and FAB.
    n_queries: of Square.
    n_targets: target classes of the targeted attacks.
    num_images: the first so many images; 0 for all.
    outputs: the outputs that are attacked; () for all.
  """

  title: str
  epsilon: float
  version: str = 'standard'
  attacks: tuple[str, ...] = ()
  n_iter: int = STANDARD['n_iter']
  n_queries: int = STANDARD['n_queries']
  n_targets: int = STANDARD['n_targets']
  num_images: int = 0
  outputs: tuple[str, ...] = ()

  @property
  def budget(self) -> dict[str, Any]:
    """What differs from the reference's standard evaluation."""
    labels = {
      'n_iter': 'n_iter',
      'n_queries': 'queries',
      'n_targets': 'targets',
    }
    different = {
      label: getattr(self, key)
      for key, label in labels.items()
      if getattr(self, key) != STANDARD[key]
    }
    if self.version not in ('standard', 'custom'):
      different['version'] = self.version
    if self.num_images:
      different['images'] = self.num_images
    return different

  @property
  def name(self) -> str:
    """The name in the results; a budget that is not standard is part of it."""
    if not self.budget:
      return self.title
    items = ','.join(f'{key}={value}' for key, value in self.budget.items())
    return f'{self.title}({items})'

  @property
  def problem(self) -> dict[str, Any]:
    """What the flags depend on, as a tree of numbers and names."""
    return {**dataclasses.asdict(self), 'outputs': None}

  def first_images(self, split: Split) -> Split:
    """Returns the images that are attacked, as floats in [0, 1]."""
    count = self.num_images or len(split.labels)
    return Split(
      np.asarray(split.images[:count], np.float32) / 255, split.labels[:count]
    )


def run(
  ensemble: Ensemble,
  net: nn.Module,
  output: str,
  variables: Any,
  split: Split,
  *,
  norm: str,
  batch_size: int,
  rng: jax.Array,
  directory: str | None,
  progress: Callable | bool = False,
) -> autoattack.AutoAttackResult:
  """Attacks one output, in float32.

  Args:
    ensemble: the attacks.
    net: the network.
    output: 'main', 'second', 'mean' or 'aggregated'.
    variables: on the host.
    split: of `ensemble.first_images`.
    norm: 'linf' or 'l2'.
    batch_size: global, a multiple of the devices.
    rng: typed key.
    directory: where finished batches are kept, or None.
    progress: as `autoattack` takes it.
  """
  net = smallest(net, output).clone(dtype=jnp.float32)
  variables = jax.tree.map(jnp.asarray, parts_of(variables, net.parts))
  count = jax.device_count()
  padded = -(-len(split.labels) // count) * count
  return autoattack.autoattack(
    lambda images: net.apply(variables, images).select(output),
    split.images,
    split.labels,
    epsilon=ensemble.epsilon,
    norm=norm,
    version=ensemble.version,
    attacks=ensemble.attacks or None,
    rng=rng,
    batch_size=min(batch_size, padded),
    n_iter=ensemble.n_iter,
    n_queries=ensemble.n_queries,
    n_targets=ensemble.n_targets,
    n_restarts=1 if ensemble.version == 'custom' else None,
    state_dir=directory,
    map_fn=devices.pmap_hoisted,
    progress=progress,
  )
