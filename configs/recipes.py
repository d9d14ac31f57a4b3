"""What the configs of this folder share: the published recipes as data.

A config is `get_config(variant)` with a variant `<base>_<backbone>`: base
`trades`, `sat` or `mart`; backbone `wrn34_10`, `wrn28_10`, `wrn16_4` (any
`wrn<depth>_<width>`), `dm_wrn28_10` (DeepMind's, likewise), `resnet18` or
`preact_resnet18`. A suffix `_mixed` makes it MixedNUTS; see `mixed`.

Lengths are in units of [0, 1]; a key that ends in `_255` is in units of 1/255
and, where it is given, takes the place of the key without.
"""

import copy
import re

from ml_collections import ConfigDict, config_dict

BASES = ('trades', 'sat', 'mart')
BACKBONES = (
  'wrn34_10',
  'wrn28_10',
  'wrn16_4',
  'resnet18',
  'preact_resnet18',
)
DEFAULT_VARIANT = 'trades_wrn34_10'
MIXED = '_mixed'


def split_variant(variant: str) -> tuple[str, str]:
  """Splits '<base>_<backbone>'; an unknown one raises with the choices."""
  base, _, backbone = variant.partition('_')
  known = backbone in BACKBONES or re.fullmatch(
    r'(dm_)?wrn\d+_\d+(\.\d+)?', backbone
  )
  if base not in BASES or not known:
    raise ValueError(
      f'config variant: got {variant!r}, expected <base>_<backbone> with base '
      f'in {BASES} and backbone in {BACKBONES}, another wrn<depth>_<width> or '
      'dm_wrn<depth>_<width>'
    )
  return base, backbone


def without_mixed(variant: str) -> tuple[str, bool]:
  """Splits '<base>_<backbone>[_mixed]' into (variant, whether it is mixed)."""
  plain = variant.removesuffix(MIXED)
  return plain, plain != variant


def mixed(config: ConfigDict) -> ConfigDict:
  """Makes a run MixedNUTS: an accurate second head, a mix that is fitted.

  The second head learns from clean images alone. Its last checkpoint is used:
  the most robust one would be its least accurate.
  """
  config.name = f'{config.name}{MIXED}'
  config.model.aggregator = 'mixed'
  # The published choices, of CIFAR-10 and of CIFAR-100.
  few = config.dataset.num_classes <= 20
  with config.unlocked():
    config.model.aggregator_options = {
      'percentile': 98.5,
      'surrogate_percentile': 95.0 if few else 93.5,
      'images': 1000,
      'attack': 'pgd_20',
      'scales': (0.05, 5.0 if few else 4.0),
      'shifts': (-1.1, 0.0) if few else (-2.5, -0.4),
      'powers': (1.0, 4.0),
      'grid': 8,
    }
  config.second_head.loss = ConfigDict({'name': 'natural'})
  config.second_head.keep = 'last'
  # Its hard maximum hides gradients from the plain attacks.
  config.evaluation.audit = True
  return config


def length(name: str, value: float | None, value_255: float | None) -> dict:
  """Returns the two keys of a length, one of them empty."""
  keys = {
    name: config_dict.placeholder(float),
    f'{name}_255': config_dict.placeholder(float),
  }
  if value is not None:
    keys[name] = value
  else:
    keys[f'{name}_255'] = value_255
  return keys


def attack(
  *,
  epsilon: float | None = None,
  epsilon_255: float | None = None,
  step_size: float | None = None,
  step_size_255: float | None = None,
  steps: int = 10,
  start: str = 'gaussian',
) -> dict:
  """A training attack; see `dhat_jax.attacks.pgd.make_attack`."""
  return {
    'name': 'pgd',
    **length('epsilon', epsilon, epsilon_255),
    **length('step_size', step_size, step_size_255),
    'steps': steps,
    'norm': 'linf',
    'start': start,
    # Batch norm in the attack: 'running' statistics, or the 'batch' one's.
    'statistics': 'running',
    # Epsilon and step size rise over so many epochs, from this epoch on
    # (counted from 1), from this share of themselves; or once an epoch.
    'warmup_epochs': 0.0,
    'warmup_start_epoch': 1.0,
    'warmup_start_fraction': 0.0,
    'warmup_per_epoch': False,
  }


