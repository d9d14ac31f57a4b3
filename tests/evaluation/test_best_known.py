"""The worst case over all attacks: by hand, and where AutoAttack is blind."""

import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.evaluation import best_known
from dhat_jax.evaluation.plan import AuditPlan, Plan
from dhat_jax.evaluation.records import Record
from dhat_jax.models import aggregator
from tests.evaluation.fakes import Fake
from tests.helpers import tiny_suite

LABELS = np.zeros(6, np.int32)
AUTOATTACK = Fake(title='autoattack')
WHITE_BOX, MARGIN = Fake(title='pgd_20'), Fake(title='cw_20')
LARGEST, SWEEP = Fake(title='sweep_200'), Fake(title='sweep_8')
PLAN = Plan(
  clean=Fake(title='clean'),
  attacks=(WHITE_BOX, AUTOATTACK),
  sweep={'8/255': SWEEP},
  audit=AuditPlan(
    attack=WHITE_BOX,
    margin=MARGIN,
    largest=LARGEST,
    largest_epsilon=0.8,
    square=None,
  ),
)


def record(robust, scored='aggregated'):
  """A record in which the aggregated output is right on some images."""
  robust = np.array(robust, bool)
  predictions = {'aggregated': (~robust).astype(np.int32)}
  return Record(
    output=scored,
    robust=robust,
    losses=np.zeros(len(robust)),
    predictions={**predictions, 'main': np.zeros(len(robust), np.int32)},
  )


def records():
  return {
    ('aggregated', 'clean'): record([1, 1, 1, 1, 1, 0]),
    ('aggregated', 'autoattack'): record([1, 1, 1, 1, 0, 0]),
    # Weaker, but on an image of its own.
    ('aggregated', 'pgd_20'): record([1, 1, 1, 0, 1, 0]),
    # At other radii: they do not count.
    ('aggregated', 'sweep_8'): record([0] * 6),
    ('aggregated', 'sweep_200'): record([0] * 6),
  }


def report(found, plan=PLAN):
  return best_known.report(plan, found, LABELS, ('main', 'aggregated'))


def only(found, plan=PLAN):
  """The numbers of the aggregated output."""
  return report(found, plan)['aggregated']


def full(found):
  """Records in which every output was attacked by everything."""
  plain = record([1, 1, 1, 1, 1, 1], 'main')
  return {('main', 'autoattack'): plain, **found}


def test_worst_case_by_hand():
  numbers = only(full(records()))
  assert numbers == {
    'accuracy': 3 / 6,
    'autoattack': 4 / 6,
    'images': 6,
    'made_the_difference': [
      {
        'name': 'pgd_20',
        'target': 'aggregated',
        'attack': 'pgd_20',
        'images': 1,
        'further': 1,
      }
    ],
    'sentence': 'pgd_20 breaks 1 image that AutoAttack left robust.',
  }


def test_transfer_and_the_audit_count():
  found = full(records())
  found['main', 'pgd_20'] = record([0, 0, 1, 1, 1, 1], 'main')
  found['surrogate', 'pgd_20'] = record([1, 0, 1, 1, 1, 1])
  found['surrogate', 'cw_20'] = record([0, 0, 0, 1, 1, 1])
  numbers = only(found)
  assert numbers['accuracy'] == 0
  # The surrogate's record has all of transfer's.
  rows = numbers['made_the_difference']
  assert [(r['name'], r['images'], r['further']) for r in rows] == [
    ('surrogate (cw_20)', 3, 3),
    ('pgd_20', 1, 1),
  ]
  assert numbers['sentence'] == (
    'surrogate (cw_20) breaks 3 images that AutoAttack left robust, pgd_20 1 '
    'more.'
  )
  del found['surrogate', 'cw_20']
  rows = only(found)['made_the_difference']
  assert [row['name'] for row in rows] == ['transfer_main', 'pgd_20']


def test_of_equal_attacks_those_on_the_output_itself_are_named():
  same = [1, 0, 1, 1, 1, 1]
  found = full(records())
  found = {
    ('main', 'pgd_20'): record(same, 'main'),
    **found,
    ('aggregated', 'pgd_20'): record(same),
  }
  rows = only(found)['made_the_difference']
  assert [row['name'] for row in rows] == ['pgd_20']


