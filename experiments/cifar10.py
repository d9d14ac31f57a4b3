"""CIFAR-10: TRADES, a wider single head, DH-AT with four aggregators.

    python -m experiments.cifar10 --scale=cpu --data_dir=cifar10
    python -m experiments.cifar10 --scale=cpu --data_dir=cifar10 --autoattack

`--data_dir` holds `cifar10.npz` with the arrays of Keras, or
`train/<class>/<image>` and `test/<class>/<image>` without loss, or a prepared
TFDS folder: all give the same arrays, which are compared with the original's
digests. On a CPU 5,000 images train, and 1,000 more are held out; on a GPU
49,000 and 1,000.

The first call trains, and attacks with PGD. With `--autoattack`, the standard
AutoAttack and the audit follow. Called again it continues; several calls at the
same time share the runs, and the table holds what is done.

The recipe is short: one cycle of the learning rate with Nesterov's momentum,
averaged weights, two steps of the training attack on a CPU. The wide head has
as many parameters as DH-AT, and its training as many multiply-adds.

What `cpu` costs: all rows of a seed need 4.4e5 GMAC, about 24,000 seconds of
one core (130 images per second with WRN-10-1). So the first seed takes 3.4
hours of two idle cores. A single head and DH-AT with `pairwise` and `mean` take
1.5 hours for each further seed; they come before the other rows of these seeds.
"""

import argparse
import copy
import dataclasses
import hashlib
import os
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np

from dhat_jax import from_config
from dhat_jax import main as command
from dhat_jax.configs import cifar10, recipes
from dhat_jax.datasets.base import Dataset, Split
from dhat_jax.run import train_and_evaluate
from dhat_jax.runtime import cli, documents, files, lock
from experiments import runs
from experiments.digits import changed
from experiments.runs import Entry, Run

# Of the original images and labels, in the order of `ordered`.
DIGESTS = {
  'train': 'aa27740eec250dde4464f9ac76f16efc',
  'test': 'eab61a52d839628bce38d65bfa8ccde6',
}
VALIDATION_SIZE = 1000
STAGES = ('main_head', 'second_head', 'aggregator')
EVALUATION = {
  'attacks': ('clean', 'pgd_40'),
  'epsilon_255': 8.0,
  'sweep_epsilons_255': (),
  'loss_steps': (),
  'audit': False,
  'audit_queries': 0,  # AutoAttack has its own Square
}


@dataclasses.dataclass(frozen=True)
class Scale:
  """How large the experiment is.

  Attributes:
    backbone: of the single head and of DH-AT.
    wide: a single head with as many parameters as DH-AT.
    epochs: of the three stages.
    wide_epochs: so many that its training needs as many multiply-adds.
    attack: values of each stage's attack.
    batch_size: of the training.
    learning_rate: the peak of the heads' cycle.
    train_images: the first of `ordered`, with those held out; 0: all.
    test_images: the first of `ordered`; 0: all.
    seeds: which.
    every_steps: steps between checkpoints.
    evaluation: values of `config.evaluation`.
    last_attack: what `--autoattack` adds to it, beside the audit.
    attacked_images: how many of the test images AutoAttack sees; 0: all.
    digests: of the data; None: any images.
    overrides: {dotted key: value} of the configs, before all others.
  """

  backbone: str
  wide: str
  epochs: tuple[float, float, float]
  wide_epochs: float
  attack: Mapping[str, Any]
  batch_size: int = 128
  learning_rate: float = 0.2
  train_images: int = 0
  test_images: int = 0
  seeds: tuple[int, ...] = (0,)
  every_steps: int = 2000
  evaluation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  last_attack: str = 'autoattack'
  attacked_images: int = 0
  digests: Mapping[str, str] | None = dataclasses.field(
    default_factory=lambda: DIGESTS
  )
  overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)


SCALES = {
  'cpu': Scale(
    backbone='wrn10_1',
    wide='wrn10_1.53',
    epochs=(15.0, 12.0, 5.0),
    wide_epochs=13.5,
    attack={'steps': 2, 'step_size_255': 5.0},
    batch_size=64,
    learning_rate=0.1,
    train_images=6_000,
    test_images=1000,
    attacked_images=300,
    seeds=(0, 1, 2),
    every_steps=50,
    evaluation={'batch_size': 250},
  ),
  'gpu': Scale(
    backbone='wrn28_4',
    wide='wrn28_5.6',
    epochs=(30.0, 24.0, 10.0),
    wide_epochs=34.0,
    attack={'steps': 10, 'step_size_255': 2.0},
    seeds=(0, 1),
    evaluation={'batch_size': 1000},
  ),
}


