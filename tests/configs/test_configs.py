"""Every config x variant x stage builds, is plain data, and is all read."""

import ast
import collections
import importlib
import json
import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

import dhat_jax
from configs import recipes
from dhat_jax.from_config import training
from dhat_jax.from_config.check import check
from dhat_jax.runtime import config_file, workdir
from dhat_jax.training.stages import roles

SOURCES = pathlib.Path(dhat_jax.__file__).parent
VARIANTS = [
  f'{base}_{backbone}'
  for base in recipes.BASES
  for backbone in recipes.BACKBONES
]
CONFIGS = [
  *((name, v) for name in ('cifar10', 'cifar100', 'svhn') for v in VARIANTS),
  *(('digits', f'{base}_wrn10_1') for base in recipes.BASES),
  ('digits', 'trades_wrn10_1_mixed'),
  ('cifar10', 'sat_wrn34_10_mixed'),
  ('cifar100', 'mart_resnet18_mixed'),
  ('svhn', 'sat_preact_resnet18_mixed'),
  *(
    (f'{name}_modern', f'{base}_{backbone}')
    for name, backbone in (('digits', 'wrn10_1'), ('cifar10', 'wrn34_10'))
    for base in recipes.BASES
  ),
  ('digits_modern', 'trades_wrn10_1_mixed'),
  ('cifar10_modern', 'sat_wrn34_10_mixed'),
]
# Whose files of generated images must be there.
GENERATED = 'cifar10_generated'
# With 10 and with 100 classes (then with the classwise aggregator):
# backbone -> parameters of the plain network, of the dual-head one.
SIZES = {
  10: {
    'wrn34_10': (46_160_474, 90_247_334),
    'wrn28_10': (36_479_194, 71_346_214),
    'wrn16_4': (2_748_890, 5_405_030),
    'resnet18': (11_173_962, 22_227_030),
    # ResNet-18 with norms before instead of behind: 1,792 fewer numbers.
    'preact_resnet18': (11_172_170, 22_223_574),
    'wrn10_1': (77_850, 151_118),
  },
}


def get_config(name, variant):
  return importlib.import_module(f'configs.{name}').get_config(variant)


@pytest.mark.parametrize(('name', 'variant'), CONFIGS)
def test_builds_every_stage(name, variant):
  config = get_config(name, variant)
  check(config)
  assert config.name.startswith(name)
  for stage_name in config.stages:
    stage = training.make_stage(config, stage_name, num_train=45_000)
    assert stage.role == roles()[stage_name]
    fitted = variant.endswith('_mixed') and stage_name == 'aggregator'
    assert (stage.num_steps == 0) == fitted
    assert stage.attack_steps == 10


@pytest.mark.parametrize(('name', 'variant'), CONFIGS)
def test_survives_json(name, variant):
  config = get_config(name, variant)
  values = json.loads(config.to_json())
  again = ml_collections.ConfigDict(values)
  assert json.loads(again.to_json()) == values


def test_default_variants():
  assert get_config('cifar10', 'trades_wrn34_10').name == 'cifar10'
  module = importlib.import_module('configs.cifar10')
  assert module.get_config().name == 'cifar10'
  assert get_config('svhn', 'sat_resnet18').name == 'svhn_sat_resnet18'


def test_generated_images(tmp_path):
  """The published steps, rates and momenta, once the images are there."""
  config = get_config(GENERATED, 'dm_wrn28_10')
  assert shared_parts(config) == 0
  with pytest.raises(ValueError, match=r"extra.files: got '1m.npz'"):
    check(config)
  path = tmp_path / 'images.npz'
  np.savez(path, image=np.zeros((8, 32, 32, 3), np.uint8), label=np.arange(8))
  config.dataset.extra.files = (str(path),)
  check(config)
  assert json.loads(config.to_json())['dataset']['extra']['fraction'] == 0.7
  # 49,000 images in batches of 512: 96 steps are an epoch, 358 of 512 are
  # generated.
  stage = training.make_stage(
    config, 'main_head', num_train=49_000, steps_per_epoch=96
  )
  assert stage.num_steps == 400 * 96
  rates = [float(stage.schedule(96 * epoch)) for epoch in (0, 9, 10, 399)]
  assert rates == pytest.approx([0.008, 0.2, 0.2, 8e-7], rel=1e-3)
  momenta = [
    float(stage.schedule.momentum(96 * epoch)) for epoch in (0, 9, 399)
  ]
  assert momenta == pytest.approx([0.95, 0.85, 0.95])


def test_awp_begins_as_published():
  for base, gamma, start_epoch in (('trades', 0.005, 10), ('sat', 0.01, 1)):
    config = get_config('cifar10_modern', f'{base}_resnet18')
    spec = config.second_head.weight_perturbation
    assert spec.to_dict() == {
      'name': 'awp',
      'gamma': gamma,
      'start_epoch': start_epoch,
    }
    assert config.aggregator.weight_perturbation.name == 'none'
    stage = training.make_stage(config, 'main_head', num_train=49_000)
    assert stage.gradients == 2
    assert stage.schedule(100 * 382) == pytest.approx(0.1)


