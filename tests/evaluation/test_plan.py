"""The list of jobs: made first, each job once, cheap ones first."""

import collections
import dataclasses

import pytest

from dhat_jax.evaluation import attacks, audit_targets, results
from dhat_jax.evaluation.plan import jobs
from dhat_jax.runtime import devices
from tests.evaluation.spies import spied
from tests.helpers import tiny_suite

ALL = {**tiny_suite.FULL, 'audit_queries': 20}


@pytest.fixture(scope='module')
def case():
  return tiny_suite.case()


def list_jobs(case, plan):
  net, variables, _ = case
  evaluator = tiny_suite.make_evaluator(net)
  replicated = devices.replicate(variables)
  targets = {o: evaluator.target(replicated, o) for o in evaluator.outputs}
  return jobs(
    plan,
    targets,
    audited='aggregated',
    bypass=audit_targets.bypass(targets['aggregated']),
    surrogate=audit_targets.surrogate(targets['aggregated']),
  )


def test_each_job_once_cheap_ones_first(case):
  plan = tiny_suite.make_plan(
    case[0],
    **{**ALL, 'attacks': ('square', *ALL['attacks'])},
    autoattack_outputs=('main',),
  )
  todo = list_jobs(case, plan)
  assert len({job.key for job in todo}) == len(todo)
  by_target = collections.Counter(job.target.name for job in todo)
  # clean, pgd_3, cw_3; three radii; three numbers of steps; one Square.
  assert by_target['main'] == 10
  assert by_target['second'] == by_target['mean'] == 9
  assert by_target['aggregated'] == 11  # the largest radius too
  assert by_target['relu_bypassed'] == 1
  expensive = [job.attack.expensive for job in todo]
  assert expensive == sorted(expensive)
  assert sum(expensive) == 2


def test_a_surrogate_is_attacked_on_cross_entropy_and_margin():
  net, variables = tiny_suite.network('mixed')
  plan = tiny_suite.make_plan(net, attacks=('clean',), audit=True)
  todo = list_jobs((net, variables, None), plan)
  names = [
    attack for target, attack in (j.key for j in todo) if target == 'surrogate'
  ]
  assert names == ['pgd_3', 'cw_3']
  assert not any(job.target.name == 'relu_bypassed' for job in todo)


def test_an_audit_with_mora_and_malt():
  net, variables = tiny_suite.network('mixed')
  plan = tiny_suite.make_plan(
    net, attacks=('clean',), audit=True, audit_mora=True, audit_malt=True
  )
  keys = [job.key for job in list_jobs((net, variables, None), plan)]
  targeted = 'apgd-t(n_iter=3,target_order=malt)'
  for key in (
    ('aggregated', 'mora_3'),
    ('aggregated', 'mora_3_control'),
    ('aggregated', targeted),
    ('surrogate', 'mora_3'),
  ):
    assert key in keys
  assert ('surrogate', 'mora_3_control') not in keys
  white_box = [attack.name for attack in plan.audit.white_box]
  assert white_box == ['pgd_3', 'cw_3', 'mora_3_control', targeted]
  mora, momentum = plan.audit.mora, plan.audit.momentum
  assert mora.function is momentum.function  # they compile once
  assert momentum.stream == mora.name  # and start alike
  for attack in plan.audit.surrogate[:2]:
    assert attack.made_of['every_point']


def test_the_list_is_what_runs_and_what_the_bar_counts(case, tmp_path, capsys):
  calls = []
  plan = spied(tiny_suite.make_plan(case[0], **ALL), calls)
  todo = list_jobs(case, plan)
  tiny_suite.run(*case, tmp_path, plan=plan, progress='evaluation', **ALL)
  assert calls == [job.key for job in todo]
  shown = capsys.readouterr().err
  assert f'{len(todo)}/{len(todo)}' in shown
  assert f'0/{len(todo)}' in shown
  assert 'attack' in shown
  # What is read from disk counts as well.
  tiny_suite.run(*case, tmp_path, plan=plan, progress='evaluation', **ALL)
  assert len(calls) == len(todo)
  assert f'{len(todo)}/{len(todo)}' in capsys.readouterr().err


def test_two_attacks_of_one_name_are_an_error(case):
  plan = tiny_suite.make_plan(case[0], attacks=('pgd_3',))
  settings = plan.attacks[0].settings._replace(epsilon=0.2)
  other = attacks.gradient(settings, norm='linf', title='pgd_3')
  plan = dataclasses.replace(plan, sweep={'2': other})
  with pytest.raises(ValueError, match="two that are called 'pgd_3'"):
    list_jobs(case, plan)


def test_one_record_serves_attacks_on_other_outputs(case):
  options = {
    'attacks': ('clean', 'square'),
    'audit': True,
    'audit_queries': 20,
    'autoattack_n_iter': 100,
    'autoattack_targets': 9,
  }
  plans = [
    tiny_suite.make_plan(case[0], **options, autoattack_outputs=outputs)
    for outputs in ((), ('aggregated',), ('main',))
  ]
  square = plans[1].audit.square
  assert plans[1].attacks[1].name == square.name
  assert plans[1].attacks[1] != square
  attacked = [
    [j.target.name for j in list_jobs(case, plan) if j.attack.expensive]
    for plan in plans
  ]
  assert attacked == [
    ['main', 'second', 'mean', 'aggregated'],
    ['aggregated'],
    ['main', 'aggregated'],
  ]


def test_a_record_of_other_images_is_an_error(case):
  net, variables, split = case
  plan = tiny_suite.make_plan(net, attacks=('clean',))
  attack = dataclasses.replace(
    spied(plan, []).clean, attack=Half(title='half', attack=plan.clean)
  )
  plan = dataclasses.replace(plan, attacks=(attack,))
  with pytest.raises(ValueError, match='half: got a record of 21 images'):
    results.evaluate(
      tiny_suite.make_evaluator(net),
      variables,
      split,
      plan,
      class_names=tiny_suite.NAMES,
      seed=0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Half(attacks.EvaluationAttack):
  """Says nothing of looking at half of the images."""

  attack: attacks.EvaluationAttack

  def run(self, target, split, rng, workspace):
    half = dataclasses.replace(
      split, images=split.images[:21], labels=split.labels[:21]
    )
    return self.attack.run(target, half, rng, workspace)
