"""The table of evaluation attacks, and a user's own."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.attacks import balls
from dhat_jax.evaluation import attacks, user_code
from dhat_jax.evaluation.attack_types import EvaluationAttack
from dhat_jax.evaluation.records import Record
from dhat_jax.report import read, tables
from dhat_jax.runtime import devices, files
from tests.evaluation.spies import spied
from tests.helpers import tiny_suite

SHARED = {
  'epsilon': 0.1,
  'step_size': 0.05,
  'norm': 'linf',
  'restarts': 2,
  'autoattack_images': 30,
  'autoattack_n_iter': 5,
}


@attacks.register('noise_<draws>')
def noise(*, draws: int, epsilon: float):
  """The worst of some random signs: no gradient."""

  def function(logits_fn, images, labels, rngs):
    def draw(index, carry):
      robust, worst = carry
      keys = jax.vmap(jax.random.fold_in, (0, None))(rngs, index)
      signs = jax.vmap(
        lambda key: jax.random.rademacher(key, images.shape[1:], images.dtype)
      )(keys)
      images_adv = jnp.clip(images + epsilon * signs, 0, 1)
      right = balls.is_right(logits_fn(images_adv), labels)
      # The first image that is wrong is kept.
      worst = balls.select(robust, images_adv, worst)
      return robust & right, worst

    return jax.lax.fori_loop(
      0, draws, draw, (jnp.ones(len(images), bool), images)
    )

  return attacks.on_logits(function)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inverted(EvaluationAttack):
  """Negatives of the images: an attack that is a class of its own."""

  expensive: bool = True

  def run(self, target, split, rng, workspace):
    images = 1 - np.asarray(split.images, np.float32) / 255
    shown = dataclasses.replace(split, images=images)
    logits = target.evaluator.logits(target.variables, shown)
    return Record.of(
      logits,
      split.labels,
      target.scored,
      warnings=('upside down',),
      images_adv=images,
    )

  def details(self, record):
    return {'warnings': list(record.warnings)}


@attacks.register('inverted')
def inverted():
  return Inverted(outputs=('main',))


def test_a_users_attacks_are_like_ours(tmp_path):
  case = tiny_suite.case()
  folder = tmp_path / 'evaluation'
  names = ('clean', 'noise_3', 'inverted')
  results = tiny_suite.run(
    *case, folder, attacks=names, epsilon=0.3, export_images=True
  )
  accuracy = results['accuracy']['main']
  assert tuple(accuracy) == names
  assert 0 < accuracy['noise_3'] < accuracy['clean']
  assert 'inverted' not in results['accuracy']['mean']
  # The worst case over images, not of the smallest number.
  flags = []
  for name in names:
    with np.load(folder / 'main' / f'{name}.npz') as file:
      flags.append(file['robust'])
    with np.load(folder / 'images' / 'main' / f'{name}.npz') as file:
      assert file['images_adv'].shape == (tiny_suite.IMAGES, 8, 8, 1)
  worst = np.logical_and.reduce(flags).mean()
  assert results['worst_case']['main'] == worst < min(accuracy.values())
  confusion = results['confusion']['main']
  assert accuracy[confusion['attack']] == min(accuracy.values())
  details = results['autoattack']['main']['inverted']
  assert details == {'warnings': ['upside down']}
  # And in the report's tables.
  files.write_json(str(tmp_path / 'results.json'), results)
  run = read.load(str(tmp_path))
  assert {'noise_3', 'inverted'} <= set(tables.attack_names([run]))


def test_a_users_attack_is_not_read_where_it_changed(tmp_path):
  case = tiny_suite.case()

  def calls(**overrides):
    names = []
    options = {'attacks': ('noise_2',), **overrides}
    plan = spied(tiny_suite.make_plan(case[0], **options), names)
    tiny_suite.run(*case, tmp_path, plan=plan, **options)
    return [name for _, name in names if name != 'clean']

  assert len(calls()) == 4
  assert len(calls()) == 0
  # It takes epsilon, and not the length of a step.
  assert len(calls(step_size=0.01)) == 0
  assert len(calls(epsilon=0.2)) == 4
  made = attacks.make('noise_2', **SHARED)
  assert 'balls.select' in made.identity()['made_of']['text'][__name__]


def test_a_users_attack_depends_on_the_modules_that_it_imports(
  tmp_path, monkeypatch
):
  lines = 'import numpy\nfrom dhat_jax.evaluation import attacks\n'
  lines += 'from my_moves import move\n\ndef factory():\n  return move\n'
  (tmp_path / 'my_factory.py').write_text(lines)
  (tmp_path / 'my_steps.py').write_text('STEPS = 2\n')
  (tmp_path / 'my_moves.py').write_text(
    'import my_steps\n\ndef move():\n  return my_steps.STEPS\n'
  )
  monkeypatch.syspath_prepend(tmp_path)
  module = importlib.import_module('my_factory')
  assert sorted(user_code.code_of(module.factory)) == [
    'my_factory',
    'my_moves',
    'my_steps',
  ]


def test_an_attack_is_made_once():
  first, again = (attacks.make('noise_2', **SHARED) for _ in range(2))
  assert first == again
  assert first.function is again.function
  assert attacks.make('noise_3', **SHARED) != first


def test_images_that_contradict_the_verdict_are_an_error():
  net, variables, split = tiny_suite.case()

  def function(logits_fn, images, labels, rngs):
    return balls.is_right(logits_fn(1 - images), labels), images

  attack = attacks.on_logits(function, title='careless')
  evaluator = tiny_suite.make_evaluator(net)
  target = evaluator.target(devices.replicate(variables), 'main')
  with pytest.raises(ValueError, match='careless: got images whose pred'):
    attack.run(target, split, jax.random.key(0))


def test_table():
  assert {'clean', 'fgsm', 'pgd_<steps>', 'cw_<steps>', 'autoattack'} < set(
    attacks.EVALUATION_ATTACKS
  )
  clean = attacks.make('clean', **SHARED)
  assert (clean.settings.epsilon, clean.settings.steps) == (0, 0)
  fgsm = attacks.make('fgsm', **SHARED).settings
  assert (fgsm.epsilon, fgsm.step_size, fgsm.start_scale) == (0.1, 0.1, 0)
  pgd, cw = (attacks.make(f'{name}_7', **SHARED) for name in ('pgd', 'cw'))
  assert (pgd.settings.steps, pgd.settings.restarts) == (7, 2)
  assert pgd.settings.objective != cw.settings.objective
  with pytest.raises(ValueError, match=r"here: got 'pgd', choices .*'pgd_<st"):
    attacks.make('pgd', where='here', **SHARED)
  with pytest.raises(ValueError, match='here: got 0 steps, expected a whole'):
    attacks.make('cw_0', where='here', **SHARED)
  with pytest.raises(ValueError, match=r"got 'pgd_2.5', choices"):
    attacks.make('pgd_2.5', **SHARED)


def test_autoattack_names_its_budget():
  attack = attacks.make('autoattack', **SHARED)
  assert attack.name == 'autoattack(n_iter=5,images=30)'
  assert attack.num_images(42) == 30
  assert attack.num_images(10) == 10
  assert attack.expensive
  plain = {'epsilon': 0.1, 'norm': 'l2'}
  assert attacks.make('autoattack', **plain).name == 'autoattack'
  alone = attacks.make('apgd-t', **plain)
  assert (alone.name, alone.version) == ('apgd-t', 'custom')
  assert alone.attacks == ('apgd-t',)
  assert alone.norm == 'l2'
  # Whom it is made against does not change what it finds.
  other = attacks.make('apgd-t', **plain, autoattack_outputs=('main',))
  assert other.outputs == ('main',)
  assert other.identity() == alone.identity()
