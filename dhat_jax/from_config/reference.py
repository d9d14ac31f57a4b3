"""What every key of a config means: the reference, and what `--help` lists.

`KEYS` describes the keys that every config has. The options of registered parts
come from the signatures and docstrings of their factories.
"""

import inspect
import re
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from dhat_jax.attacks import balls
from dhat_jax.attacks.autoattack import checks, targets
from dhat_jax.attacks.autoattack.budget import SCREENINGS
from dhat_jax.attacks.training import TRAINING_ATTACKS
from dhat_jax.datasets.loaders import DATASETS
from dhat_jax.evaluation.attacks import EVALUATION_ATTACKS
from dhat_jax.losses import LOSSES
from dhat_jax.models.aggregator import AGGREGATORS
from dhat_jax.models.backbones import BACKBONES
from dhat_jax.models.layers import DTYPES
from dhat_jax.models.outputs import OUTPUTS
from dhat_jax.registry import Registry
from dhat_jax.training.augment import AUGMENTATIONS
from dhat_jax.training.optim import OPTIMIZERS, SCHEDULES
from dhat_jax.training.perturbation import WEIGHT_PERTURBATIONS
from dhat_jax.training.stages import all_roles

STAGE = '<stage>'  # stands for the name of every stage
# Keys that a config may lack, in the order of `KEYS`.
OPTIONAL = (
  *(f'dataset.{key}' for key in ('data_dir', 'manual_dir', 'cache_dir')),
  'dataset.augmentations',
  *('dataset.extra.files', 'dataset.extra.fraction'),
  *(f'model.{part}_options' for part in ('backbone', 'aggregator')),
  'model.remat',
  *(
    f'{STAGE}.{key}'
    for key in (
      *('attack.name', 'attack.epsilon_255', 'attack.step_size_255'),
      'attack.statistics',
      *('attack.warmup_start_epoch', 'attack.warmup_start_fraction'),
      'attack.warmup_per_epoch',
      *('schedule.drop_epochs', 'schedule.drop_factor'),
      *('schedule.warmup_epochs', 'optimizer.name', 'optimizer.nesterov'),
      *('optimizer.decay_norm', 'optimizer.clip_norm'),
      'weight_perturbation.name',
      *('ema.copy_epochs', 'ema.warm_up', 'ema.statistics', 'ema.use'),
    )
  ),
  *('evaluation.epsilon_255', 'evaluation.step_size_255'),
  *('evaluation.autoattack_target_order', 'evaluation.autoattack_screening'),
  'evaluation.samples',
  *('evaluation.audit_mora', 'evaluation.audit_malt'),
)
# Attacks of an evaluation that take seconds, and so may validate.
_FAST_ATTACKS = ('clean', 'fgsm', 'pgd_<steps>', 'cw_<steps>')


class Key(NamedTuple):
  """One key of a config.

  Attributes:
    meaning: what its value does, a phrase.
    unit: of a number; '' where it has none.
    choices: names that it may have; a registry's are those registered.
  """

  meaning: str
  unit: str = ''
  choices: Collection[str] = ()


