"""Adversarial weight perturbation in float64, beside the published procedure.

There a copy of the network ascends by one step of SGD, and the difference of
the weights is scaled; the optimiser steps from the perturbed weights, and the
perturbation is taken off again.
"""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax import losses
from dhat_jax.models.dual_head import DualHeadNet
from dhat_jax.models.wide_resnet import WideResNet
from dhat_jax.pytorch import state_dicts
from dhat_jax.training import optim
from dhat_jax.training.perturbation import awp
from dhat_jax.training.stages import roles
from dhat_jax.training.state import create_train_state
from dhat_jax.training.step import make_train_step
from tests.helpers.tiny import random_like, shapes_of

torch = pytest.importorskip('torch')

import torch.nn.functional as F  # noqa: E402

from dhat_jax.pytorch.networks import make_torch_network  # noqa: E402
from tests.attacks import oracle  # noqa: E402

pytestmark = pytest.mark.oracle

GAMMA, RATE, MOMENTUM, DECAY, BETA = 0.01, 0.1, 0.9, 5e-3, 6.0
ROLE = roles()['main_head']
NET = DualHeadNet(WideResNet(10, 1), 4, outputs=ROLE.outputs)
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0.1, 0.9, (6, 8, 8, 3))
LABELS = RNG.integers(0, 4, 6).astype(np.int32)
NOISE = 0.08 * RNG.choice([-1.0, 1.0], IMAGES.shape)


def shift(objective, rngs, images, scale):
  """A training attack that both libraries compute alike."""
  del objective, rngs, scale
  return images + NOISE


def torch_loss(name, net, images, images_adv, labels):
  """The three losses as their papers write them, batch means."""
  if name == 'sat':
    return F.cross_entropy(net(images_adv), labels)
  clean = net(images)
  adversarial = net(images_adv)
  p, q = clean.softmax(1), adversarial.softmax(1)
  divergence = (p * (p / q).log()).sum(1)
  if name == 'trades':
    return F.cross_entropy(clean, labels) + BETA * divergence.mean()
  rival = q.scatter(1, labels[:, None], 0).max(1).values
  boosted = F.nll_loss(q.log(), labels, reduction='none')
  boosted = boosted - (1.0001 - rival + 1e-12).log()
  doubt = 1.0000001 - p.gather(1, labels[:, None])[:, 0]
  return (boosted + BETA * divergence * doubt).mean()


class Published:
  """The published procedure: a proxy, two steps of SGD, a restored weight."""

  def __init__(self, net, name):
    self.net, self.name = net, name
    self.optimizer = torch.optim.SGD(
      net.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY
    )

  def perturbation(self, batch):
    proxy = copy.deepcopy(self.net).train()
    ascent = torch.optim.SGD(proxy.parameters(), lr=0.01)
    (-torch_loss(self.name, proxy, *batch)).backward()
    ascent.step()
    changes = {}
    for key, old in self.net.state_dict().items():
      new = proxy.state_dict()[key]
      if old.ndim > 1 and 'weight' in key:
        difference = new - old
        size = old.norm() / (difference.norm() + 1e-20)
        changes[key] = GAMMA * size * difference
    return changes

  def step(self, batch):
    changes = self.perturbation(batch)
    self._add(changes, 1)
    self.optimizer.zero_grad()
    torch_loss(self.name, self.net.train(), *batch).backward()
    self.optimizer.step()
    self._add(changes, -1)
    return changes

  def _add(self, changes, sign):
    with torch.no_grad():
      for key, parameter in self.net.named_parameters():
        if key in changes:
          parameter += sign * changes[key]


LOSSES = {
  'trades': losses.trades(beta=BETA),
  'sat': losses.sat(),
  'mart': losses.mart(beta=BETA),
}


@pytest.mark.parametrize('name', list(LOSSES))
def test_a_whole_step_is_the_published_one(name):
  """v, and the parameters and statistics after two steps with momentum."""
  with oracle.float64():
    variables = jax.tree.map(
      lambda leaf: jnp.asarray(leaf, jnp.float64),
      random_like(shapes_of(NET, jnp.zeros((1, 8, 8, 3))), 1),
    )
    net = make_torch_network(NET)
    arrays = state_dicts.to_torch(variables, NET)
    net.load_state_dict({k: torch.from_numpy(a) for k, a in arrays.items()})
    published = Published(net.double(), name)
    batch = (
      *(torch.from_numpy(a.transpose(0, 3, 1, 2)) for a in (IMAGES,)),
      torch.from_numpy((IMAGES + NOISE).transpose(0, 3, 1, 2)),
      torch.from_numpy(LABELS).long(),
    )
    perturbed = []

    def recording(loss_fn, has_aux):
      gradient = awp(gamma=GAMMA)(loss_fn, has_aux=has_aux)

      def record(params, step):
        result = gradient(params, step)
        perturbed.append(jax.tree.map(np.subtract, result[0][1][-1], params))
        return result

      return record

    tx = optim.sgd(schedule=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    state = create_train_state(
      net=NET,
      tx=tx,
      trains=ROLE.trains,
      rng=jax.random.key(0),
      image_shape=(8, 8, 3),
      variables=variables,
    )
    step = make_train_step(
      net=NET,
      tx=tx,
      loss=LOSSES[name],
      attack=shift,
      trains=ROLE.trains,
      output=ROLE.output,
      value_and_grad=recording,
    )
    for number in range(2):
      changes = published.step(batch)
      state, _ = step(state, {'images': jnp.asarray(IMAGES), 'labels': LABELS})
      got = as_torch(perturbed[number], state)
      for key, change in changes.items():
        np.testing.assert_allclose(
          got[key], change.numpy(), rtol=1e-9, atol=1e-12, err_msg=key
        )
    after = as_torch(state.params, state)
    for key, parameter in net.named_parameters():
      np.testing.assert_allclose(
        after[key], parameter.detach().numpy(), rtol=1e-9, atol=1e-11
      )
    for key, buffer in net.named_buffers():
      if key.endswith('running_mean'):
        np.testing.assert_allclose(after[key], buffer, rtol=1e-9, atol=1e-11)


def as_torch(params, state):
  """{PyTorch's key: float64 array} of parameters and statistics."""
  entries = state_dicts.names.entries(NET, 3)
  flat = {
    tuple(part.key for part in path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(
      {'params': params, 'batch_stats': state.batch_stats}
    )
  }
  return {
    key: entry.layout.to_torch(flat[entry.path])
    for key, entry in entries.items()
  }
