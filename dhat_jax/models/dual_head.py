"""The dual-head network: one trunk, two heads, an aggregator."""

from collections.abc import Collection, Mapping
from typing import Any

import chex
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict

from dhat_jax import arguments
from dhat_jax.models import (
  backbones,
  layers,
  mixed,  # noqa: F401 - registers its aggregators
)
from dhat_jax.models import outputs as output_table
from dhat_jax.models.aggregator import AGGREGATORS, Aggregator
from dhat_jax.models.outputs import (
  Outputs,
  part_variables,  # noqa: F401 - its name here is public
)


class Trunk(nn.Module):
  """The backbone's stem, and its blocks up to the attach point.

  Attributes:
    backbone: see `dhat_jax.models.backbones.Backbone`.
    attach: the last block of the trunk.
    dtype: compute dtype; None: that of the images.
    axis_name: mapped axis over which batch norm shares its statistics.
  """

  backbone: backbones.Backbone
  attach: str
  dtype: chex.ArrayDType | None = None
  axis_name: str | None = None

  @nn.compact
  def __call__(self, images: chex.Array, train: bool) -> chex.Array:
    names = self.backbone.block_names
    options = {'dtype': self.dtype, 'axis_name': self.axis_name}
    features = self.backbone.stem(images, train=train, **options)
    return self.backbone.blocks(
      features, names[: names.index(self.attach) + 1], train=train, **options
    )


class Head(nn.Module):
  """The backbone's blocks after the attach point, its tail, a classifier.

  Attributes:
    backbone, attach, dtype, axis_name: as in `Trunk`.
    num_classes: K.
  """

  backbone: backbones.Backbone
  attach: str
  num_classes: int
  dtype: chex.ArrayDType | None = None
  axis_name: str | None = None

  @nn.compact
  def __call__(self, features: chex.Array, train: bool) -> chex.Array:
    names = self.backbone.block_names
    options = {'dtype': self.dtype, 'axis_name': self.axis_name}
    features = self.backbone.blocks(
      features, names[names.index(self.attach) + 1 :], train=train, **options
    )
    features = self.backbone.tail(features, train=train, **options)
    return layers.Classifier(self.num_classes, name='classifier')(features)


class DualHeadNet(nn.Module):
  """DH-AT's network (Jiang et al. 2021); the trunk runs once per call.

  Attributes:
    backbone: a `WideResNet`, a `ResNet18` or one of your own; see
      `dhat_jax.models.backbones.Backbone`.
    num_classes: K >= 2.
    attach: the block after which the second head is attached.
    aggregator: name in `dhat_jax.models.aggregator.AGGREGATORS`.
    outputs: the outputs that it computes, of `dhat_jax.models.outputs`. Parts
      that none of them needs have no parameters; ('main',) is the plain
      backbone.
    mean: per-channel mean, subtracted from the images. (): nothing.
    std: per-channel standard deviation, by which they are divided. (): 1.
    dtype: compute dtype of trunk and heads (None: that of the images).
      Parameters, statistics, aggregator and logits stay float32.
    axis_name: mapped axis over which batch norm shares its statistics.
    aggregator_options: {name: value} of the aggregator's fields, hashable.
  """

  backbone: backbones.Backbone
  num_classes: int
  attach: str = 'block1'
  aggregator: str = 'pairwise'
  outputs: tuple[str, ...] = output_table.trained()
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()
  dtype: chex.ArrayDType | None = None
  axis_name: str | None = None
  aggregator_options: Mapping[str, Any] = FrozenDict()

  def __post_init__(self):
    self.aggregator_options = FrozenDict(self.aggregator_options)
    backbones.check(self.backbone)
    arguments.one_of('attach', self.attach, self.backbone.attach_points)
    AGGREGATORS.check(
      self.aggregator, self.aggregator_options or None, where='aggregator'
    )
    choices = output_table.trained()
    if not self.outputs or not set(self.outputs) <= set(choices):
      raise ValueError(
        f'outputs: got {self.outputs}, choices are one or more of {choices}'
      )
    arguments.integer('num_classes', self.num_classes, 2)
    arguments.sequence('mean', self.mean, arguments.number)
    arguments.sequence('std', self.std, arguments.number)
    if len(self.mean) != len(self.std) or any(std <= 0 for std in self.std):
      raise ValueError(
        'mean and std need one number per channel each, the latter > 0; '
        f'got {self.mean} and {self.std}'
      )
    super().__post_init__()

  @property
  def parts(self) -> tuple[str, ...]:
    """The parts of this network, in the order in which they run."""
    return output_table.parts_of(self.outputs)

  @nn.nowrap
  def make_aggregator(self, name: str | None = None) -> Aggregator:
    """Makes the aggregator, alone or as a part with that name."""
    return AGGREGATORS.make(
      self.aggregator,
      self.aggregator_options,
      where='aggregator',
      axis_name=self.axis_name,
      name=name,
    )

  @nn.compact
  def __call__(
    self, images: chex.Array, training_parts: Collection[str] = ()
  ) -> Outputs:
    """Computes the logits.

    Args:
      images: float [B, H, W, C] in [0, 1].
      training_parts: the parts, out of `parts`, that normalise with the batch's
        statistics and update their running ones. Call `apply` with
        mutable=['batch_stats'] then. All others run as in evaluation.

    Returns:
      `Outputs` of float logits [B, K] with exactly `self.outputs`.

    Raises:
      ValueError: images that are not NHWC, unknown part.
    """
    for part in training_parts:
      arguments.one_of('training part', part, self.parts)
    chex.assert_rank(images, 4, exception_type=ValueError)
    common = {
      'backbone': self.backbone,
      'attach': self.attach,
      'dtype': self.dtype,
      'axis_name': self.axis_name,
    }
    if len(self.mean) not in (0, 1, images.shape[-1]):
      raise ValueError(
        f'mean: got {len(self.mean)} numbers for images of '
        f'{images.shape[-1]} channels'
      )
    if self.mean:
      images = (images - jnp.asarray(self.mean).reshape(1, 1, 1, -1)) / (
        jnp.asarray(self.std).reshape(1, 1, 1, -1)
      )
    features = Trunk(**common, name='trunk')(
      images, train='trunk' in training_parts
    )
    logits = {}
    for output in output_table.trained():
      row = output_table.OUTPUTS[output]
      part = row.parts[-1]
      if part not in self.parts:
        continue
      if row.aggregates:
        module = self.make_aggregator(name=part)
        inputs = jnp.stack([logits[name] for name in row.aggregates], axis=1)
      else:
        module = Head(**common, num_classes=self.num_classes, name=part)
        inputs = features
      logits[output] = module(inputs, train=part in training_parts)
    return Outputs(**{name: logits[name] for name in self.outputs})
