"""CIFAR-10 in minutes: DH-AT (TRADES), its main head alone, its heads' mean.

One run gives all three. The published schedule is compressed; it ends with the
learning rate decayed.
"""

import argparse
import contextlib
import copy
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
import numpy as np

from dhat_jax import from_config
from dhat_jax import main as command
from dhat_jax.datasets.base import Dataset, Split
from dhat_jax.run import train_and_evaluate
from dhat_jax.runtime import config_file, devices, documents, files
from experiments import runs
from experiments.runs import Entry, Run

EXPERIMENT = 'accelerator'
PUBLISHED_EPOCHS = 100  # of the main head
# What saves the last steps and ends the process takes this long.
SAVING_SECONDS = 20
# Of the evaluation: AutoAttack fills up the last batch of what still resists.
BATCH_SIZE = 128
# Outputs that AutoAttack is made against: one more each time.
LEVELS = (
  (),
  ('aggregated',),
  ('main', 'aggregated'),
  ('main', 'mean', 'aggregated'),
)


def _first(split: Split, count: int) -> Split:
  """Returns so many images in a fixed random order; 0: all of them."""
  order = np.random.default_rng(0).permutation(len(split.labels))
  chosen = np.sort(order[: count or None])
  return Split(split.images[chosen], split.labels[chosen])


def _load(data_dir: str) -> Dataset:
  """Loads images with the project's own loaders.

  Args:
    data_dir: a folder with cifar10.npz, or with train/<class>/<image> and
      test/<class>/<image>.
  """
  config = config_file.read('configs/cifar10.py')
  path = os.path.join(data_dir, 'cifar10.npz')
  whole = os.path.exists(path)
  config.dataset.update(
    loader='npz' if whole else 'image_folder',
    data_dir=path if whole else data_dir,
    validation_size=0,
  )
  return from_config.load_dataset(config)


def _source(data_dir: str, counts: Mapping[str, int]) -> dict[str, Any]:
  """Returns what chosen images depend on, as JSON gives it back."""
  path = os.path.abspath(os.path.join(data_dir, 'cifar10.npz'))
  if os.path.exists(path):
    source, paths = path, [path]
  else:
    source = os.path.abspath(data_dir)
    paths = [
      os.path.join(folder, name)
      for folder, _, names in os.walk(source)
      for name in names
    ]
  states = [os.stat(path) for path in paths]
  return {
    'source': source,
    'files': len(states),
    'bytes': sum(state.st_size for state in states),
    'newest': max((state.st_mtime_ns for state in states), default=0),
    **counts,
  }


def _check_source(path: str, wanted: Mapping[str, Any]) -> None:
  """Raises ValueError if stored images are of another source or number."""
  stored = files.read_json(path)
  for name, expected in wanted.items():
    got = stored.get(name) if isinstance(stored, dict) else None
    if got != expected:
      raise ValueError(
        f'--workdir: its images have {name} {got!r}, this command has '
        f'{expected!r}; give another --workdir'
      )


def write_images(
  data_dir: str, path: str, *, train_images: int, test_images: int
) -> int:
  """Writes the images of this experiment; returns how many train.

  Args:
    data_dir: of `--data_dir`.
    path: npz file, as the loader 'npz' reads it; left as it is if it is there.
      Beside it is a JSON of where the images are from.
    train_images: how many; 0: all.
    test_images: the same.

  Raises:
    ValueError: no images there; the file has others.
  """
  counts = {'train_images': train_images, 'test_images': test_images}
  source, described = _source(data_dir, counts), f'{path}.json'
  if os.path.exists(path) and os.path.exists(described):
    _check_source(described, source)
  else:
    dataset = _load(data_dir)
    train = _first(dataset.train, train_images)
    test = _first(dataset.test, test_images)
    arrays = {
      'x_train': train.images,
      'y_train': train.labels,
      'x_test': test.images,
      'y_test': test.labels,
      'class_names': np.array(dataset.class_names),
    }
    files.write_npz(path, arrays)
    files.write_json(described, source)
  with np.load(path) as arrays:
    return len(arrays['y_train'])


def compress(spec: ml_collections.ConfigDict, factor: float) -> None:
  """Shortens a stage's schedule: epochs, and where the rate drops."""
  spec.epochs *= factor
  spec.schedule.drop_epochs = tuple(
    1 + (epoch - 1) * factor for epoch in spec.schedule.drop_epochs
  )


