"""CIFAR-10's images: TRADES and DH-AT(TRADES), with a wider single network.

    python -m experiments.cifar10_jpeg --scale=cpu --data_dir=cifar10_jpeg
    python -m experiments.cifar10_jpeg --scale=gpu --data_dir=cifar10_jpeg

`--data_dir` holds `train/<class>/<image>` and `test/<class>/<image>`. The
published schedule, compressed. `cpu`: WRN-10-2, 1,000 training and 100 test
images of each class, hours. `gpu`: WRN-28-4, all images, two seeds. Called
again it continues; the table holds what is done.
"""

import argparse
import dataclasses
import os

import ml_collections

from dhat_jax.configs import cifar10
from dhat_jax.runtime import cli, files
from experiments import runs
from experiments.digits import changed
from experiments.runs import Entry, Run


@dataclasses.dataclass(frozen=True)
class Scale:
  """How large the experiment is.

  Attributes:
    backbone: of the single head and of DH-AT.
    wide: a single head with as many parameters as DH-AT.
    train_per_class: images of each class that train; 0: all.
    test_per_class: images of each class that are attacked; 0: all.
    validation_size: held out of them, to choose a stage's checkpoint; 0: the
      last one is taken.
    compression: the stages' epochs, as a share of the published ones.
    batch_size: of all stages.
    seeds: which.
    evaluation: values of `config.evaluation`.
  """

  backbone: str
  wide: str
  train_per_class: int
  test_per_class: int
  validation_size: int
  compression: float
  batch_size: int
  seeds: tuple[int, ...]
  evaluation: dict


SCALES = {
  'cpu': Scale(
    backbone='wrn10_2',
    wide='wrn10_2.88',
    train_per_class=1000,
    test_per_class=100,
    validation_size=0,
    compression=0.02,
    batch_size=64,
    seeds=(0,),
    evaluation={
      'attacks': ('clean', 'pgd_40', 'autoattack'),
      'autoattack_n_iter': 20,
      'autoattack_targets': 3,
      'autoattack_queries': 200,
      'autoattack_images': 500,
      'audit_steps': 10,
      'audit_queries': 0,
      'batch_size': 250,
    },
  ),
  'gpu': Scale(
    backbone='wrn28_4',
    wide='wrn28_5.6',
    train_per_class=0,
    test_per_class=0,
    validation_size=1000,
    compression=0.3,
    batch_size=128,
    seeds=(0, 1),
    evaluation={
      'attacks': ('clean', 'pgd_40', 'cw_40', 'autoattack'),
      'batch_size': 1000,
    },
  ),
}
NUM_IMAGES = 50_000


def subset(folder: str, root: str, per_class: dict[str, int]) -> str:
  """Links the first images of each class; returns the new folder.

  Args:
    folder: the images.
    root: where the new folder goes.
    per_class: {split: number of images of each class; 0: all}.

  Raises:
    ValueError: a folder that holds something else.
  """
  for split in per_class:
    if not os.path.isdir(os.path.join(folder, split)):
      raise ValueError(
        f'--data_dir: got {folder}, expected a folder that holds '
        'train/<class>/<image> and test/<class>/<image>'
      )
  if not any(per_class.values()):
    return folder
  name = '_'.join(f'{split}{count}' for split, count in per_class.items())
  target = os.path.join(root, f'images_{name}')
  for split, count in per_class.items():
    for label in sorted(os.listdir(os.path.join(folder, split))):
      source = os.path.abspath(os.path.join(folder, split, label))
      links = os.path.join(target, split, label)
      os.makedirs(links, exist_ok=True)
      for image in sorted(os.listdir(source))[: count or None]:
        if not os.path.lexists(os.path.join(links, image)):
          os.symlink(os.path.join(source, image), os.path.join(links, image))
  return target


def compress(spec: ml_collections.ConfigDict, factor: float) -> None:
  """Shortens a stage's schedule: epochs, and where the rate drops."""
  spec.epochs *= factor
  spec.schedule.drop_epochs = tuple(
    1 + (epoch - 1) * factor for epoch in spec.schedule.drop_epochs
  )


def make_config(
  scale: Scale, backbone: str, seed: int, data_dir: str
) -> ml_collections.ConfigDict:
  """Returns configs/cifar10.py at a scale."""
  config = cifar10.get_config(f'trades_{backbone}')
  config.name = f'cifar10_jpeg_{backbone}'
  config.seed = seed
  config.dataset.update(
    name='cifar10_jpeg',
    loader='image_folder',
    data_dir=data_dir,
    validation_size=scale.validation_size,
  )
  for stage in config.stages:
    with config.ignore_type():
      compress(config[stage], scale.compression)
    config[stage].batch_size = scale.batch_size
    config[stage].keep = 'best' if scale.validation_size else 'last'
  config.checkpoint.every_steps = 50 if scale.compression < 0.1 else 2000
  config.evaluation.update(
    sweep_epsilons_255=(),
    loss_steps=(),
    autoattack_outputs=('main', 'mean', 'aggregated'),
    **scale.evaluation,
  )
  return config


def of_seed(scale: Scale, seed: int, data_dir: str) -> list[Entry]:
  """Returns the rows of a seed."""
  dual = Run(f'{seed}/dual', make_config(scale, scale.backbone, seed, data_dir))
  wide = changed(
    make_config(scale, scale.wide, seed, data_dir), stages=('main_head',)
  )
  wide = Run(f'{seed}/wide', wide)
  return [
    Entry('trades', 'single head', seed, dual, 'main'),
    Entry('trades', 'single head, wide', seed, wide, 'main'),
    Entry('trades', 'DH-AT, pairwise', seed, dual, 'aggregated'),
    Entry('trades', 'DH-AT, mean', seed, dual, 'mean'),
  ]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
  """Returns the flags; those of the command line by default."""
  parser = runs.flags(__doc__)
  parser.add_argument('--scale', choices=tuple(SCALES), default='cpu')
  parser.add_argument(
    '--data_dir', required=True, type=files.user_path, help='the images'
  )
  options = parser.parse_args(arguments)
  scale = SCALES[options.scale]
  name = f'cifar10_jpeg_{options.scale}'
  options.seeds = options.seeds or scale.seeds
  options.workdir = options.workdir or f'runs/experiments/{name}'
  options.json = options.json or f'docs/results/experiment_{name}.json'
  return options


def main() -> None:
  """Runs the experiment."""
  options = parse()
  scale = SCALES[options.scale]
  data_dir = subset(
    options.data_dir,
    options.workdir,
    {'train': scale.train_per_class, 'test': scale.test_per_class},
  )
  seeds = dict.fromkeys((*scale.seeds, *options.seeds))
  num_train = 10 * scale.train_per_class or NUM_IMAGES
  runs.main(
    [entry for seed in seeds for entry in of_seed(scale, seed, data_dir)],
    options,
    image_shape=(32, 32, 3),
    num_train=num_train - scale.validation_size,
    caption={
      'experiment': 'cifar10_jpeg',
      'baseline': 'single head',
      'data': 'CIFAR-10 (JPEG)',
    },
  )


if __name__ == '__main__':
  with cli.mistakes_in_one_line():
    main()