def test_only_images_that_all_attacks_saw_count():
  found = full(records())
  found['aggregated', 'autoattack'] = record([1, 1, 1])
  found['main', 'pgd_20'] = record([0, 1, 1, 0], 'main')
  numbers = only(found)
  assert numbers['images'] == 3
  assert (numbers['autoattack'], numbers['accuracy']) == (1, 2 / 3)


def test_nothing_more_is_found():
  found = full(records())
  del found['aggregated', 'pgd_20']
  numbers = only(found)
  assert numbers['accuracy'] == numbers['autoattack'] == 4 / 6
  assert numbers['made_the_difference'] == []
  assert numbers['sentence'] == (
    'No other attack breaks an image that AutoAttack left robust.'
  )


def test_another_budget_is_named():
  short = Fake(title='autoattack(n_iter=3)')
  plan = Plan(clean=PLAN.clean, attacks=(WHITE_BOX, short), sweep=PLAN.sweep)
  found = records()
  found['aggregated', short.title] = found.pop(('aggregated', 'autoattack'))
  found['main', short.title] = record([1] * 6, 'main')
  del found['aggregated', 'sweep_200']
  sentence = only(found, plan)['sentence']
  assert sentence.endswith('that autoattack(n_iter=3) left robust.')


def test_without_autoattack_there_is_none():
  plan = Plan(clean=PLAN.clean, attacks=(WHITE_BOX,))
  assert report(records(), plan) == {}


def test_a_randomised_network_has_none():
  """The worst of many attacks that do nothing is not an accuracy."""
  generator = np.random.default_rng(0)
  names = ('clean', 'autoattack', 'pgd_20', 'cw_20')
  found = {
    (target, name): Record.of(
      {
        output: generator.normal(loc=(1, 0), size=(6, 10, 2))
        for output in ('main', 'aggregated')
      },
      LABELS,
      target,
    )
    for target in ('main', 'aggregated')
    for name in names
  }
  rights = [r.scored('aggregated', LABELS) for r in found.values()]
  means = [r.correct['aggregated'].mean() for r in found.values()]
  assert min(means) > 0.6 > np.logical_and.reduce(rights).mean() + 0.25
  assert report(found) == {}


@aggregator.register('stepped')
class Stepped(aggregator.Aggregator):
  """The mean in steps: no attack sees a gradient, but transfer needs none."""

  trains = False

  def __call__(self, logits, train):
    return jnp.round(4 * logits.mean(axis=1))


@pytest.fixture(scope='module')
def planted(tmp_path_factory):
  """(folder, split, results) of a network that AutoAttack overestimates."""
  folder = tmp_path_factory.mktemp('planted')
  net, variables = tiny_suite.network('stepped')
  split = tiny_suite.self_labelled(net, variables)
  results = tiny_suite.run(
    net,
    variables,
    split,
    folder,
    attacks=('clean', 'autoattack'),
    autoattack_outputs=('aggregated',),
    sweep_epsilons_255=(51.0,),
    sweep_steps=3,
    epsilon=0.02,
    step_size=0.005,
    audit=True,
    audit_steps=10,
  )
  return folder, split, results


def test_transfer_breaks_what_autoattack_left(planted):
  folder, split, results = planted
  assert list(results['best_known']) == ['aggregated']
  numbers = results['best_known']['aggregated']
  right = {}
  for path in folder.glob('*/*.npz'):
    with np.load(path) as file:
      if 'aggregated_predictions' in file and 'sweep' not in path.name:
        flags = file['aggregated_predictions'] == split.labels
        right[path.parent.name, path.stem] = flags
  worst = np.logical_and.reduce(list(right.values()))
  assert numbers['images'] == len(split.labels)
  assert numbers['accuracy'] == worst.mean()
  (name,) = results['autoattack']['aggregated']
  left = right['aggregated', name]
  assert numbers['autoattack'] == results['accuracy']['aggregated'][name]
  assert numbers['accuracy'] < numbers['autoattack'] - 0.2
  first = numbers['made_the_difference'][0]
  assert first['target'] in ('main', 'second', 'mean')
  found = left & ~right[first['target'], first['attack']]
  assert first['images'] == first['further'] == found.sum()
  further = sum(row['further'] for row in numbers['made_the_difference'])
  assert further == left.sum() - worst.sum()
