"""`config.evaluation`: every mistake names its key."""

import pytest

from dhat_jax.attacks.autoattack import checks
from dhat_jax.from_config import evaluation
from tests.helpers import tiny_suite


@pytest.fixture(scope='module')
def net():
  return tiny_suite.network()[0]


@pytest.mark.parametrize(
  ('path', 'value', 'message'),
  [
    ('attacks', ('pgd',), r"attacks: got 'pgd', choices .*'pgd_<steps>'"),
    ('attacks', ('fab_t',), r"attacks: got 'fab_t'.*did you mean 'fab-t'"),
    ('attacks', ('pgd_0',), 'attacks: .*got 0 steps'),
    ('attacks', ('mora_0',), 'attacks: .*got 0 steps'),
    ('attacks', (), r'attacks: got \(\), expected different names'),
    ('attacks', ('clean', 'clean'), 'expected different names'),
    ('epsilon', 8.0, r'epsilon: got 8.0, expected in \[0, 1\].*epsilon_255'),
    ('step_size', 2.0, r'step_size: got 2.0, expected in \[0, 1\]'),
    ('norm', 'l0', "norm: got 'l0', choices"),
    ('restarts', 0, 'restarts: got 0'),
    ('dtype', 'int8', "dtype: got 'int8', choices"),
    ('batch_size', 0, 'batch_size: got 0'),
    ('autoattack_version', 'best', "autoattack_version: got 'best'"),
    ('autoattack_outputs', ('both',), "outputs: got 'both'.*'aggregated'"),
    ('autoattack_images', -1, 'autoattack_images: got -1'),
    ('autoattack_n_iter', 0, 'autoattack_n_iter: got 0'),
    ('autoattack_queries', 0, 'autoattack_queries: got 0'),
    ('autoattack_targets', 0, 'autoattack_targets: got 0'),
    ('autoattack_target_order', 'near', "order: got 'near', choices"),
    ('autoattack_screening', 'float16', "screening: got 'float16', choices"),
    ('sweep_epsilons_255', (8.0, 8.0), 'sweep_epsilons_255: got'),
    ('sweep_steps', 0, 'sweep_steps: got 0'),
    ('loss_steps', (-1,), 'loss_steps: got -1'),
    ('audit_steps', 0, 'audit_steps: got 0'),
    ('audit_queries', -1, 'audit_queries: got -1'),
  ],
)
def test_mistakes_name_their_key(net, path, value, message):
  # Also where nothing uses the value.
  config = tiny_suite.get_config(**{path: value}, audit=path == 'audit')
  make = (
    evaluation.make_evaluator
    if path in ('dtype', 'batch_size')
    else evaluation.make_plan
  )
  with pytest.raises(ValueError, match=message) as error:
    make(config, net)
  assert str(error.value).startswith(f'config.evaluation.{path}: ')


@pytest.mark.parametrize(
  ('options', 'key'),
  [
    ({'attacks': ('clean', 'fab-t')}, 'attacks'),
    ({'audit': True, 'audit_queries': 5}, 'audit_queries'),
  ],
)
def test_autoattack_in_no_ball_is_refused_at_the_start(net, options, key):
  config = tiny_suite.get_config(**options, epsilon=0.0)
  with pytest.raises(ValueError, match=f'evaluation.{key}: epsilon: got 0.0'):
    evaluation.make_plan(config, net)


def test_two_classes_are_enough_for_every_attack(net):
  two = net.clone(num_classes=2)
  names = ('clean', 'autoattack', *checks.NAMES)
  plan = evaluation.make_plan(tiny_suite.get_config(attacks=names), two)
  assert len(plan.attacks) == len(names)


def test_mora_needs_an_output_that_is_made_of_heads(net):
  config = tiny_suite.get_config(attacks=('clean', 'mora_3'))
  plan = evaluation.make_plan(config, net)
  assert len(plan.against('main')) == 1
  assert len(plan.against('mean')) == len(plan.against('aggregated')) == 2
  single = net.clone(outputs=('main',))
  message = r"evaluation.attacks: got 'mora_3' for a network with \('main',\)"
  with pytest.raises(ValueError, match=message):
    evaluation.make_plan(config, single)


