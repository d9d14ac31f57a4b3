"""From `config.evaluation` to an evaluator and a plan."""

import dataclasses
import math
from typing import Any

import ml_collections
from flax import linen as nn

from dhat_jax import arguments
from dhat_jax.attacks import balls, pgd
from dhat_jax.attacks.autoattack import checks, targets
from dhat_jax.attacks.autoattack.budget import SCREENINGS
from dhat_jax.evaluation import aggregator_analysis, attacks
from dhat_jax.evaluation.attack_types import EvaluationAttack, LogitsAttack
from dhat_jax.evaluation.evaluator import Evaluator
from dhat_jax.evaluation.plan import AuditPlan, Plan, check_names
from dhat_jax.from_config.values import completed, in_unit, lengths_255
from dhat_jax.models.layers import DTYPES
from dhat_jax.models.outputs import OUTPUTS, available
from dhat_jax.training.stages import JOINT

# A radius from which on nothing may stay robust, in radii of the evaluation.
LARGEST = 4
_WHERE = 'config.evaluation'


def make_evaluator(
  config: ml_collections.ConfigDict, net: nn.Module
) -> Evaluator:
  """Returns the evaluator of a network, in the evaluation's precision."""
  spec = completed(config).evaluation
  dtype = arguments.one_of(f'{_WHERE}.dtype', spec.dtype, DTYPES)
  return Evaluator(
    net.clone(dtype=dtype, axis_name=None),
    batch_size=arguments.integer(f'{_WHERE}.batch_size', spec.batch_size, 1),
    samples=arguments.integer(f'{_WHERE}.samples', spec.samples, 1),
  )


def make_plan(config: ml_collections.ConfigDict, net: nn.Module) -> Plan:
  """Returns the plan of a network's evaluation.

  Args:
    config: the run's config.
    net: the network, for its outputs.

  Raises:
    ValueError: any value that is out of its range.
  """
  spec = completed(config).evaluation
  shared = _shared(spec)
  _check_randomized(spec)
  names = tuple(spec.attacks)
  if not names or len(set(names)) < len(names):
    raise ValueError(f'{_WHERE}.attacks: got {names}, expected different names')
  audited = aggregator_analysis.aggregated(net.outputs)
  audit = _audit(spec, shared)  # mistakes show even if it does not run
  audits = bool(audited and spec.audit)
  if audits and audit.square:
    _able(audit.square, net.num_classes, f'{_WHERE}.audit_queries')
  if audits and audit.targeted:
    _able(audit.targeted, net.num_classes, f'{_WHERE}.audit_malt')
  plan = Plan(
    clean=attacks.make('clean', **shared),
    attacks=tuple(_listed(name, shared, net) for name in names),
    sweep=_sweep(spec),
    loss_by_steps=_loss_by_steps(spec, shared),
    audit=audit if audits else None,
    export_images=spec.export_images,
  )
  check_names(plan, f'{_WHERE}.attacks')
  return plan


def _listed(
  name: str, shared: dict[str, Any], net: nn.Module
) -> EvaluationAttack:
  """Returns an attack of the list, checked for the network."""
  where = f'{_WHERE}.attacks'
  attack = attacks.make(name, where=where, **shared)
  names = available(net.outputs)
  if attacks.needs_heads(attack) and not set(attack.outputs) & set(names):
    raise ValueError(
      f'{where}: got {name!r} for a network with {names}, expected an output '
      f'made of heads, {attack.outputs}'
    )
  return _able(attack, net.num_classes, where)


def _able(
  attack: EvaluationAttack, num_classes: int, where: str
) -> EvaluationAttack:
  """Returns an attack if it can handle the number of classes, or raises."""
  try:
    attack.check(num_classes)
  except ValueError as error:
    raise ValueError(f'{where}: {error}') from error
  return attack


