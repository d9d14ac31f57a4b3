"""Each recipe of docs/recipes.md does what it says, as it stands."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dhat_jax import from_config, main
from dhat_jax.attacks import balls, pgd
from dhat_jax.attacks.training import TRAINING_ATTACKS
from dhat_jax.benchmark import training
from dhat_jax.datasets import digits
from dhat_jax.datasets.base import Dataset, Split
from dhat_jax.evaluation import results
from dhat_jax.models import outputs
from dhat_jax.models.aggregator import AGGREGATORS
from dhat_jax.runtime import devices
from dhat_jax.training.stages import roles
from tests.docs.conftest import RECIPES
from tests.docs.pages import DOCS, commands
from tests.helpers import tiny


def read_config(name):
  """The config of a recipe's file, as the command line loads it."""
  return main.parse(['main', f'--config={name}']).config


def one_step(config, stage, *, backbone='tiny'):
  """Trains one step; returns the means of its metrics."""
  config.model.backbone = backbone
  config[stage].attack.steps = 2
  trainer = training.make_trainer(config, stage, 4)
  metrics = devices.to_host(trainer())
  return {name: float(s / count) for name, (s, count) in metrics.items()}


def test_every_recipe_has_a_command_and_a_test(folder):
  named = {
    word.partition('=')[2].partition(':')[0]
    for words in commands(DOCS / 'recipes.md')
    for word in words
    if word.startswith('--config=')
  }
  with open(__file__) as file:
    tests = file.read()
  programs = {
    words[1] for words in commands(DOCS / 'recipes.md') if len(words) == 2
  }
  for name in RECIPES:
    if name in programs:
      assert f"import_module('{name[:-3]}')" in tests
    else:
      assert name in named
      assert f"read_config('{name}')" in tests


def test_loss(folder):
  metrics = one_step(read_config('my_loss.py'), 'main_head')
  assert metrics['loss'] > 0.5 * metrics['distance'] > 0


def test_training_attack(folder):
  config = read_config('my_attack.py')
  attack = TRAINING_ATTACKS.make(
    'momentum', {'decay': 0.9}, epsilon=0.2, step_size=0.05, steps=10
  )
  images = np.full((2, 4, 4, 1), 0.5, np.float32)
  images_adv = attack(
    lambda x: x.sum(axis=(1, 2, 3)), jax.random.key(0), images
  )
  # Everything rises: up to the surface of the ball.
  np.testing.assert_allclose(images_adv, 0.7, atol=1e-6)
  assert one_step(config, 'second_head')['loss'] > 0


def test_evaluation_attack(folder):
  config = read_config('my_evaluation.py')
  from_config.check(config)  # beside all attacks of the audit
  config.evaluation.attacks = ('clean', 'momentum_3')
  config.evaluation.audit = False
  config.evaluation.update(sweep_epsilons_255=(), loss_steps=())
  config.model.backbone = 'tiny'
  net = from_config.make_network(config, outputs=('main',))
  split = Split(
    np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), np.uint8),
    np.arange(16, dtype=np.int32) % 10,
  )
  variables = tiny.random_variables(net, np.zeros((1, 8, 8, 1), np.float32))
  found = results.evaluate(
    from_config.make_evaluator(config, net),
    jax.tree.map(np.asarray, variables),
    split,
    from_config.make_plan(config, net),
    class_names=tuple('0123456789'),
    seed=0,
  )
  accuracy = found['accuracy']['main']
  assert list(accuracy) == ['clean', 'momentum_3']
  assert found['worst_case']['main'] == min(accuracy.values())


def test_backbone(folder):
  config = read_config('my_backbone.py')
  assert one_step(config, 'aggregator', backbone='convnet4')['loss'] > 0
  config.model.attach = 'block2'
  assert one_step(config, 'second_head', backbone='convnet4')['loss'] > 0
  recipe = importlib.import_module('my_backbone')
  assert recipe.convnet(width=4) == recipe.ConvNet(4)


def test_aggregator(folder):
  config = read_config('my_aggregator.py')
  assert one_step(config, 'aggregator')['loss'] > 0
  module = AGGREGATORS.make('gated')
  logits = np.random.default_rng(0).normal(size=(3, 2, 5)).astype(np.float32)
  variables = module.init(jax.random.key(0), logits, False)
  mean = module.apply(variables, logits, False)  # gates start at 0
  np.testing.assert_allclose(mean, logits.mean(axis=1), atol=1e-6)


def test_data_set(folder):
  rng = np.random.default_rng(0)
  arrays = {}
  for split, count in (('train', 6), ('test', 3)):
    shape = (count, 32, 32, 3)
    arrays[f'{split}_images'] = rng.integers(0, 256, shape, np.uint8)
    arrays[f'{split}_labels'] = np.arange(count) % 3
  np.savez('my_data.npz', **arrays)
  config = read_config('my_data.py')
  assert from_config.image_shape(config) == (32, 32, 3)
  dataset = from_config.load_dataset(config)
  np.testing.assert_array_equal(dataset.train.images, arrays['train_images'])
  assert dataset.test.labels.tolist() == [0, 1, 2]


