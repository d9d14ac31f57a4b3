"""Training steps in PyTorch: the published procedure, and an optimised one.

Both train by TRADES. `Published` does the work of the published scripts. They
compute the clean prediction again at every step of the attack. A second head
brings its own trunk. In the loss the clean images pass the network twice, and
gradients are computed for all parameters. `Optimised` saves all that, as
`dhat_jax.training.step` does.

Differs from the published scripts: parts that a stage does not train run with
their running statistics, as the method says. In the scripts they run in
training mode, and drift. This makes the losses comparable, and the step a
little cheaper than the scripts'.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from dhat_jax.models.dual_head import DualHeadNet
from dhat_jax.pytorch.networks import make_torch_network


@dataclasses.dataclass(frozen=True)
class Recipe:
  """TRADES' numbers.

  Attributes:
    beta: weight of the robust term.
    epsilon: radius of the attack, in [0, 1] units.
    step_size: of the attack, same units.
    steps: of the attack.
    learning_rate: of SGD.
    momentum: of SGD.
    weight_decay: of SGD.
  """

  beta: float
  epsilon: float
  step_size: float
  steps: int
  learning_rate: float
  momentum: float
  weight_decay: float


def _ascend(logits_fn, divergence, images, start, recipe):
  """Steps of the sign of the gradient in the Linf ball around the images.

  Args:
    logits_fn: images -> logits.
    divergence: adversarial logits -> scalar to be maximised.
    images: [B, C, H, W].
    start: same shape.
    recipe: lengths and number of steps.
  """
  images_adv = start
  for _ in range(recipe.steps):
    images_adv = images_adv.detach().requires_grad_()
    value = divergence(logits_fn(images_adv))
    (gradient,) = torch.autograd.grad(value, [images_adv])
    with torch.no_grad():
      images_adv = images_adv + recipe.step_size * gradient.sign()
      images_adv = torch.minimum(images_adv, images + recipe.epsilon)
      images_adv = torch.maximum(images_adv, images - recipe.epsilon)
      images_adv = images_adv.clamp(0, 1)
  return images_adv.detach()


class _Step:
  """What both procedures share: networks, optimiser, the order of a step."""

  def __init__(self, recipe: Recipe, stage: str, channels_last: bool):
    self._recipe = recipe
    self._stage = stage
    self._format = (
      torch.channels_last if channels_last else torch.contiguous_format
    )

  def _optimise(self, parameters) -> None:
    recipe = self._recipe
    self._optimizer = torch.optim.SGD(
      parameters,
      lr=recipe.learning_rate,
      momentum=recipe.momentum,
      weight_decay=recipe.weight_decay,
    )

  def _put(self, images: np.ndarray) -> torch.Tensor:
    """[B, H, W, C] -> [B, C, H, W], on the network's device."""
    tensor = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)
    return tensor.to(self._device, memory_format=self._format)

  def load(
    self, images: np.ndarray, labels: np.ndarray, start: np.ndarray
  ) -> None:
    """Sets the batch.

    Args:
      images: float32 [B, H, W, C] in [0, 1].
      labels: int [B].
      start: float32 [B, H, W, C], where the attack starts.
    """
    self._images, self._start = self._put(images), self._put(start)
    self._labels = torch.from_numpy(np.array(labels)).long().to(self._device)

  def trained(self) -> dict[str, np.ndarray]:
    """Returns the trained part's parameters, with the names it gives them."""
    return {
      name: parameter.detach().cpu().numpy()
      for name, parameter in self._named_parameters()
    }

  def __call__(self) -> float:
    """Trains one step on the batch; returns the loss before it."""
    images_adv = self._attack()
    self._optimizer.zero_grad()
    loss = self._loss(images_adv)
    loss.backward()
    self._optimizer.step()
    return loss.item()