def _require_any_output(attack: EvaluationAttack, where: str) -> None:
  """Raises ValueError for an attack that cannot attack a head."""
  if attacks.needs_heads(attack):
    raise ValueError(
      f'{where}: got {attack.title!r}, which needs heads, expected an attack '
      'on any output'
    )


def validation_attacks(
  config: ml_collections.ConfigDict,
) -> tuple[EvaluationAttack, EvaluationAttack]:
  """Returns (clean, the attack that selects the model).

  Raises:
    ValueError: no such attack, or one that takes too long.
  """
  where, name = 'config.validation.attack', config.validation.attack
  shared = _shared(completed(config).evaluation)
  attack = attacks.make(name, where=where, **shared)
  if attack.expensive:
    raise ValueError(
      f'{where}: got {name!r}, expected an attack that takes seconds, as '
      "'clean', 'fgsm' or 'pgd_<steps>'"
    )
  _require_any_output(attack, where)
  return attacks.make('clean', **shared), attack


def fit_attack(
  config: ml_collections.ConfigDict, net: nn.Module
) -> EvaluationAttack | None:
  """Returns the attack of the aggregator's fit; None where nothing is fitted.

  Args:
    config: the run's config.
    net: the network of the last stage.

  Raises:
    ValueError: no such attack, or nothing that the fit could use.
  """
  module = net.make_aggregator()
  if module.fit is None or not aggregator_analysis.aggregated(net.outputs):
    return None
  name = config.model.aggregator
  if not config.dataset.validation_size:
    raise ValueError(
      f'config.dataset.validation_size: got 0, expected more: aggregator '
      f'{name!r} is fitted on held-out images'
    )
  if JOINT in config.stages:
    raise ValueError(
      f'config.model.aggregator: got {name!r}, which is fitted to trained '
      f'heads, expected one that trains with them in stage {JOINT!r}'
    )
  where = 'config.model.aggregator_options.attack'
  shared = _shared(completed(config).evaluation)
  attack = attacks.make(module.attack, where=where, **shared)
  _require_any_output(attack, where)
  return _able(attack, net.num_classes, where)