def test_mixed_in_data(folder):
  config = read_config('my_mixture.py')
  config.model.backbone = 'tiny'
  config.main_head.batch_size = 8
  dataset = from_config.load_dataset(config)
  experiment = from_config.make_experiment(config, dataset)
  source = experiment.stages[0].source
  batch = source.batch(5)
  assert batch['images'].shape == (8, 8, 8, 1)
  assert batch['mask'].all()
  again = source.batch(5)
  np.testing.assert_array_equal(batch['images'], again['images'])
  assert source.steps_per_epoch == (1437 - 128) // 4
  # The stage counts in the source's epochs.
  stage = experiment.stages[0]
  assert stage.steps_per_epoch == source.steps_per_epoch
  assert stage.num_steps == config.main_head.epochs * source.steps_per_epoch


def test_schedule_and_optimiser(folder):
  config = read_config('my_optimizer.py')
  stage = from_config.make_stage(config, 'main_head', num_train=1309)
  peak = round(0.4 * stage.num_steps)
  rates = [float(stage.schedule(s)) for s in (0, peak, stage.num_steps)]
  np.testing.assert_allclose(rates, [0, 1e-3, 0], atol=1e-9)
  assert one_step(config, 'main_head')['loss'] > 0


def test_augmentation(folder):
  config = read_config('my_augmentation.py')
  change = from_config.make_augmentation(config)
  images = jnp.full((8, 8, 8, 1), 0.5)
  rngs = balls.per_example_keys(jax.random.key(0), 8)
  brightness = np.asarray(change(rngs, images))
  middle = brightness[:, 4, 4, 0]
  assert len(set(middle)) == 8
  assert (abs(middle - 0.5) <= 0.1).all()
  assert one_step(config, 'main_head')['loss'] > 0


def test_weight_perturbation(folder):
  config = read_config('my_perturbation.py')
  perturbed = one_step(config, 'main_head')
  with config.unlocked():
    config.main_head.weight_perturbation.rho = 0.0
  plain = one_step(config, 'main_head')
  assert perturbed['loss'] > plain['loss']


def test_third_output(folder):
  config = read_config('my_third_head.py')
  from_config.check(config)
  assert one_step(config, 'third_head')['loss'] > 0
  net = from_config.make_network(config)
  assert outputs.available(net.outputs) == (
    'main',
    'second',
    'mean',
    'aggregated',
    'third',
  )


def test_program_with_jit(folder):
  """On two devices as on one; frozen parts stay as an earlier stage left them.

  The sign of the attack's gradient amplifies the rounding of sums.
  """
  recipe = importlib.import_module('my_program')
  options = {
    'num_steps': 2,
    'batch_size': 8,
    'backbone': tiny.TinyBackbone(),
    'attack': pgd.make_attack(epsilon=0.2, step_size=0.1, steps=2),
  }
  split = digits.load().train
  on_two, losses = recipe.train(split, **options)
  on_one, expected = recipe.train(split, devices=jax.devices()[:1], **options)
  assert losses.keys() == expected.keys() == roles().keys()
  for name, loss in losses.items():
    assert loss == pytest.approx(expected[name], rel=1e-3)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-2, atol=1e-3),
    on_two,
    on_one,
  )
  assert {
    len(leaf.sharding.device_set) for leaf in jax.tree.leaves(on_two)
  } == {2}


def test_no_output_stays():
  assert 'third' not in outputs.OUTPUTS


def config_of_command(word):
  """The config of the one command of the page that has a word."""
  (words,) = [words for words in commands(DOCS / 'recipes.md') if word in words]
  return main.parse(words[2:]).config


def test_arrays(folder):
  config = config_of_command('--config.dataset.loader=npz')
  from_config.check(config)
  dataset = from_config.load_dataset(config)
  # Whichever wrote it last: the fixture, or the recipe itself.
  with np.load('my_arrays/train.npz') as arrays:
    np.testing.assert_array_equal(dataset.train.images, arrays['images'])
    assert dataset.train.labels.tolist() == arrays['labels'].tolist()
  assert config.name == 'my_arrays'


def test_generated_images(folder):
  config = config_of_command('--config.dataset.extra.fraction=0.7')
  assert config.dataset.extra.files == ('generated/*.npz',)
  from_config.check(config)
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (1100, 32, 32, 3), np.uint8)
  split = Split(images, np.arange(1100, dtype=np.int32) % 10)
  dataset = Dataset(split, split, tuple('0123456789'), 'made up')
  config.dataset.validation_size = 76
  config.model.backbone = 'tiny'
  stage = from_config.make_experiment(config, dataset).stages[0]
  assert stage.steps_per_epoch == 2
  batch = stage.source.batch(0)
  assert (~batch['own']).sum() == 358
  assert batch['own'].sum() == 154


@pytest.mark.parametrize('size', [4, 6])
def test_folder_of_images(folder, size):
  data_dir = folder / f'my_images_{size}'
  for split in ('train', 'test'):
    for label in range(10):
      name = data_dir / split / f'class{label}' / 'one.png'
      name.parent.mkdir(parents=True)
      Image.new('RGB', (size, size), (label, 0, 0)).save(name)
  config = config_of_command('--config.dataset.loader=image_folder')
  config.dataset.data_dir = str(data_dir)
  config.dataset.cache_dir = str(folder / 'cache')
  assert from_config.image_shape(config) == (size, size, 3)
  dataset = from_config.load_dataset(config)
  assert dataset.train.labels.tolist() == list(range(10))
  assert config.name == 'my_images'