def stage(
  *,
  loss: dict,
  attack: dict,
  epochs: int,
  learning_rate: float,
  drop_epochs: tuple[int, ...],
  weight_decay: float,
  batch_size: int = 128,
) -> dict:
  """One stage: loss, attack, length, optimiser."""
  return {
    # Copies: one dict in two stages would be one node of the config, and
    # what is set in either would change the other.
    'loss': copy.deepcopy(loss),
    'attack': copy.deepcopy(attack),
    'epochs': float(epochs),
    'batch_size': batch_size,
    'schedule': {
      'name': 'step',
      'learning_rate': learning_rate,
      # From these epochs on, counted from 1.
      'drop_epochs': drop_epochs,
      'drop_factor': 0.1,
      'warmup_epochs': 0.0,
    },
    'optimizer': {
      'name': 'sgd',
      'momentum': 0.9,
      'nesterov': False,
      'weight_decay': weight_decay,
      # Whether biases and batch norm's parameters decay too.
      'decay_norm': True,
      # 0: the gradient's norm is not clipped.
      'clip_norm': 0.0,
    },
    # At which weights the gradient is taken; 'none': at the weights themselves.
    'weight_perturbation': {'name': 'none'},
    # 0: no moving average of the weights.
    'ema_decay': 0.0,
    'ema': {
      # The average is a copy of the weights until these epochs have passed.
      'copy_epochs': 0.0,
      # Whether the decay then rises to ema_decay.
      'warm_up': False,
      # Whether batch norm's running statistics are averaged too.
      'statistics': False,
      # Whether the average is validated, handed on and evaluated.
      'use': True,
    },
    # Which checkpoint the next stage starts from: 'best' or 'last'.
    'keep': 'best',
  }


def losses(base: str, backbone: str) -> tuple[dict, dict, dict]:
  """The loss of each stage: a robust main head, a more accurate second."""
  if base == 'trades':
    betas = (6.0, 3.0, 3.0)
  elif base == 'mart':
    betas = (5.0, 2.5, 2.5) if 'resnet18' in backbone else (6.0, 3.0, 3.0)
  else:
    return ({'name': 'sat', 'label_smoothing': 0.0},) * 3
  return tuple({'name': base, 'beta': beta} for beta in betas)


def run(
  *,
  name: str,
  dataset: dict,
  backbone: str,
  aggregator: str,
  main_head: dict,
  second_head: dict,
  aggregator_stage: dict,
) -> ConfigDict:
  """A whole run with the published evaluation."""
  return ConfigDict(
    {
      'name': name,
      'seed': 0,
      # What is trained, in order; ('main_head',) is the plain network.
      'stages': ('main_head', 'second_head', 'aggregator'),
      'dataset': dataset,
      'model': {
        'backbone': backbone,
        # As {'activation': 'silu'}.
        'backbone_options': {},
        'attach': 'block1',
        'aggregator': aggregator,
        'aggregator_options': {},
        # Per channel; (): images go in as they are, in [0, 1].
        'mean': (),
        'std': (),
        'dtype': 'float32',
        # Whether devices share batch norm's statistics.
        'sync_batch_norm': True,
        # Whether the statistics of a frozen part are frozen with it; the
        # published code lets them drift.
        'freeze_statistics': True,
        # Whether the gradient computes most of the forward pass twice: less
        # memory, more time.
        'remat': False,
      },
      'main_head': main_head,
      'second_head': second_head,
      'aggregator': aggregator_stage,
      'validation': {'every_epochs': 1, 'attack': 'pgd_10'},
      'checkpoint': {'every_steps': 500, 'keep': 2},
      'log_every_steps': 20,
      # Stops at the first operation that makes a NaN, and names it. Slow.
      'debug_nans': False,
      'evaluation': {
        # Also 'autoattack', or some of its attacks: 'apgd-t', 'square', ...
        'attacks': ('clean', 'fgsm', 'pgd_20', 'pgd_40', 'cw_40'),
        **length('epsilon', 0.031, None),
        **length('step_size', 0.003, None),
        'norm': 'linf',
        'restarts': 1,
        'batch_size': 512,
        'dtype': 'float32',
        # Of a randomised network, by which each image is judged.
        'samples': 1,
        # Whose budget, where it is not the standard one, the results name.
        'autoattack_version': 'standard',
        'autoattack_outputs': (),  # (): all
        'autoattack_images': 0,  # the first so many; 0: all
        'autoattack_n_iter': 100,
        'autoattack_queries': 5000,
        'autoattack_targets': 9,
        'autoattack_target_order': 'logits',  # or 'malt'
        # What its attacks see; float32 judges their images.
        'autoattack_screening': 'none',  # or 'bfloat16'
        # PGD at these radii; (): none. At the last one nothing may resist.
        'sweep_epsilons_255': (0.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0),
        'sweep_steps': 20,
        # PGD's loss after so many steps; (): none.
        'loss_steps': (0, 1, 2, 5, 10, 20, 50),
        # Whether the aggregated output hides its gradients.
        'audit': True,
        'audit_steps': 20,
        'audit_queries': 1000,  # of Square; 0: without it
        'audit_mora': True,  # an attack that re-weighs the heads
        'audit_malt': False,  # APGD-T, nearest classes first
        # Adversarial images as npz in the workdir.
        'export_images': False,
      },
      # Whether the same network is trained without adversarial images too.
      'compare_with_natural': False,
    }
  )