def _shared(spec: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns the arguments of all attacks, each checked."""
  prefix = f'{_WHERE}.autoattack_'
  for output in spec.autoattack_outputs:
    arguments.one_of(f'{prefix}outputs', output, tuple(OUTPUTS))
  return {
    'epsilon': in_unit(spec, 'epsilon', _WHERE),
    'step_size': in_unit(spec, 'step_size', _WHERE),
    'norm': arguments.one_of(f'{_WHERE}.norm', spec.norm, balls.NORMS),
    'restarts': arguments.integer(f'{_WHERE}.restarts', spec.restarts, 1),
    'autoattack_version': arguments.one_of(
      f'{prefix}version', spec.autoattack_version, tuple(checks.VERSIONS)
    ),
    'autoattack_outputs': tuple(spec.autoattack_outputs),
    'autoattack_images': arguments.integer(
      f'{prefix}images', spec.autoattack_images, 0
    ),
    'autoattack_n_iter': arguments.integer(
      f'{prefix}n_iter', spec.autoattack_n_iter, 1
    ),
    'autoattack_queries': arguments.integer(
      f'{prefix}queries', spec.autoattack_queries, 1
    ),
    'autoattack_targets': arguments.integer(
      f'{prefix}targets', spec.autoattack_targets, 1
    ),
    'autoattack_target_order': arguments.one_of(
      f'{prefix}target_order', spec.autoattack_target_order, targets.ORDERS
    ),
    'autoattack_screening': arguments.one_of(
      f'{prefix}screening', spec.autoattack_screening, SCREENINGS
    ),
  }


def _check_randomized(spec: ml_collections.ConfigDict) -> None:
  """Raises ValueError for what a randomised network cannot have."""
  if spec.samples == 1:
    return
  for key, without in (
    ('autoattack_target_order', 'logits'),
    ('audit_malt', False),
  ):
    if spec[key] != without:
      raise ValueError(
        f'{_WHERE}.{key}: got {spec[key]!r} with {spec.samples} samples, '
        f'expected {without!r} for a randomised network'
      )


def _stronger(title: str, radius: float, steps: int, norm: str) -> LogitsAttack:
  """PGD with steps that cross the ball 2.5 times, at another radius."""
  settings = pgd.Settings(
    epsilon=radius,
    # In Linf a step of 1 crosses the whole box.
    step_size=min(2.5 * radius / steps, 1.0 if norm == 'linf' else math.inf),
    steps=steps if radius else 0,
    start_scale=1.0 if radius else 0.0,
  )
  return attacks.gradient(settings, norm=norm, title=title, stream='sweep')


def _sweep(spec: ml_collections.ConfigDict) -> dict[str, LogitsAttack]:
  steps = arguments.integer(f'{_WHERE}.sweep_steps', spec.sweep_steps, 1)
  radii = lengths_255(f'{_WHERE}.sweep_epsilons_255', spec.sweep_epsilons_255)
  return {
    label: _stronger(
      f'sweep_{label.removesuffix("/255")}', radius, steps, spec.norm
    )
    for label, radius in radii.items()
  }


def _loss_by_steps(
  spec: ml_collections.ConfigDict, shared: dict[str, Any]
) -> dict[str, EvaluationAttack]:
  """PGD from one start, cut after so many steps; 0 is the clean image."""
  once = {**shared, 'restarts': 1}
  names = {
    steps: f'pgd_{steps}'
    if arguments.integer(f'{_WHERE}.loss_steps', steps, 0)
    else 'clean'
    for steps in spec.loss_steps
  }
  return {
    str(steps): dataclasses.replace(
      attacks.make(name, **once), title=f'loss_{steps}', stream='loss'
    )
    for steps, name in names.items()
  }


def _audit(
  spec: ml_collections.ConfigDict, shared: dict[str, Any]
) -> AuditPlan:
  steps = arguments.integer(f'{_WHERE}.audit_steps', spec.audit_steps, 1)
  queries = arguments.integer(f'{_WHERE}.audit_queries', spec.audit_queries, 0)
  sweep = _sweep(spec)
  radii = [attack.settings.epsilon for attack in sweep.values()]
  radius = max([LARGEST * shared['epsilon'], *radii])
  if spec.norm == 'linf':
    radius = min(radius, 1.0)
  title = f'sweep_{255 * radius:g}'
  titles = {attack.title: attack for attack in sweep.values()}
  largest = titles.get(title) or _stronger(
    title, radius, spec.sweep_steps, spec.norm
  )
  standard = {
    **shared,
    'autoattack_outputs': (),
    'autoattack_n_iter': attacks.STANDARD['n_iter'],
    'autoattack_queries': attacks.STANDARD['n_queries'],
    'autoattack_targets': attacks.STANDARD['n_targets'],
    'autoattack_screening': attacks.STANDARD['screening'],
  }
  few = {**standard, 'autoattack_queries': queries}
  short = {
    **standard,
    'autoattack_n_iter': steps,
    'autoattack_target_order': 'malt',
  }
  attack = attacks.make(f'pgd_{steps}', **shared)
  margin = attacks.make(f'cw_{steps}', **shared)
  mora = attacks.make(f'mora_{steps}', **shared) if spec.audit_mora else None
  through = (attacks.at_every_point(attack), attacks.at_every_point(margin))
  return AuditPlan(
    attack=attack,
    margin=margin,
    largest=largest,
    largest_epsilon=largest.settings.epsilon,
    square=attacks.make('square', **few) if queries else None,
    mora=mora,
    momentum=attacks.without_heads(mora) if mora else None,
    targeted=attacks.make('apgd-t', **short) if spec.audit_malt else None,
    surrogate=(*through, mora) if mora else through,
  )