def load(data_dir: str) -> Dataset:
  """Loads images with the project's own loaders.

  Args:
    data_dir: as `--data_dir`.
  """
  config = cifar10.get_config()
  path = os.path.join(data_dir, 'cifar10.npz')
  if os.path.exists(path):
    loader, data_dir = 'npz', path
  elif os.path.isdir(os.path.join(data_dir, 'train')):
    loader = 'image_folder'
  else:
    loader = 'tfds'
  config.dataset.update(loader=loader, data_dir=data_dir)
  return from_config.load_dataset(config)


def ordered(split: Split) -> Split:
  """Returns a split in the order of its images' hashes.

  TFDS, folders and the original batches have different orders. This one is the
  same for all, and as good as random.
  """
  hashes = [
    hashlib.blake2b(image.tobytes() + bytes([label])).digest()
    for image, label in zip(split.images, split.labels, strict=True)
  ]
  order = np.array(sorted(range(len(hashes)), key=hashes.__getitem__))
  return Split(split.images[order], split.labels[order])


def write_images(data_dir: str, path: str, scale: Scale) -> None:
  """Writes the images of the experiment as an npz file, unless it is there.

  Raises:
    ValueError: images that are not the scale's.
  """
  if os.path.exists(path):
    return
  dataset = load(data_dir)
  train, test = ordered(dataset.train), ordered(dataset.test)
  got = {'train': train.digest(), 'test': test.digest()}
  if scale.digests is not None and got != dict(scale.digests):
    raise ValueError(
      f'--data_dir: {dataset.source} has digests {got}, expected those of the '
      f'original CIFAR-10, {dict(scale.digests)}'
    )
  first = slice(scale.train_images or None)
  first_test = slice(scale.test_images or None)
  arrays = {
    'x_train': train.images[first],
    'y_train': train.labels[first],
    'x_test': test.images[first_test],
    'y_test': test.labels[first_test],
    'class_names': np.array(dataset.class_names),
  }
  files.write_npz(path, arrays)


def make_config(
  scale: Scale, backbone: str, seed: int, path: str
) -> ml_collections.ConfigDict:
  """Returns configs/cifar10.py at a scale, with the short recipe.

  Args:
    scale: of the experiment.
    backbone: of the network.
    seed: of the run.
    path: of the images.
  """
  config = cifar10.get_config()  # TRADES
  config.model.backbone = backbone
  config.name = f'cifar10_{backbone}'
  config.seed = seed
  config.dataset.update(
    loader='npz', data_dir=path, validation_size=VALIDATION_SIZE
  )
  for name, epochs in zip(STAGES, scale.epochs, strict=True):
    spec = config[name]
    with config.unlocked():
      spec.schedule.update(name='one_cycle', pct_start=0.3)
    if name != 'aggregator':
      spec.schedule.learning_rate = scale.learning_rate
    spec.epochs = epochs
    spec.batch_size = scale.batch_size
    spec.optimizer.nesterov = True
    spec.attack.update(epsilon_255=8.0, **scale.attack)
    spec.ema_decay = 0.995
    spec.ema.warm_up = True
    spec.keep = 'last'
  config.validation.every_epochs = 5
  config.checkpoint.every_steps = scale.every_steps
  config.evaluation.update(
    **EVALUATION, autoattack_outputs=('main', 'mean', 'aggregated')
  )
  config.evaluation.update(**scale.evaluation)
  return changed(
    config, **{k.replace('.', '__'): v for k, v in scale.overrides.items()}
  )


