"""The networks in docs/models: both forms, and the row that they are of.

The row needs CIFAR-10: a folder with `cifar10.npz`, named by $CIFAR10_DIR.
"""

import os

import jax
import numpy as np
import pytest

import dhat_jax
from dhat_jax import convert, divergences
from dhat_jax.pytorch import state_dicts
from dhat_jax.runtime import documents
from experiments import cifar10, packing
from tests.docs.pages import DOCS
from tests.helpers.tiny import flat

FOLDER = DOCS / 'models' / 'cifar10_wrn10_1'
ROW = 'DH-AT, mean', 0  # variant and seed, in the table of CIFAR-10
OUTPUT = 'mean'
IMAGES = 200


def test_pytorch_has_the_same_weights():
  pytest.importorskip('torch')
  run = dhat_jax.load_run(str(FOLDER / 'run'))
  path = str(FOLDER / 'model.pt')
  state_dict = state_dicts.read_state_dict(path)
  theirs = flat(convert.from_torch(state_dict, run.net))
  ours = flat(run.variables)
  assert ours.keys() == theirs.keys()
  for name, array in ours.items():
    np.testing.assert_array_equal(theirs[name], array)


def test_it_is_small():
  paths = [path for path in FOLDER.rglob('*') if path.is_file()]
  assert sum(path.stat().st_size for path in paths) < 2_000_000


@pytest.fixture(scope='module')
def images():
  """The first test images in the order of the experiment, and labels."""
  folder = os.environ.get('CIFAR10_DIR')
  if not folder:
    pytest.skip('needs CIFAR-10: CIFAR10_DIR=folder with cifar10.npz')
  split = cifar10.ordered(cifar10.load(folder).test)
  return split.images[:IMAGES] / np.float32(255), split.labels[:IMAGES]


def test_its_row_of_the_table(images):
  """Clean images one by one; as many under PGD-40, up to its random starts."""
  images, labels = images
  table = DOCS / 'results' / 'experiment_cifar10_cpu.json'
  (row,) = (
    row
    for row in documents.read(str(table))['rows']
    if (row['variant'], row['seed']) == ROW
  )
  run = dhat_jax.load_run(str(FOLDER / 'run'))

  def logits_fn(images):
    return run.net.apply(run.variables, images).select(OUTPUT)

  attack = dhat_jax.make_attack(epsilon=8 / 255, step_size=0.003, steps=40)
  adversarial = jax.jit(
    lambda images: attack(
      lambda x: divergences.cross_entropy(logits_fn(x), labels),
      jax.random.key(0),
      images,
    )
  )(images)
  expected = {
    name: packing.unpack(row['images'][name])[:IMAGES]
    for name in ('clean', 'pgd_40')
  }
  right = run.predict(images, OUTPUT).argmax(axis=1) == labels
  assert (right != expected['clean']).sum() <= 1
  robust = run.predict(adversarial, OUTPUT).argmax(axis=1) == labels
  assert (robust & right).sum() == pytest.approx(
    expected['pgd_40'].sum(), abs=3
  )
