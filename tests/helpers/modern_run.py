"""A run with all of today's parts at once, in seconds: digits, a tiny network.

DKL with its memory, AWP, one cycle with its momentum, Nesterov, averaged
weights and statistics, a ramp of epsilon, attacks in batch statistics, CutMix,
cutout, random erasing, extra images; with another backbone SiLU too.

    python -m dhat_jax.main --config=tests/helpers/modern_run.py[:wrn10_1] ...
"""

import os
import tempfile

import numpy as np

from dhat_jax.runtime import files
from tests.helpers import tiny_run

NUM_EXTRA = 200


def extra_file():
  """Returns the path of extra images, written when they are first needed."""
  path = os.path.join(tempfile.gettempdir(), 'dhat_jax_test_extra_images.npz')
  if not os.path.exists(path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUM_EXTRA, 8, 8, 1), dtype=np.uint8)
    with files.replacing(path, 'wb') as file:
      np.savez(file, image=images, label=np.arange(NUM_EXTRA) % 10)
  return path


def get_config(backbone='tiny'):
  """Returns the config of a backbone."""
  config = tiny_run.get_config()
  config.name = 'modern'
  config.model.backbone = backbone
  config.dataset.extra = {'files': (extra_file(),), 'fraction': 0.25}
  config.dataset.augmentations = (
    'crop_flip',
    {'name': 'cutout', 'size': 2},
    'random_erasing',
    'cutmix',
  )
  config.dataset.crop_padding = 1
  config.dataset.flip = True
  with config.unlocked():
    if backbone != 'tiny':
      config.model.backbone_options = {'activation': 'silu'}
    for name in config.stages:
      spec = config[name]
      # Small enough for an aggregator that has just begun.
      spec.loss = {'name': 'dkl', 'alpha': 4.0, 'beta': 0.5}
      spec.weight_perturbation = {'name': 'awp', 'gamma': 0.01}
      spec.schedule = {
        'name': 'one_cycle',
        'learning_rate': spec.schedule.learning_rate,
        'warmup_epochs': 0.1,
      }
      spec.optimizer.nesterov = True
      spec.optimizer.decay_norm = False
      spec.ema_decay = 0.9
      spec.ema.update(copy_epochs=0.2, warm_up=True, statistics=True)
      spec.attack.update(warmup_epochs=0.3, statistics='batch')
  return config