def of_seed(scale: Scale, seed: int, path: str) -> list[Entry]:
  """Returns the rows of a seed.

  Args:
    scale: of the experiment.
    seed: of the runs.
    path: of the images.
  """
  config = make_config(scale, scale.backbone, seed, path)
  dual = Run(f'{seed}/dual', config)
  wide = changed(
    make_config(scale, scale.wide, seed, path),
    stages=('main_head',),
    main_head__epochs=scale.wide_epochs,
  )
  wide = Run(f'{seed}/wide', wide)
  classwise = changed(config, model__aggregator='classwise')
  classwise = Run(f'{seed}/classwise', classwise, dual, STAGES[:2])
  mixed = recipes.mixed(changed(config))
  mixed.evaluation.audit = False  # `--autoattack` makes it
  mixed = Run(f'{seed}/mixed', mixed, dual, STAGES[:1])
  rate = changed(config, aggregator__schedule__learning_rate=0.1)
  rate = Run(f'{seed}/published_rate', rate, dual, STAGES[:2])
  rows = (
    ('single head', dual, 'main'),
    ('single head, wide', wide, 'main'),
    ('DH-AT, pairwise', dual, 'aggregated'),
    ('DH-AT, mean', dual, 'mean'),
    ('DH-AT, classwise', classwise, 'aggregated'),
    ('DH-AT, mixed', mixed, 'aggregated'),
    ('DH-AT, pairwise, rate .1', rate, 'aggregated'),
  )
  return [
    Entry('trades', name, seed, run, output) for name, run, output in rows
  ]


def in_order(scale: Scale, seeds: tuple[int, ...], path: str) -> list[Entry]:
  """Returns all rows as they are made: a seed, then each run of the others."""
  first, *others = dict.fromkeys((*scale.seeds, *seeds))
  entries = of_seed(scale, first, path)
  later = [entry for seed in others for entry in of_seed(scale, seed, path)]
  kinds = ('dual', 'wide', 'classwise', 'mixed', 'published_rate')
  later.sort(key=lambda e: kinds.index(os.path.basename(e.run.name)))
  return entries + later


def is_attacked(entry: Entry, root: str, name: str) -> bool:
  """Returns whether an attack's results of a row are there."""
  results = documents.read(os.path.join(root, entry.run.name, 'results.json'))
  names = results['accuracy'][entry.output]
  return any(got.partition('(')[0] == name for got in names)


def attack(
  entries: list[Entry], root: str, name: str, *, images: int = 0
) -> None:
  """Evaluates the trained runs of some rows again: one more attack, the audit.

  Args:
    entries: the rows.
    root: the experiment's workdir.
    name: of the attack.
    images: how many AutoAttack sees; 0: all.
  """
  for entry in entries:
    directory = os.path.join(root, entry.run.name)
    trained = os.path.exists(os.path.join(directory, 'results.json'))
    if not trained or is_attacked(entry, root, name):
      continue
    config = copy.deepcopy(entry.run.config)
    config.evaluation.attacks += (name,)
    config.evaluation.audit = True
    config.evaluation.autoattack_images = images
    config.evaluation.autoattack_outputs = tuple(
      other.output for other in entries if other.run.name == entry.run.name
    )
    try:
      train_and_evaluate(config, directory, mode='evaluate')
    except lock.InUseError as error:
      print(f'left to another process: {error}', flush=True)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
  """Returns the flags; those of the command line by default."""
  parser = runs.flags(__doc__)
  parser.add_argument('--scale', choices=tuple(SCALES), default='cpu')
  parser.add_argument(
    '--data_dir', required=True, type=files.user_path, help='the images'
  )
  parser.add_argument(
    '--autoattack', action='store_true', help='AutoAttack and the audit too'
  )
  options = parser.parse_args(arguments)
  name = f'cifar10_{options.scale}'
  options.seeds = options.seeds or SCALES[options.scale].seeds
  options.workdir = options.workdir or f'runs/experiments/{name}'
  options.json = options.json or f'docs/results/experiment_{name}.json'
  return options


def perform(options: argparse.Namespace, scale: Scale) -> None:
  """Makes what is missing of the experiment.

  Args:
    options: of `parse`.
    scale: how large it is.
  """
  path = os.path.join(options.workdir, 'images.npz')
  with command.session():
    write_images(options.data_dir, path, scale)
    entries = in_order(scale, options.seeds, path)
    config = entries[0].run.config
    with np.load(path) as arrays:
      num_train = len(arrays['y_train']) - config.dataset.validation_size
    table = {
      'image_shape': from_config.image_shape(config),
      'num_train': num_train,
      'caption': {
        'experiment': 'cifar10',
        'baseline': 'single head',
        'data': 'CIFAR-10',
      },
    }
    runs.make(entries, options, **table)
    if options.autoattack:
      wanted = [e for e in entries if e.seed in options.seeds]
      images = scale.attacked_images
      attack(wanted, options.workdir, scale.last_attack, images=images)
      runs.make(entries, options, **table)


def main() -> None:
  """Runs the experiment."""
  options = parse()
  perform(options, SCALES[options.scale])


if __name__ == '__main__':
  with cli.mistakes_in_one_line():
    main()
