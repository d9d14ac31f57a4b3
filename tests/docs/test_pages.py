"""The pages say what is true: programs run, commands parse, links lead on.

A Python block of docs/*.md whose first line is `# name.py` becomes that file;
the others run as they stand, in order, on arrays `images` and `labels`. Every
shell command is parsed by the flags of the program that it names, and its
config checked. README's programs run in `test_readme`.
"""

import configparser
import importlib
import os
import pathlib
import re
import shlex
import sys

import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image

from dhat_jax import build, convert, losses, main
from dhat_jax.benchmark import __main__ as benchmark
from dhat_jax.datasets import digits
from dhat_jax.pytorch import state_dicts
from dhat_jax.training.stages import ROLES
from dhat_jax.training.state import create_train_state
from dhat_jax.training.step import make_train_step
from tests.helpers.tiny import TinyBackbone, random_variables
from tests.survival import campaign

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / 'docs'
PAGES = [ROOT / 'README.md', *sorted(DOCS.rglob('*.md'))]
PAGES = [page for page in PAGES if '_build' not in page.parts]
FILE_NAME = re.compile(r'# (\w+\.py)\n')


def blocks(page, language):
  """The code blocks of a page."""
  return re.findall(rf'```{language}\n(.*?)```', page.read_text(), re.DOTALL)


def files(page):
  """The blocks of a page that are files: {name: text}."""
  return {
    match[1]: block
    for block in blocks(page, 'python')
    if (match := FILE_NAME.match(block))
  }


RECIPES = files(DOCS / 'recipes.md')


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A current folder with the recipes' files; what they change is undone."""
  for name in ('configs', 'docs', 'launch'):
    (tmp_path / name).symlink_to(ROOT / name)
  for name, text in RECIPES.items():
    (tmp_path / name).write_text(text)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', [str(tmp_path), *sys.path])
  monkeypatch.setattr(losses, 'LOSSES', dict(losses.LOSSES))
  monkeypatch.setattr(build, 'LOADERS', dict(build.LOADERS))
  for name in ('attack', 'backbone'):
    monkeypatch.setattr(build, name, getattr(build, name))
  yield tmp_path
  for name in RECIPES:
    sys.modules.pop(name.removesuffix('.py'), None)


def commands(page):
  """The commands in a page's shell blocks, as lists of arguments."""
  for block in blocks(page, 'sh'):
    for line in block.replace('\\\n', ' ').strip().split('\n'):
      words = shlex.split(line)
      while '&&' in words:
        place = words.index('&&')
        yield words[:place]
        words = words[place + 1 :]
      yield words


PARSERS = {
  'dhat_jax.main': main.parse,
  'dhat_jax.convert': convert._parse,
  'dhat_jax.benchmark': benchmark._parse,
}


def check_command(words):
  """Raises unless a command would start."""
  if words[0] == 'pip':
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    assert words[1:3] == ['install', '-e']
    (extras,) = re.fullmatch(r'\.(?:\[([\w,]+)\])?', words[3]).groups()
    assert not extras or set(extras.split(',')) <= set(
      setup['options.extras_require']
    )
  elif words[:2] == ['python', '-m'] and words[2] in PARSERS:
    config = PARSERS[words[2]](words[2:]).config
    assert config is not None
    build.check(config)
  elif words[:3] == ['python', '-m', campaign.__name__]:
    campaign.parser().parse_args(words[3:])
  elif words[:2] == ['python', '-m'] and words[2].startswith('experiments.'):
    importlib.import_module(words[2]).parse(words[3:])
  elif words[0] == 'launch/check.sh':
    assert words[1:] in ([], ['docs'], ['lint'], ['quick'])
  elif words[:3] == ['python', '-m', 'dhat_jax.report']:
    assert words[3:]
    assert all(w.startswith(('--workdir=', '--out=')) for w in words[3:])
  else:
    assert words == ['python', '-m', 'pytest']


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_commands_would_start(page, folder):
  for words in commands(page):
    check_command(words)