_ATTACK_KEYS = {
  'name': Key('the training attack', choices=TRAINING_ATTACKS),
  'epsilon': Key('radius of the attack', '[0, 1]'),
  'epsilon_255': Key('replaces `epsilon` where given', '1/255'),
  'step_size': Key('length of a step of the attack', '[0, 1]'),
  'step_size_255': Key('replaces `step_size` where given', '1/255'),
  'steps': Key('gradient steps of the attack', 'steps'),
  'norm': Key('norm of radius and steps', choices=balls.NORMS),
  'start': Key('noise that the attack starts from', choices=balls.STARTS),
  'statistics': Key(
    "batch norm's statistics that the attack sees",
    choices=('running', 'batch'),
  ),
  'warmup_epochs': Key('radius and step size rise over these epochs', 'epochs'),
  'warmup_start_epoch': Key(
    'epoch, counted from 1, from which they rise', 'epochs'
  ),
  'warmup_start_fraction': Key('share of them before they rise', '[0, 1]'),
  'warmup_per_epoch': Key('whether they rise once an epoch, to e / E of E'),
}
_SCHEDULE_KEYS = {
  'name': Key('the schedule of the learning rate', choices=SCHEDULES),
  'learning_rate': Key('rate before the first drop; the peak of one_cycle'),
  'drop_epochs': Key(
    'epochs, counted from 1, at whose start the rate drops', 'epochs'
  ),
  'drop_factor': Key('factor of each drop'),
  'warmup_epochs': Key('the rate rises from 0 over these epochs', 'epochs'),
}
_OPTIMIZER_KEYS = {
  'name': Key('the optimiser', choices=OPTIMIZERS),
  'momentum': Key('momentum, in [0, 1); one_cycle has its own'),
  'nesterov': Key("whether the momentum is Nesterov's"),
  'weight_decay': Key('coefficient of the L2 penalty'),
  'decay_norm': Key("whether biases and batch norm's parameters decay too"),
  'clip_norm': Key("largest norm of the gradient; 0 doesn't clip"),
}
_STAGE_KEYS = {
  'loss.name': Key('the loss', choices=LOSSES),
  'loss.beta': Key('weight of the robustness term; TRADES, MART, DKL'),
  **{f'attack.{key}': value for key, value in _ATTACK_KEYS.items()},
  'epochs': Key('length of the stage', 'epochs'),
  'batch_size': Key('images in a batch, over all devices', 'images'),
  **{f'schedule.{key}': value for key, value in _SCHEDULE_KEYS.items()},
  **{f'optimizer.{key}': value for key, value in _OPTIMIZER_KEYS.items()},
  'weight_perturbation.name': Key(
    'weights at which the gradient is taken', choices=WEIGHT_PERTURBATIONS
  ),
  'ema_decay': Key('decay of the moving average of the weights; 0: none'),
  'ema.copy_epochs': Key(
    'epochs until which the average is a copy of the weights', 'epochs'
  ),
  'ema.warm_up': Key('whether the decay then rises to `ema_decay`'),
  'ema.statistics': Key('whether running statistics are averaged too'),
  'ema.use': Key('whether the average is validated, handed on and evaluated'),
  'keep': Key(
    'checkpoint that the next stage starts from', choices=('best', 'last')
  ),
}
_DATASET_KEYS = {
  'name': Key('name of the data set, also in TFDS'),
  'loader': Key('how it is loaded', choices=DATASETS),
  'data_dir': Key('prepared TFDS folder, folder of images, or npz file(s)'),
  'manual_dir': Key('folder of archives that were downloaded by hand'),
  'cache_dir': Key('folder of decoded images; empty: ~/.cache/dhat_jax'),
  'num_classes': Key('number of classes'),
  'validation_size': Key('training images held out for validation', 'images'),
  'augmentations': Key('augmentations, in order', choices=AUGMENTATIONS),
  'crop_padding': Key('zeros around an image before a random crop', 'pixels'),
  'flip': Key('whether images are flipped at random'),
  'extra.files': Key(
    'npz files of generated images, or patterns of them; (): none'
  ),
  'extra.fraction': Key('share of a batch that `extra.files` fill', '(0, 1)'),
}
_MODEL_KEYS = {
  'backbone': Key('the network', choices=BACKBONES),
  'attach': Key(
    'block after which the trunk ends',
    choices=('block1', 'block2', 'block3'),
  ),
  'aggregator': Key('how the heads are merged', choices=AGGREGATORS),
  'backbone_options': Key(
    'options of the backbone, a dict; as {"activation": "silu"}'
  ),
  'aggregator_options': Key('options of the aggregator, a dict'),
  'mean': Key('subtracted from images, per channel; (): nothing', '[0, 1]'),
  'std': Key('images are divided by it, per channel; (): 1', '[0, 1]'),
  'dtype': Key('precision of the network in training', choices=DTYPES),
  'sync_batch_norm': Key("whether devices share batch norm's statistics"),
  'freeze_statistics': Key(
    'whether the batch statistics of a frozen part stay as they are'
  ),
  'remat': Key(
    'whether the backward pass computes activations again, to save memory'
  ),
}
_EVALUATION_KEYS = {
  'attacks': Key('attacks on each output', choices=EVALUATION_ATTACKS),
  'epsilon': Key('radius of the attacks', '[0, 1]'),
  'epsilon_255': Key('replaces `epsilon` where given', '1/255'),
  'step_size': Key('length of a step of PGD and CW', '[0, 1]'),
  'step_size_255': Key('replaces `step_size` where given', '1/255'),
  'norm': Key('norm of radius and steps', choices=balls.NORMS),
  'restarts': Key('random starts of PGD and CW', 'starts'),
  'batch_size': Key('images in a batch, over all devices', 'images'),
  'dtype': Key('precision of the network in evaluation', choices=DTYPES),
  'samples': Key(
    'evaluations that judge an image; above 1: a randomised network',
    'evaluations',
  ),
  'autoattack_version': Key('version of AutoAttack', choices=checks.VERSIONS),
  'autoattack_outputs': Key(
    'outputs that AutoAttack attacks; (): all', choices=OUTPUTS
  ),
  'autoattack_images': Key(
    'AutoAttack sees the first images only; 0: all', 'images'
  ),
  'autoattack_n_iter': Key('iterations of APGD and FAB', 'iterations'),
  'autoattack_queries': Key('queries of Square', 'queries'),
  'autoattack_targets': Key('target classes of APGD-T and FAB-T', 'classes'),
  'autoattack_target_order': Key(
    "order of APGD-T's target classes", choices=targets.ORDERS
  ),
  'autoattack_screening': Key(
    'precision of the network that AutoAttack sees; float32 judges',
    choices=SCREENINGS,
  ),
  'sweep_epsilons_255': Key('radii of the sweep; (): none', '1/255'),
  'sweep_steps': Key('PGD steps at each radius of the sweep', 'steps'),
  'loss_steps': Key("steps after which PGD's loss is reported", 'steps'),
  'audit': Key('whether the aggregated output is audited'),
  'audit_steps': Key('steps of each attack of the audit', 'steps'),
  'audit_queries': Key('queries of Square in the audit; 0: none', 'queries'),
  'audit_mora': Key('whether the audit runs MORA, which re-weighs the heads'),
  'audit_malt': Key("whether the audit runs APGD-T in MALT's order of targets"),
  'export_images': Key('whether adversarial images are written as npz'),
}
KEYS = {
  'name': Key('name of the run, and of its default workdir'),
  'seed': Key('seed of all random numbers'),
  'stages': Key(
    'stages to train: the first one, two or all three, in order; or `joint` '
    'alone',
    choices=tuple(all_roles()),
  ),
  **{f'dataset.{key}': value for key, value in _DATASET_KEYS.items()},
  **{f'model.{key}': value for key, value in _MODEL_KEYS.items()},
  **{f'{STAGE}.{key}': value for key, value in _STAGE_KEYS.items()},
  'validation.every_epochs': Key('epochs between two validations', 'epochs'),
  'validation.attack': Key(
    'attack that selects the best checkpoint', choices=_FAST_ATTACKS
  ),
  'checkpoint.every_steps': Key('steps between two checkpoints', 'steps'),
  'checkpoint.keep': Key('number of latest checkpoints to keep', 'checkpoints'),
  'log_every_steps': Key('steps between two records of metrics', 'steps'),
  'debug_nans': Key('whether to stop at the first NaN and name it; slow'),
  'compare_with_natural': Key(
    'whether the network is trained without adversarial images too'
  ),
  **{f'evaluation.{key}': value for key, value in _EVALUATION_KEYS.items()},
}
# Parts that a config names, and where it names them.
PARTS = {
  f'{STAGE}.loss': LOSSES,
  f'{STAGE}.attack': TRAINING_ATTACKS,
  f'{STAGE}.schedule': SCHEDULES,
  f'{STAGE}.optimizer': OPTIMIZERS,
  f'{STAGE}.weight_perturbation': WEIGHT_PERTURBATIONS,
  'dataset': DATASETS,
  'dataset.augmentations': AUGMENTATIONS,
  'model.backbone': BACKBONES,
  'model.aggregator': AGGREGATORS,
  'evaluation.attacks': EVALUATION_ATTACKS,
}
_ENTRY = re.compile(r'^  (\w+): (.*?)(?=^  \w+: |^\S|\Z)', re.M | re.S)


