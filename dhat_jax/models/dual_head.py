"""The dual-head network: one trunk, two heads, an aggregator."""

from collections.abc import Collection
from typing import Any

import chex
import jax.numpy as jnp
from flax import linen as nn

from dhat_jax.models import aggregator as aggregators
from dhat_jax.models.outputs import Outputs

# The top-level names in `variables['params']` and `variables['batch_stats']`.
PARTS = ('trunk', 'main_head', 'second_head', 'aggregator')
OUTPUTS = ('main', 'second', 'aggregated')


def _require(name: str, got: Any, choices: Collection[Any]) -> None:
  if got not in choices:
    raise ValueError(f'{name}: got {got!r}, choices are {tuple(choices)}')


class DualHeadNet(nn.Module):
  """DH-AT's network (Jiang et al. 2021); the trunk runs once per call.

  Attributes:
    backbone: a `WideResNet` or `ResNet18`, or any hashable object with
      `trunk`, `head` (module classes) and `attach_points`.
    num_classes: K >= 2.
    attach: after which block the second head is attached.
    aggregator: 'pairwise', 'classwise' or 'mean'.
    outputs: the outputs that exist: ('main',), ('main', 'second') or
      ('main', 'second', 'aggregated'). Parts that none of them needs have no
      parameters; ('main',) is the plain backbone.
    mean: per-channel mean, subtracted from the images. (): nothing.
    std: per-channel standard deviation, by which they are divided. ().
    dtype: compute dtype of trunk and heads (None: that of the images).
      Parameters, statistics, aggregator and logits stay float32.
    axis_name: mapped axis over which batch norm shares its statistics.
  """

  backbone: Any
  num_classes: int
  attach: str = 'block1'
  aggregator: str = 'pairwise'
  outputs: tuple[str, ...] = OUTPUTS
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()
  dtype: chex.ArrayDType | None = None
  axis_name: str | None = None

  def __post_init__(self):
    _require('attach', self.attach, self.backbone.attach_points)
    _require('aggregator', self.aggregator, aggregators.AGGREGATORS)
    _require(
      'outputs',
      tuple(self.outputs),
      [OUTPUTS[:count] for count in (1, 2, 3)],
    )
    if self.num_classes < 2:
      raise ValueError(
        f'num_classes: got {self.num_classes}, expected at least 2'
      )
    if len(self.mean) != len(self.std):
      raise ValueError(
        'mean and std need one number per channel each, '
        f'got {self.mean} and {self.std}'
      )
    super().__post_init__()

  @property
  def parts(self) -> tuple[str, ...]:
    """The parts that this network has, a prefix of `PARTS`."""
    return PARTS[: len(self.outputs) + 1]

  @nn.compact
  def __call__(
    self, images: chex.Array, training_parts: Collection[str] = ()
  ) -> Outputs:
    """Computes the logits.

    Args:
      images: float [B, H, W, C] in [0, 1].
      training_parts: the parts, out of `parts`, that normalise with the
        batch's statistics and update their running ones (then call `apply`
        with mutable=['batch_stats']). All others run as in evaluation.

    Returns:
      `Outputs` of float logits [B, K]; what the network lacks is None.

    Raises:
      ValueError: images that are not NHWC, unknown part.
    """
    for part in training_parts:
      _require('training part', part, self.parts)
    chex.assert_rank(images, 4, exception_type=ValueError)
    common = {
      'backbone': self.backbone,
      'attach': self.attach,
      'dtype': self.dtype,
      'axis_name': self.axis_name,
    }
    if self.mean:
      images = (images - jnp.asarray(self.mean).reshape(1, 1, 1, -1)) / (
        jnp.asarray(self.std).reshape(1, 1, 1, -1)
      )
    features = self.backbone.trunk(**common, name='trunk')(
      images, train='trunk' in training_parts
    )
    heads = [
      self.backbone.head(**common, num_classes=self.num_classes, name=part)(
        features, train=part in training_parts
      )
      for part in self.parts[1:3]
    ]
    if 'aggregated' not in self.outputs:
      return Outputs(*heads)
    aggregator = aggregators.AGGREGATORS[self.aggregator](
      axis_name=self.axis_name, name='aggregator'
    )
    stacked = jnp.stack(heads, axis=1)  # [B, 2, K]
    return Outputs(
      *heads, aggregator(stacked, train='aggregator' in training_parts)
    )
