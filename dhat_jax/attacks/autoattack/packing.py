"""Which images and passes share a batch: no slot is empty while there is work.

An item is an image and one pass over it: a restart, a target rank or a piece of
Square's queries.
"""

import dataclasses
from collections.abc import Callable, Sequence

import chex
import jax
import numpy as np

# On a CPU a network's time per image hardly depends on the batch's size, and in
# smaller batches fewer slots stay empty. Square cannot fill them with others.
_LARGEST_ON_CPU = 64
_LARGEST_ON_CPU_ALONE = 32


def size_of_batches(
  count: int, batch_size: int, devices: int = 1, *, mixed: bool = True
) -> int:
  """Returns the size of the compiled batches: even shares of the images.

  Args:
    count: number of images.
    batch_size: the largest size; a multiple of `devices`.
    devices: over which a batch is split.
    mixed: whether items of different passes may share a batch.
  """
  most = batch_size
  if jax.default_backend() == 'cpu':
    most = min(
      most,
      devices * (_LARGEST_ON_CPU if mixed else _LARGEST_ON_CPU_ALONE),
    )
  size = -(-count // -(-count // most))
  return min(-(-size // devices) * devices, batch_size)


@dataclasses.dataclass(frozen=True)
class Attack:
  """One attack of the ensemble.

  Attributes:
    name: of `checks.NAMES`.
    run: its compiled program, see `passes.make_attack`.
    which: its place among the attacks of the program.
    rngs: typed keys [A] of these attacks.
    mixed: whether items of different passes may share a batch.
  """

  name: str
  run: Callable
  which: int
  rngs: chex.PRNGKey
  mixed: bool

  @property
  def carries(self) -> bool:
    """Whether a pass continues from the points of the one before."""
    return self.name == 'square'


class Packing:
  """The items of one attack that are still to be run, in order.

  They are ordered by pass, then by place. An image may have items of several
  passes in a batch. Then a later one counts only if the earlier ones left the
  image robust: the same as if pass came after pass.
  """

  def __init__(
    self, passes: Sequence[int], places: np.ndarray, size: int, *, mixed: bool
  ):
    """Plans all items.

    Args:
      passes: in order.
      places: int [n], of the images that are still robust.
      size: items in a batch.
      mixed: whether items of different passes may share a batch.
    """
    self._passes = np.repeat(np.asarray(passes, np.int32), len(places))
    self._places = np.tile(places, len(passes))
    self._size = size
    self._mixed = mixed

  def take(self, robust: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns passes [n] and places [n] of the next batch; n = 0 at the end.

    Args:
      robust: bool [N]; items of other images are dropped.
    """
    left = robust[self._places]
    passes, places = self._passes[left], self._places[left]
    count = min(self._size, len(places))
    if count and not self._mixed:
      count = min(count, int(np.sum(passes == passes[0])))
    self._passes, self._places = passes[count:], places[count:]
    return passes[:count], places[:count]

  def left(self, robust: np.ndarray) -> np.ndarray:
    """Returns the passes [m] of the items that are left."""
    return self._passes[robust[self._places]]


def counted(places: np.ndarray, robust: np.ndarray) -> np.ndarray:
  """Which items would have run, had pass come after pass: bool [n].

  Args:
    places: int [n], of a batch's items, an image's passes in order.
    robust: bool [n], whether an item left its image robust.
  """
  broken = set()
  counts = np.ones(len(places), bool)
  for item, (place, withstood) in enumerate(zip(places, robust, strict=True)):
    counts[item] = place not in broken
    if not withstood:
      broken.add(place)
  return counts