def make_config(
  options: argparse.Namespace, path: str
) -> ml_collections.ConfigDict:
  """Returns the run's config.

  Args:
    options: of the command.
    path: of the images.
  """
  config = config_file.read(options.config)
  config.name = 'accelerator_train'
  config.dataset.update(
    name='cifar10', loader='npz', data_dir=path, validation_size=0
  )
  config.model.dtype = options.dtype
  for stage in config.stages:
    with config.ignore_type():
      compress(config[stage], options.epochs / PUBLISHED_EPOCHS)
    config[stage].batch_size = options.batch_size
    config[stage].keep = 'last'
  config.checkpoint.every_steps = 2000
  config.compare_with_natural = False
  config.evaluation.update(
    attacks=('clean', f'pgd_{options.pgd_steps}'),
    sweep_epsilons_255=(),
    loss_steps=(),
    audit=False,
    batch_size=BATCH_SIZE,
    autoattack_images=options.autoattack_images,
    autoattack_n_iter=options.n_iter,
    autoattack_queries=options.n_queries,
  )
  return config


def entries(config: ml_collections.ConfigDict) -> list[Entry]:
  """Returns the rows of the table: three outputs of one run."""
  run = Run('dual', config)
  seed = config.seed
  return [
    Entry('trades', 'single head', seed, run, 'main'),
    Entry('trades', 'DH-AT, pairwise', seed, run, 'aggregated'),
    Entry('trades', 'DH-AT, mean', seed, run, 'mean'),
  ]


@contextlib.contextmanager
def stopped_after(seconds: float) -> Iterator[None]:
  """Asks this process to save and stop, unless its body ends before."""
  timer = threading.Timer(
    max(0.0, seconds), os.kill, (os.getpid(), signal.SIGTERM)
  )
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _attack(
  config: ml_collections.ConfigDict, outputs: tuple[str, ...], directory: str
) -> None:
  """Evaluates again, with AutoAttack on some outputs."""
  config = copy.deepcopy(config)
  config.evaluation.attacks += ('autoattack',)
  config.evaluation.autoattack_outputs = outputs
  train_and_evaluate(config, directory, mode='evaluate')


def _level(directory: str) -> int:
  """Returns how many of `LEVELS` are in the results."""
  path = os.path.join(directory, 'results.json')
  if not os.path.exists(path):
    return 0
  accuracy = documents.read(path)['accuracy']
  attacked = {
    output
    for output, by_attack in accuracy.items()
    if any(name.startswith('autoattack') for name in by_attack)
  }
  done = [set(outputs) <= attacked for outputs in LEVELS]
  return done.index(False) if False in done else len(done)


def check_out(path: str) -> None:
  """Raises ValueError if the JSON is there, and another experiment's."""
  if not os.path.exists(path):
    return
  document = documents.read(path)
  got = document.get('experiment', document.get('what'))
  if document['kind'] != 'experiment' or got != EXPERIMENT:
    raise ValueError(
      f'--out: {path} holds {got!r} of kind {document["kind"]!r}, expected '
      f"{EXPERIMENT!r} of kind 'experiment'; give another --out"
    )


def run(options: argparse.Namespace) -> bool:
  """Trains and attacks; the table is written again after each attack.

  Args:
    options: of the command.

  Returns:
    Whether it was started; an error ends the process with one line.
  """
  ends = time.monotonic() + options.seconds - SAVING_SECONDS
  check_out(options.out)
  with command.session():
    devices.check_batch_size('--batch_size', options.batch_size)
    path = os.path.join(options.workdir, 'images.npz')
    num_train = None
    if ends > time.monotonic():
      num_train = write_images(
        options.data_dir,
        path,
        train_images=options.train_images,
        test_images=options.test_images,
      )
    left = ends - time.monotonic()
    if left <= 0:
      print(
        f'not started: --seconds={options.seconds:g} leave no time, of which '
        f'{SAVING_SECONDS} s are for saving',
        flush=True,
      )
      return False
    with stopped_after(left):
      _train(options, path, num_train)
  return True


def _train(options: argparse.Namespace, path: str, num_train: int) -> None:
  """Trains and attacks with the images of a file."""
  config = make_config(options, path)
  table = argparse.Namespace(
    seeds=(config.seed,), workdir=options.workdir, json=options.out
  )
  directory = os.path.join(options.workdir, 'dual')
  for number, outputs in enumerate(LEVELS):
    if number and number >= _level(directory):
      _attack(config, outputs, directory)
    runs.make(
      entries(config),
      table,
      image_shape=from_config.image_shape(config),
      num_train=num_train,
      caption={
        'experiment': EXPERIMENT,
        'baseline': 'single head',
        'data': f'CIFAR-10, {num_train} images',
      },
    )
