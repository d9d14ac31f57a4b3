"""The steps in PyTorch do the same work: same loss, same new parameters."""

import jax
import numpy as np
import pytest

from dhat_jax import convert
from dhat_jax.benchmark import training
from dhat_jax.configs import digits
from dhat_jax.runtime import devices, provenance

torch = pytest.importorskip('torch')

from dhat_jax.benchmark import peer, torch_steps  # noqa: E402

pytestmark = pytest.mark.oracle

PREFIXES = {
  'main_head': ('', 'WRN1.'),
  'second_head': ('WRN2.',),
  'aggregator': ('cnn.',),
}


def make_config(steps=2):
  config = digits.get_config()
  for name in config.stages:
    config[name].attack.steps = steps
    # Near the clean images the divergence and its gradient are nearly 0, and
    # the gradient's sign is a matter of rounding.
    config[name].attack.start = 'uniform'
  return config


def parameters(trainer):
  """Our network's parameters, with the published names."""
  variables = jax.tree.map(
    np.asarray, devices.to_host(trainer.state).variables()
  )
  return convert.to_torch(variables, trainer.stage.net)


@pytest.mark.parametrize('stage', list(PREFIXES))
def test_one_step_is_the_same_everywhere(stage):
  config = make_config()
  trainer = training.make_trainer(config, stage, 8)
  before = parameters(trainer)
  images = devices.unshard(trainer.batch['images']).astype(np.float32) / 255
  labels = devices.unshard(trainer.batch['labels'])
  recipe = peer.recipe(config, stage)
  peers = [
    torch_steps.Published(trainer.stage.net, before, recipe, stage),
    torch_steps.Optimised(trainer.stage.net, before, recipe, stage),
    torch_steps.Optimised(
      trainer.stage.net, before, recipe, stage, channels_last=True
    ),
  ]
  start = peer.attack_start(trainer, config[stage].attack, images)
  for side in peers:
    side.load(images, labels, start)
  total, count = devices.to_host(trainer()['loss'])
  after = parameters(trainer)
  for side in peers:
    assert side() == pytest.approx(total / count, rel=1e-3)
    trained = side.trained()
    keys = {
      name: next(
        prefix + name for prefix in PREFIXES[stage] if prefix + name in before
      )
      for name in trained
    }
    changed = {k for k in before if not np.array_equal(before[k], after[k])}
    weights = {k for k in changed if 'running' not in k}
    assert set(keys.values()) == weights
    distance = sum(
      ((trained[name] - after[key]) ** 2).sum() for name, key in keys.items()
    )
    length = sum(
      ((after[key] - before[key]) ** 2).sum() for key in keys.values()
    )
    assert length > 1e-6
    # A pixel whose gradient is rounded to another sign moves a little.
    assert distance < 0.02**2 * length


def test_comparison(capsys):
  found = peer.run(make_config(1), ('second_head',), 4, repeats=2)
  (row,) = found['rows']
  assert row['losses'].keys() == row['times'].keys()
  speed = row['images_per_second']
  for name, ratio in row['ratios'].items():
    assert ratio == pytest.approx(speed['ours'] / speed[name])
  assert provenance.machine()['versions']['torch']
  assert 'second_head: published' in capsys.readouterr().out
  assert '| second_head |' in peer.table(found)


def test_other_losses_are_refused():
  config = digits.get_config('sat_wrn10_1')
  with pytest.raises(ValueError, match=r"got loss 'sat'.*TRADES in linf"):
    peer.run(config, ('main_head',), 4)


def test_another_loss_is_noticed(monkeypatch):
  monkeypatch.setattr(torch_steps.Published, '__call__', lambda self: 7.0)
  with pytest.raises(ValueError, match=r'not compute the same loss.*7\.0'):
    peer.run(make_config(1), ('second_head',), 4, repeats=1)