@pytest.mark.parametrize(
  'line',
  [
    'python -m dhat_jax.main --config=configs/digits.py --config.sed=1',
    'python -m dhat_jax.main --config=configs/digits.py --mode=test',
    'python -m dhat_jax.main --config=configs/digits.py '
    '--config.model.attach=block9',
    'python -m dhat_jax.convert --config=configs/digits.py --workdir=x',
    'python -m dhat_jax.nothing',
    "pip install -e '.[nothing]'",
    'python -m experiments.digits --seed=x',
    'python -m experiments.cifar10_jpeg --scale=huge --data_dir=x',
  ],
)
def test_mistakes_in_commands_are_found(line, folder):
  mistakes = (AssertionError, AttributeError, ValueError, flags.Error)
  with pytest.raises((*mistakes, SystemExit)):
    check_command(shlex.split(line))


def get_config(name):
  """The config in a file of the current folder, as the flags load it."""
  return main.parse(['main', f'--config={name}']).config


def trained_one_step(config, stage_name, *, runs):
  """One step of a stage, or its shapes alone; returns its metrics."""
  stage = build.stage(config, stage_name, num_train=64)
  net = build.model(config, outputs=stage.role.outputs)
  part = {'net': net, 'tx': stage.tx, 'trains': stage.role.trains}
  step = make_train_step(
    **part, loss=stage.loss, attack=stage.attack, output=stage.role.output
  )
  rng = np.random.default_rng(0)
  batch = {
    'images': rng.integers(0, 256, (8, 8, 8, 1), np.uint8),
    'labels': np.arange(8, dtype=np.int32),
  }

  def one_step(rng):
    state = create_train_state(**part, rng=rng, image_shape=(8, 8, 1))
    return step(state, batch)[1]

  rng = jax.random.key(0)
  return jax.jit(one_step)(rng) if runs else jax.eval_shape(one_step, rng)


def test_new_loss_trains(folder):
  config = get_config('my_loss.py')
  build.backbone = lambda name: TinyBackbone()
  metrics = trained_one_step(config, 'main_head', runs=True)
  values = {name: float(s / count) for name, (s, count) in metrics.items()}
  assert values['loss'] > 0.5 * values['distance'] > 0


def test_new_attack_trains(folder):
  config = get_config('my_attack.py')
  spec = config.main_head.attack
  images = np.full((2, 4, 4, 1), 0.5, np.float32)
  images_adv = build.attack(spec)(
    lambda x: x.sum(axis=(1, 2, 3)), jax.random.key(0), images
  )
  # Everything rises: up to the surface of the ball.
  np.testing.assert_allclose(images_adv, 0.7, atol=1e-6)
  build.backbone = lambda name: TinyBackbone()
  assert 'loss' in trained_one_step(config, 'second_head', runs=False)
  spec.name = 'pgd'  # the package's own
  assert build.attack(spec).__module__ == 'dhat_jax.attacks.pgd'


def test_new_backbone_trains(folder):
  config = get_config('my_backbone.py')
  assert 'loss' in trained_one_step(config, 'aggregator', runs=False)
  config.model.attach = 'block2'
  assert 'loss' in trained_one_step(config, 'main_head', runs=False)
  config.model.backbone = 'wrn10_1'
  build.model(config)  # the package's own


def test_line_for_a_backbone_inside_the_package(folder):
  """The line that recipes.md gives fits the dictionary of build.py."""
  page = (DOCS / 'recipes.md').read_text()
  (line,) = re.findall(r"`('convnet': \w+\(\),)`", page)
  source = pathlib.Path(build.__file__).read_text()
  above = "      'resnet18': ResNet18(),\n"
  assert source.count(above) == 1
  names = {'__name__': 'dhat_jax.build'}
  exec(source.replace(above, f'{above}      {line}\n'), names)
  backbone = importlib.import_module('my_backbone').Backbone
  names['Backbone'] = backbone
  assert names['backbone']('convnet') == backbone()


def test_new_data_set_loads(folder):
  rng = np.random.default_rng(0)
  arrays = {}
  for split, count in (('train', 6), ('test', 3)):
    shape = (count, 32, 32, 3)
    arrays[f'{split}_images'] = rng.integers(0, 256, shape, np.uint8)
    arrays[f'{split}_labels'] = np.arange(count) % 3
  np.savez('my_data.npz', **arrays)
  data = build.dataset(get_config('my_data.py'))
  np.testing.assert_array_equal(data.train.images, arrays['train_images'])
  assert data.test.labels.tolist() == [0, 1, 2]