class Option(NamedTuple):
  """One option of a registered part, as its factory declares it.

  Attributes:
    name: key in the config.
    type: annotation of the argument; '' where it has none.
    default: as text; 'required' without one.
    meaning: what the docstring says.
  """

  name: str
  type: str
  default: str
  meaning: str


def flags(config: ConfigDict, prefix: str = '') -> Iterator[tuple[str, Any]]:
  """Yields (dotted key, value) of everything that a flag may override."""
  for name in config:
    value = config.get(name)
    if isinstance(value, ConfigDict):
      yield from flags(value, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}', value


def describe(key: str) -> Key | None:
  """Returns what is known of a dotted key; None for an option of a part."""
  stage, _, rest = key.partition('.')
  return KEYS.get(key) or (
    KEYS.get(f'{STAGE}.{rest}') if stage in all_roles() else None
  )


def help_text(config: ConfigDict) -> str:
  """Returns a line for each key of a config: flag, value and meaning."""
  lines = []
  for key, value in flags(config):
    known = describe(key)
    meaning = '' if known is None else _with_unit(known)
    flag = f'  --config.{key}={_flag_value(value)}'
    lines.append(f'{flag:<58} {meaning}'.rstrip())
  return '\n'.join(lines)


def _flag_value(value: Any) -> str:
  """Formats a value as one writes it in a shell."""
  text = str(value).replace(', ', ',').replace("'", '"')
  return f"'{text}'" if isinstance(value, tuple) else text


def _with_unit(key: Key) -> str:
  unit = f' ({key.unit})' if key.unit else ''
  return key.meaning.replace('`', '') + unit


def summary(factory: Any) -> str:
  """Returns the first sentence of a factory's docstring."""
  return (inspect.getdoc(factory) or '').partition('\n')[0]


def options(registry: Registry, name: str) -> list[Option]:
  """Returns the options of a registered part, without the shared ones."""
  factory = registry[name]
  meanings = {
    argument: ' '.join(text.split())
    for argument, text in _ENTRY.findall(inspect.getdoc(factory) or '')
  }
  in_name = re.findall(r'<(\w+)>', name)
  return [
    Option(
      name=argument,
      type=_type_name(parameter.annotation),
      default='required'
      if parameter.default is parameter.empty
      else repr(parameter.default),
      meaning=meanings.get(argument, ''),
    )
    for argument, parameter in inspect.signature(factory).parameters.items()
    if argument not in registry.shared and argument not in in_name
  ]


def _type_name(annotation: Any) -> str:
  if annotation is inspect.Parameter.empty:
    return ''
  return (
    annotation
    if isinstance(annotation, str)
    else (getattr(annotation, '__name__', str(annotation)))
  )