def tfds_dataset(
  name: str, *, num_classes: int, validation_size: int, flip: bool
) -> dict:
  """A data set from TFDS, or from a folder that the options name."""
  return {
    'name': name,
    'loader': 'tfds',
    # tfds: a prepared TFDS folder; image_folder: the images' folder.
    'data_dir': '',
    # Where archives that were downloaded by hand lie.
    'manual_dir': '',
    # Decoded arrays; '' is ~/.cache/dhat_jax.
    'cache_dir': '',
    'num_classes': num_classes,
    # Images held out of the training set, for model selection.
    'validation_size': validation_size,
    # In this order; `crop_flip` has the next two keys.
    'augmentations': ('crop_flip',),
    'crop_padding': 4,
    'flip': flip,
    # Generated images: npz files, and their share of each batch.
    'extra': {'files': (), 'fraction': 0.7},
  }


def run_name(dataset: str, variant: str) -> str:
  """'cifar10' for the default variant, 'cifar10_sat_resnet18' for others."""
  return dataset if variant == DEFAULT_VARIANT else f'{dataset}_{variant}'


def cifar(
  name: str, variant: str, *, num_classes: int, weight_decay: float | None
) -> ConfigDict:
  """CIFAR-10's recipes of TRADES, SAT and MART, in DH-AT's three stages.

  Args:
    name: 'cifar10' or 'cifar100'.
    variant: '<base>_<backbone>', or with '_mixed'.
    num_classes: 10 or 100.
    weight_decay: in place of the recipe's, or None.
  """
  variant, is_mixed = without_mixed(variant)
  base, backbone = split_variant(variant)
  wide = 'wrn' in backbone
  if base == 'sat':
    training_attack = attack(
      epsilon_255=8.0, step_size_255=2.0, start='uniform'
    )
  else:
    training_attack = attack(epsilon=0.031, step_size=0.007)
  if base == 'mart':
    decay = weight_decay or (7e-4 if wide else 3.5e-3)
    heads = {
      'epochs': 90 if wide else 120,
      'learning_rate': 0.1 if wide else 0.01,
      'drop_epochs': (75, 90),
    }
  else:
    decay = weight_decay or 2e-4
    heads = {
      'epochs': 100,
      'learning_rate': 0.1,
      'drop_epochs': (75, 90, 100),
    }
  main, second, aggregated = losses(base, backbone)
  common = {'attack': training_attack, 'weight_decay': decay}
  second_epochs = 76 if base == 'trades' else heads['epochs']
  config = run(
    name=run_name(name, variant),
    dataset=tfds_dataset(
      name, num_classes=num_classes, validation_size=1000, flip=True
    ),
    backbone=backbone,
    aggregator='pairwise' if num_classes <= 20 else 'classwise',
    main_head=stage(loss=main, **common, **heads),
    second_head=stage(
      loss=second, **common, **{**heads, 'epochs': second_epochs}
    ),
    aggregator_stage=stage(
      loss=aggregated,
      **common,
      epochs=60,
      # Published: .1, at which short runs lost 10 points or hid gradients
      # (docs/results.md).
      learning_rate=0.01,
      drop_epochs=(25, 40, 50),
    ),
  )
  return mixed(config) if is_mixed else config
