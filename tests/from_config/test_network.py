"""A network's parts with options of their own, from a config."""

import dataclasses
import json

import pytest
from flax import linen as nn
from ml_collections import ConfigDict

from dhat_jax import from_config
from dhat_jax.configs import digits
from dhat_jax.models import aggregator, backbones
from tests.helpers.tiny import TinyBackbone


@aggregator.register('scaled_<power>')
class Scaled(aggregator.Aggregator):
  """The mean, scaled; options that a config gives, and one in the name."""

  power: int
  scale: float = 1.0
  shifts: tuple[float, ...] = ()

  trains = False

  def __call__(self, logits, train):
    return self.scale**self.power * nn.relu(logits).mean(axis=1)


@backbones.register('tiny_wide')
@dataclasses.dataclass(frozen=True)
class TinyWide(TinyBackbone):
  """The tiny backbone with a number of its own."""

  width: int = 4


@pytest.fixture
def config():
  config = digits.get_config()
  config.model.backbone = 'tiny_wide'
  config.model.aggregator = 'scaled_2'
  with config.unlocked():
    config.model.backbone_options = {'width': 6}
    config.model.aggregator_options = {'scale': 0.5, 'shifts': (1.0, 2.0)}
  return config


def test_options_of_backbone_and_aggregator(config):
  from_config.check(config)
  net = from_config.make_network(config)
  assert net.backbone == TinyWide(width=6)
  module = net.make_aggregator()
  assert (module.power, module.scale, module.shifts) == (2, 0.5, (1.0, 2.0))
  # It trains nothing, so its stage takes no steps.
  assert from_config.make_stage(config, 'aggregator', 640).num_steps == 0
  assert from_config.make_stage(config, 'second_head', 640).num_steps > 0


def test_options_come_back_from_a_stored_config(config):
  stored = ConfigDict(json.loads(json.dumps(from_config.as_json(config))))
  net = from_config.make_network(stored)
  assert net == from_config.make_network(config)
  hash(net)


@pytest.mark.parametrize(
  ('part', 'message'),
  [
    ('backbone', r"model.backbone: got \('size',\), choices for 'tiny_wide'"),
    ('aggregator', r"aggregator: got \('size',\), choices for 'scaled_2'"),
  ],
)
def test_a_surplus_option_is_named(config, part, message):
  with config.unlocked():
    config.model[f'{part}_options'] = {'size': 3}
  with pytest.raises(ValueError, match=message):
    from_config.check(config)