def test_folder_of_images_loads(folder):
  for split in ('train', 'test'):
    for label in range(10):
      name = folder / 'my_images' / split / f'class{label}' / 'one.png'
      name.parent.mkdir(parents=True)
      Image.new('RGB', (4, 4), (label, 0, 0)).save(name)
  (words,) = [
    words
    for words in commands(DOCS / 'recipes.md')
    if '--config.dataset.loader=image_folder' in words
  ]
  config = main.parse(words[2:]).config
  config.dataset.cache_dir = str(folder / 'cache')
  data = build.dataset(config)
  assert data.train.labels.tolist() == list(range(10))
  assert config.name == 'my_images'


@pytest.fixture(scope='module')
def state_dict():
  """A PyTorch state dict of the digits network, random."""
  from dhat_jax.configs import digits as digits_config

  net = build.model(digits_config.get_config())
  variables = random_variables(net, np.zeros((1, 8, 8, 1), np.float32))
  return convert.to_torch(variables, net)


def programs(page):
  """The Python blocks of a page that are no files."""
  found = blocks(page, 'python')
  return [block for block in found if not FILE_NAME.match(block)]


def is_evaluated(names):
  """Whether a program leaves a result, robust flags or an accuracy."""
  if 'accuracy' in names:
    return 0 <= float(names['accuracy']) <= 1
  if 'result' in names:
    return names['result'].robust.shape == (24,)
  return names['robust'].shape == (24,) and names['robust'].dtype == bool


WITH_PROGRAMS = [
  page for page in PAGES if programs(page) and page.name != 'README.md'
]


@pytest.mark.parametrize('page', WITH_PROGRAMS, ids=lambda page: page.name)
def test_programs_run_as_they_stand(page, folder, state_dict):
  state_dicts.write_state_dict('model.npz', state_dict)
  test = digits.load().test
  names = {
    'images': np.float32(test.images[:24]) / 255,
    'labels': test.labels[:24],
  }
  for block in programs(page):
    exec(block, names)
    assert is_evaluated(names)
    assert names['images'].shape == (24, 8, 8, 1)


def test_programs_of_readme_run_elsewhere():
  tests = (ROOT / 'tests' / 'docs' / 'test_readme.py').read_text()
  words = re.findall(r"program\('(\w+)'\)", tests)
  for block in blocks(ROOT / 'README.md', 'python'):
    assert any(word in block for word in words)


def test_api_lists_every_module_once():
  listed = [
    name
    for page in sorted((DOCS / 'api').glob('*.md'))
    for name in re.findall(r'automodule:: ([\w.]+)', page.read_text())
  ]
  modules = [
    '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    for path in (ROOT / 'dhat_jax').rglob('*.py')
    if path.name != '__init__.py'
  ]
  assert sorted(listed) == sorted(modules)


def test_pages_and_index_agree():
  """Each page is in the index twice: in its lists, and in its menu."""
  index = (DOCS / 'index.md').read_text()
  for page in DOCS.rglob('*.md'):
    if page.name != 'index.md' and '_build' not in page.parts:
      name = page.relative_to(DOCS).as_posix()
      assert f']({name})' in index
      assert f'\n{name.removesuffix(".md")}\n' in index


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
  text = re.sub(r'```.*?```', '', page.read_text(), flags=re.DOTALL)
  for target in re.findall(r'\]\(([^)\s]+)\)', text):
    if not re.match(r'https?:', target):
      assert os.path.exists(page.parent / target.partition('#')[0]), target


def test_stages_of_the_method_page():
  """Its table of stages is that of the config."""
  from dhat_jax.configs import cifar10

  config = cifar10.get_config()
  text = (DOCS / 'method.md').read_text()
  for name, role in ROLES.items():
    (row,) = re.findall(rf'^\| `{name}` \|(.*)\|$', text, re.MULTILINE)
    trains, frozen, output, beta, epochs, drops = map(str.strip, row.split('|'))
    words = {'main_head': 'main head', 'second_head': 'second head'}
    assert trains == ', '.join(words.get(part, part) for part in role.trains)
    assert ('trunk' in frozen) == ('trunk' not in role.trains)
    assert f'`{role.output}`' in output
    assert float(beta) == config[name].loss.beta
    assert float(epochs) == config[name].epochs
    drop_epochs = [
      e for e in config[name].schedule.drop_epochs if e <= float(epochs)
    ]
    assert drops == ', '.join(str(epoch) for epoch in drop_epochs)
