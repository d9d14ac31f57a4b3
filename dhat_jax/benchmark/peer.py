"""A training step here and in PyTorch: same weights, images, noise, turns."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dhat_jax import convert, from_config
from dhat_jax.attacks import balls
from dhat_jax.benchmark import timing, training
from dhat_jax.pytorch import jax_module
from dhat_jax.runtime import devices, documents, provenance, streams

OURS = 'ours'
# How far the losses of one step may be apart. Where a gradient is nearly 0 its
# sign is a matter of rounding, and ten steps of the attack carry that on.
TOLERANCE = 0.01


def recipe(config: ml_collections.ConfigDict, stage: str) -> Any:
  """Returns a stage's `torch_steps.Recipe`.

  Raises:
    ValueError: a stage that is not trained by TRADES in linf.
  """
  from dhat_jax.benchmark import torch_steps

  spec = config[stage]
  if spec.loss.name != 'trades' or spec.attack.norm != 'linf':
    raise ValueError(
      f'config.{stage}: got loss {spec.loss.name!r} in {spec.attack.norm!r}; '
      'the comparison with PyTorch is of TRADES in linf'
    )
  return torch_steps.Recipe(
    beta=spec.loss.beta,
    epsilon=from_config.in_unit(spec.attack, 'epsilon'),
    step_size=from_config.in_unit(spec.attack, 'step_size'),
    steps=spec.attack.steps,
    learning_rate=spec.schedule.learning_rate,
    momentum=spec.optimizer.momentum,
    weight_decay=spec.optimizer.weight_decay,
  )


def attack_start(
  trainer: training.Trainer, spec: ml_collections.ConfigDict, images: np.ndarray
) -> np.ndarray:
  """Returns where the attack of our next step starts.

  Args:
    trainer: of the stage.
    spec: `config.<stage>.attack`.
    images: float32 [B, H, W, C], the batch.
  """
  state = devices.to_host(trainer.state)
  rng = jax.random.fold_in(state.rng, state.step)
  rngs = devices.example_rngs(rng, len(images), None)
  start = balls.random_start(
    streams.fold_in_each(rngs, 'step/attack'),
    jnp.asarray(images),
    from_config.in_unit(spec, 'epsilon'),
    spec.norm,
    spec.start,
  )
  return np.asarray(start)


def without_augmentation(
  config: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
  """Returns a copy of a config that trains on the images as they are."""
  config = copy.deepcopy(config)
  with config.unlocked():
    config.dataset.augmentations = ()
  return config


def side_maker(
  config: ml_collections.ConfigDict, trainer: training.Trainer
) -> Callable[..., Any]:
  """Returns what makes sides in PyTorch of a trainer's next step.

  Args:
    config: the run's config; without augmentation.
    trainer: whose weights, batch and noise the sides are given.

  Returns:
    (class of `torch_steps`, **options) -> the side, loaded.
  """
  name, net = trainer.stage.name, trainer.stage.net
  numbers = recipe(config, name)
  variables = devices.to_host(trainer.state).variables()
  state_dict = convert.to_torch(jax.tree.map(np.asarray, variables), net)
  images = devices.unshard(trainer.batch['images']).astype(np.float32) / 255
  labels = devices.unshard(trainer.batch['labels'])
  start = attack_start(trainer, config[name].attack, images)

  def make(kind: Callable[..., Any], **options: Any) -> Any:
    side = kind(net, state_dict, numbers, name, **options)
    side.load(images, labels, start)
    return side

  return make


def compare(
  config: ml_collections.ConfigDict,
  name: str,
  batch_size: int,
  *,
  repeats: int,
) -> dict[str, Any]:
  """Times one stage's step here and twice in PyTorch, taking turns.

  Augmentation is left out on all sides.

  Args:
    config: the run's config; TRADES in linf.
    name: of the stage.
    batch_size: global.
    repeats: timed steps of each.

  Returns:
    One row, a JSON document.

  Raises:
    ValueError: a config of another loss; losses that differ.
  """
  from dhat_jax.benchmark import torch_steps

  config = without_augmentation(config)
  numbers = recipe(config, name)
  trainer = training.make_trainer(config, name, batch_size)
  make = side_maker(config, trainer)
  peers = {
    'published': make(torch_steps.Published),
    'optimised': make(torch_steps.Optimised),
    'optimised_channels_last': make(torch_steps.Optimised, channels_last=True),
  }
  total, count = devices.to_host(trainer())['loss']
  losses = {OURS: float(total / count)}
  losses |= {key: peer() for key, peer in peers.items()}
  gap = max(abs(loss / losses[OURS] - 1) for loss in losses.values())
  if not gap < TOLERANCE:
    raise ValueError(
      f'{name}: the sides do not compute the same loss: got {losses}'
    )
  times = timing.alternate({OURS: trainer, **peers}, repeats=repeats)
  summaries = {key: timing.summary(values) for key, values in times.items()}
  return {
    'stage': name,
    'batch_size': batch_size,
    'attack_steps': numbers.steps,
    'losses': losses,
    'compile_seconds': trainer.compile_seconds,
    'times': summaries,
    'images_per_second': {
      key: batch_size / value['median'] for key, value in summaries.items()
    },
    'ratios': {
      key: summaries[key]['median'] / summaries[OURS]['median'] for key in peers
    },
  }


def run(
  config: ml_collections.ConfigDict,
  stages: tuple[str, ...],
  batch_size: int,
  *,
  repeats: int = 7,
  report: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Compares stages with PyTorch; returns {'rows': those of `compare`}.

  Raises:
    ImportError: PyTorch is not installed.
  """
  jax_module.import_torch().set_num_threads(provenance.cores())  # as XLA does
  rows = []
  for name in stages:
    rows.append(compare(config, name, batch_size, repeats=repeats))
    report(
      f'{name}: '
      + ', '.join(f'{k} {v:.2f} x' for k, v in rows[-1]['ratios'].items())
    )
  return {'rows': rows}


def table(measured: Mapping[str, Any]) -> str:
  """Returns the Markdown table of what `run` returns."""
  headers = (
    'stage',
    'here, images/s',
    'PyTorch as published',
    'optimised',
    'optimised, channels last',
    'here / published',
    'here / best optimised',
    'turn by turn',
  )
  rows = []
  for row in measured['rows']:
    speed, ratios = row['images_per_second'], row['ratios']
    optimised = [side for side in ratios if side.startswith('optimised')]
    best = min(optimised, key=ratios.get)
    sides = OURS, 'published', 'optimised', 'optimised_channels_last'
    numbers = (
      *(speed[side] for side in sides),
      ratios['published'],
      ratios[best],
    )
    turns = [
      theirs / ours
      for theirs, ours in zip(
        row['times'][best]['all'], row['times'][OURS]['all'], strict=True
      )
    ]
    rows.append(
      (
        row['stage'],
        *(f'{number:.2f}' for number in numbers),
        f'{min(turns):.2f} to {max(turns):.2f}',
      )
    )
  return documents.markdown_table(headers, rows)