class Published(_Step):
  """The published procedure."""

  def __init__(
    self,
    model: DualHeadNet,
    state_dict: Mapping[str, np.ndarray],
    recipe: Recipe,
    stage: str,
    *,
    device: str = 'cpu',
  ):
    """Creates the networks.

    Args:
      model: the network, with the stage's outputs.
      state_dict: of `dhat_jax.convert.to_torch`.
      recipe: of the stage.
      stage: 'main_head', 'second_head' or 'aggregator'.
      device: PyTorch's name.
    """
    super().__init__(recipe, stage, channels_last=False)
    self._device = device
    channels = _image_channels(state_dict)
    whole = make_torch_network(model, image_channels=channels)
    whole.load_state_dict(_tensors(state_dict))
    single = model.clone(outputs=('main',))
    self._first, self._second = (
      make_torch_network(single, image_channels=channels) for _ in range(2)
    )
    if stage == 'main_head':
      self._first.load_state_dict(whole.state_dict())
    else:
      main = whole.WRN1.state_dict()
      self._first.load_state_dict(main)
      self._second.load_state_dict(main | whole.WRN2.state_dict())
    self._aggregator = getattr(whole, 'cnn', None)
    if stage == 'main_head':
      used, self._trained = [self._first], [self._first]
    elif stage == 'second_head':
      used = [self._second]
      trunk = set(main) - set(whole.WRN2.state_dict())
      names = {key.partition('.')[0] for key in trunk}
      self._trained = [
        module
        for name, module in self._second.named_children()
        if name not in names
      ]
    else:
      used = [self._first, self._second, self._aggregator]
      self._trained = [self._aggregator]
    for network in used:
      network.to(device).eval()
    self._optimise([p for m in self._trained for p in m.parameters()])

  def _named_parameters(self):
    network = {
      'main_head': self._first,
      'second_head': self._second,
      'aggregator': self._aggregator,
    }[self._stage]
    chosen = {id(p) for m in self._trained for p in m.parameters()}
    return [
      (name, p) for name, p in network.named_parameters() if id(p) in chosen
    ]

  def _logits(self, images):
    if self._stage == 'main_head':
      return self._first(images)
    if self._stage == 'second_head':
      return self._second(images)
    heads = [self._first(images), self._second(images)]
    return self._aggregator(torch.stack(heads, dim=1))

  def _mode(self, training: bool) -> None:
    for module in self._trained:
      module.train(training)

  def _attack(self):
    self._mode(False)
    return _ascend(
      self._logits,
      lambda logits: F.kl_div(
        F.log_softmax(logits, dim=1),
        F.softmax(self._logits(self._images), dim=1),
        reduction='sum',
      ),
      self._images,
      self._start,
      self._recipe,
    )

  def _loss(self, images_adv):
    self._mode(True)
    logits = self._logits(self._images)
    natural = F.cross_entropy(logits, self._labels)
    robust = F.kl_div(
      F.log_softmax(self._logits(images_adv), dim=1),
      F.softmax(self._logits(self._images), dim=1),
      reduction='batchmean',
    )
    return natural + self._recipe.beta * robust


class Optimised(_Step):
  """The same step without redundant work."""

  def __init__(
    self,
    model: DualHeadNet,
    state_dict: Mapping[str, np.ndarray],
    recipe: Recipe,
    stage: str,
    *,
    device: str = 'cpu',
    channels_last: bool = False,
    bfloat16: bool = False,
    compiled: bool = False,
  ):
    """Creates the network.

    Args:
      model: as of `Published`, like the next ones.
      state_dict: same.
      recipe: same.
      stage: same.
      device: same.
      channels_last: the images' and kernels' layout in memory.
      bfloat16: whether the network runs under `torch.autocast`.
      compiled: whether it is compiled by `torch.compile`.
    """
    super().__init__(recipe, stage, channels_last)
    self._device = device
    self._bfloat16 = bfloat16
    if compiled:
      self._run_frozen = torch.compile(self._run_frozen)
      self._run_rest = torch.compile(self._run_rest)
    net = make_torch_network(model, image_channels=_image_channels(state_dict))
    net.load_state_dict(_tensors(state_dict))
    self._net = net.to(device, memory_format=self._format).eval()
    trained = {
      'main_head': lambda: net,
      'second_head': lambda: net.WRN2,
      'aggregator': lambda: net.cnn,
    }
    self._trained = trained[stage]()
    self._net.requires_grad_(False)
    self._optimise(self._trained.parameters())

  def _named_parameters(self):
    return self._trained.named_parameters()

  def _autocast(self):
    return torch.autocast(
      torch.device(self._device).type, torch.bfloat16, enabled=self._bfloat16
    )

  def _frozen(self, images):
    """Runs what the stage does not train."""
    if self._stage == 'main_head':
      return images
    with self._autocast():
      return self._run_frozen(images)

  def _rest(self, features):
    """Runs what it trains: logits in float32."""
    with self._autocast():
      return self._run_rest(features).float()

  def _run_frozen(self, images):
    net = self._net
    features = net.WRN1.trunk(images, net.count)
    if self._stage == 'second_head':
      return features
    heads = [part.head(features, net.count) for part in (net.WRN1, net.WRN2)]
    return torch.stack(heads, dim=1)

  def _run_rest(self, features):
    if self._stage == 'second_head':
      return self._trained.head(features, self._net.count)
    return self._trained(features)

  def _attack(self):
    self._trained.eval().requires_grad_(False)
    with torch.no_grad():
      self._clean = self._frozen(self._images)
      target = F.softmax(self._rest(self._clean), dim=1)
    return _ascend(
      lambda images: self._rest(self._frozen(images)),
      lambda logits: F.kl_div(
        F.log_softmax(logits, dim=1), target, reduction='sum'
      ),
      self._images,
      self._start,
      self._recipe,
    )

  def _loss(self, images_adv):
    self._trained.train().requires_grad_(True)
    with torch.no_grad():
      adversarial = self._frozen(images_adv)
    logits = self._rest(self._clean)
    robust = F.kl_div(
      F.log_softmax(self._rest(adversarial), dim=1),
      F.softmax(logits, dim=1),
      reduction='batchmean',
    )
    return F.cross_entropy(logits, self._labels) + self._recipe.beta * robust


def _image_channels(state_dict: Mapping[str, np.ndarray]) -> int:
  first = state_dict.get('conv1.weight', state_dict.get('WRN1.conv1.weight'))
  return first.shape[1]


def _tensors(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
  return {key: torch.from_numpy(value) for key, value in state_dict.items()}