def test_target_order_is_that_of_apgd_t_alone(net):
  plan = tiny_suite.make_plan(
    net,
    attacks=('clean', 'apgd-t', 'fab-t', 'autoattack'),
    autoattack_target_order='malt',
  )
  budget = 'n_iter=3,queries=20,targets=2'
  assert [attack.name for attack in plan.attacks[1:]] == [
    f'apgd-t({budget},target_order=malt)',
    f'fab-t({budget})',
    f'autoattack({budget},target_order=malt)',
  ]
  config = tiny_suite.get_config(
    attacks=('autoattack',),
    autoattack_target_order='malt',
    autoattack_version='rand',
  )
  with pytest.raises(ValueError, match=r"attacks: target_order: .*'apgd-t'"):
    evaluation.make_plan(config, net)


def test_screening_is_part_of_the_name(net):
  plan = tiny_suite.make_plan(
    net,
    attacks=('clean', 'autoattack'),
    autoattack_screening='bfloat16',
    audit=True,
    audit_queries=5,
  )
  (attack,) = plan.attacks[1:]
  assert attack.name.endswith(',screening=bfloat16)')
  assert attack.identity()['screening'] == 'bfloat16'
  assert 'screening' not in plan.audit.square.identity()  # as before it


@pytest.mark.parametrize(
  ('key', 'value'), [('autoattack_target_order', 'malt'), ('audit_malt', True)]
)
def test_malt_refuses_randomised_networks(net, key, value):
  config = tiny_suite.get_config(samples=3, **{key: value})
  with pytest.raises(ValueError, match=rf'evaluation.{key}: got .* 3 samples'):
    evaluation.make_plan(config, net)


def test_validation_attacks():
  config = tiny_suite.get_config()
  for name in ('clean', 'fgsm', 'pgd_3'):
    config.validation.attack = name
    clean, attack = evaluation.validation_attacks(config)
    assert (clean.name, attack.name) == ('clean', name)
  for name, message in (
    ('autoattack', 'expected an attack that takes seconds'),
    ('pgd', r"got 'pgd', choices are .*'pgd_<steps>'"),
    ('mora_3', "got 'mora_3', which needs heads"),
  ):
    config.validation.attack = name
    with pytest.raises(ValueError, match=message) as error:
      evaluation.validation_attacks(config)
    assert str(error.value).startswith('config.validation.attack: got')


def test_the_audit_needs_an_aggregator(net):
  config = tiny_suite.get_config(audit=True)
  assert evaluation.make_plan(config, net).audit is not None
  heads = net.clone(outputs=('main', 'second'))
  assert evaluation.make_plan(config, heads).audit is None


def test_audit_goes_to_the_largest_radius(net):
  options = {'audit': True, 'sweep_epsilons_255': (8.0, 255.0)}
  plan = tiny_suite.make_plan(net, epsilon=0.5, **options)
  # Four radii would leave [0, 1]: the same attack as the sweep's last one.
  assert plan.audit.largest_epsilon == 1
  assert plan.audit.largest == plan.sweep['255/255']
  plan = tiny_suite.make_plan(net, epsilon=0.5, norm='l2', **options)
  assert plan.audit.largest_epsilon == 2
  assert plan.audit.largest.name == 'sweep_510'


def test_square_of_the_audit_has_its_own_budget(net):
  plan = tiny_suite.make_plan(net, audit=True, audit_queries=30)
  assert plan.audit.square.name == 'square(queries=30)'
  assert tiny_suite.make_plan(net, audit=True).audit.square is None


def test_a_fixed_start_for_all_numbers_of_steps(net):
  plan = tiny_suite.make_plan(net, loss_steps=(0, 2), restarts=3)
  clean, two = plan.loss_by_steps.values()
  assert clean.name, two.name == ('loss_0', 'loss_2')
  assert clean.stream == two.stream == 'loss'
  assert (clean.settings.steps, two.settings.steps) == (0, 2)
  assert two.settings.restarts == 1