@pytest.mark.parametrize(
  ('name', 'variant', 'run_name'),
  [
    ('cifar100', 'trades_resnet18', 'cifar100_trades_resnet18_mixed'),
    ('cifar10_modern', 'trades_wrn34_10', 'cifar10_modern_mixed'),
    (GENERATED, 'dm_wrn28_10', f'{GENERATED}_mixed'),
  ],
)
def test_mixed_changes_the_second_head_and_the_mix_alone(
  name, variant, run_name
):
  plain, mixed = (
    workdir.flat(get_config(name, f'{variant}{suffix}').to_dict())
    for suffix in ('', '_mixed')
  )
  changed = {
    key for key in {*plain, *mixed} if plain.get(key) != mixed.get(key)
  }
  parts = ('model.aggregator_options', 'second_head.loss')
  groups = {
    next((part for part in parts if key.startswith(f'{part}.')), key)
    for key in changed
  }
  assert groups == {
    'name',
    'model.aggregator',
    'model.aggregator_options',
    'second_head.loss',
    'second_head.keep',
  }
  assert mixed['name'] == run_name
  assert mixed['second_head.loss.name'] == 'natural'


def shared_parts(config):
  """Counts ConfigDicts and references that several places of a config have."""
  counts = collections.Counter()

  def visit(node):
    for value in node.values(preserve_field_references=True):
      if isinstance(value, ml_collections.ConfigDict):
        visit(value)
      if isinstance(
        value, ml_collections.ConfigDict | ml_collections.FieldReference
      ):
        counts[id(value)] += 1

  visit(config)
  assert len(counts) > 20
  return sum(count > 1 for count in counts.values())


@pytest.mark.parametrize(('name', 'variant'), CONFIGS)
def test_no_part_is_shared(name, variant):
  """What is set in one stage changes no other."""
  assert shared_parts(get_config(name, variant)) == 0
  path = f'configs/{name}.py:{variant}'
  assert shared_parts(config_file.read(path)) == 0


def test_configs_import_only_each_other():
  folder = pathlib.Path(recipes.__file__).parent
  for path in folder.glob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.ImportFrom):
        assert node.module in ('ml_collections', 'dhat_jax.configs'), path
      elif isinstance(node, ast.Import):
        assert {a.name for a in node.names} <= {'copy', 're'}, path


def test_every_config_is_listed():
  names = [f'configs/{name}.py' for name in (*dict(CONFIGS), GENERATED)]
  assert config_file.list_installed() == sorted(names)


def test_importable_as_part_of_the_package():
  installed = importlib.import_module('dhat_jax.configs.digits').get_config()
  assert installed.to_dict() == get_config('digits', 'trades_wrn10_1').to_dict()


def test_deepmind_network_has_the_recipe_of_a_wide_one():
  theirs = get_config('cifar10', 'mart_dm_wrn28_10')
  ours = get_config('cifar10', 'mart_wrn28_10')
  assert theirs.model.backbone == 'dm_wrn28_10'
  assert theirs.main_head == ours.main_head
  check(theirs)


@pytest.mark.parametrize('variant', ['trades', 'trades_vgg', 'fgsm_resnet18'])
def test_unknown_variant_lists_choices(variant):
  with pytest.raises(ValueError, match=r'trades.*mart.*wrn34_10'):
    get_config('cifar10', variant)


def count(config, outputs):
  net = training.make_network(config, outputs=outputs)
  shapes = jax.eval_shape(
    net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))
  )
  return sum(leaf.size for leaf in jax.tree.leaves(shapes['params']))


@pytest.mark.parametrize('backbone', recipes.BACKBONES)
def test_parameter_counts(backbone):
  plain, dual = SIZES[10][backbone]
  config = get_config('cifar10', f'trades_{backbone}')
  assert count(config, ('main',)) == plain
  assert count(config, None) == dual
  # 100 classes: 90 more outputs in each linear layer, another aggregator.
  features = {'wrn16_4': 256, 'resnet18': 512, 'preact_resnet18': 512}
  more = 90 * (features.get(backbone, 640) + 1)
  config = get_config('cifar100', f'trades_{backbone}')
  assert count(config, ('main',)) == plain + more
  assert count(config, None) == dual + 2 * more - 28_930 + 80_140


def test_every_configured_backbone_has_a_size():
  assert set(recipes.BACKBONES) <= set(SIZES[10])


def names_in_source():
  """Every attribute, argument and string in the package."""
  names = set()
  for path in SOURCES.rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Attribute):
        names.add(node.attr)
      elif isinstance(node, ast.arg):
        names.add(node.arg)
      elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        names.update(node.value.split('.'))
  return names


def test_no_key_that_nobody_reads():
  known = names_in_source()
  for name, variant in CONFIGS:
    for path in workdir.flat(get_config(name, variant).to_dict()):
      key = path.rpartition('.')[2]
      assert {key, key.removesuffix('_255')} & known, path
