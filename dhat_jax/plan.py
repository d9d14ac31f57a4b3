"""Turns `config.evaluation` into what the evaluation runs."""

import re

import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from dhat_jax.attacks import balls, pgd
from dhat_jax.attacks.autoattack import checks
from dhat_jax.evaluation.audit import AuditPlan
from dhat_jax.evaluation.ensemble import Ensemble
from dhat_jax.evaluation.evaluator import Attack, Evaluator, output_names
from dhat_jax.evaluation.results import Plan
from dhat_jax.options import at_least, choose, in_unit, lengths_255

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
# A radius from which on nothing may stay robust, in radii of the evaluation.
LARGEST = 4


def evaluator(config: ml_collections.ConfigDict, net: nn.Module) -> Evaluator:
  """Returns the evaluator of a network, in the evaluation's precision."""
  spec = config.evaluation
  return Evaluator(
    net.clone(
      dtype=choose('config.evaluation.dtype', spec.dtype, DTYPES),
      axis_name=None,
    ),
    norm=choose('config.evaluation.norm', spec.norm, balls.NORMS),
    batch_size=at_least('config.evaluation.batch_size', spec.batch_size),
  )


def gradient_attack(name: str, spec: ml_collections.ConfigDict) -> Attack:
  """Returns an attack by name: 'clean', 'fgsm', 'pgd_<k>' or 'cw_<k>'.

  `pgd` ascends the cross entropy and `cw` the margin, k steps from a random
  start; `fgsm` is one step of epsilon from the clean image.

  Raises:
    ValueError: no such name.
  """
  radius = in_unit(spec, 'epsilon')
  if name in ('clean', 'fgsm'):
    length = radius if name == 'fgsm' else 0.0
    settings = pgd.Settings(
      epsilon=length,
      step_size=length,
      steps=int(name == 'fgsm'),
      restarts=1,
      start_scale=0.0,
    )
    return Attack(name, settings)
  match = re.fullmatch(r'(pgd|cw)_([1-9]\d*)', name)
  if not match:
    raise ValueError(
      f'config.evaluation.attacks: got {name!r}, choices are '
      "'clean', 'fgsm', 'pgd_<steps>' and 'cw_<steps>', as in 'pgd_40', "
      f"'autoattack' and its {checks.NAMES}"
    )
  settings = pgd.Settings(
    epsilon=radius,
    step_size=in_unit(spec, 'step_size'),
    steps=int(match[2]),
    restarts=at_least('config.evaluation.restarts', spec.restarts),
    start_scale=1.0,
    objective=list(pgd.OBJECTIVES).index(
      {'pgd': 'cross_entropy', 'cw': 'margin'}[match[1]]
    ),
  )
  return Attack(name, settings)


def _ensemble(name: str, spec: ml_collections.ConfigDict) -> Ensemble:
  """Returns AutoAttack, or one of its attacks, with the config's budget."""
  own = 'config.evaluation.autoattack_'
  whole = name == 'autoattack'
  version = choose(
    f'{own}version', spec.autoattack_version, tuple(checks.VERSIONS)
  )
  radius = in_unit(spec, 'epsilon')
  return Ensemble(
    title=name,
    epsilon=radius,
    version=version if whole else 'custom',
    attacks=() if whole else (name,),
    n_iter=at_least(f'{own}n_iter', spec.autoattack_n_iter),
    n_queries=at_least(f'{own}queries', spec.autoattack_queries),
    n_targets=at_least(f'{own}targets', spec.autoattack_targets),
    num_images=at_least(f'{own}images', spec.autoattack_images, 0),
    outputs=tuple(spec.autoattack_outputs),
  )


def _stronger(name, radius, steps, stream) -> Attack:
  """PGD with steps that cross the ball 2.5 times, at another radius."""
  return Attack(
    name,
    pgd.Settings(
      epsilon=radius,
      step_size=2.5 * radius / steps,
      steps=steps if radius else 0,
      start_scale=1.0 if radius else 0.0,
    ),
    stream,
  )


def _sweep(spec: ml_collections.ConfigDict) -> dict[str, Attack]:
  name = 'config.evaluation.sweep_'
  steps = at_least(f'{name}steps', spec.sweep_steps)
  radii = lengths_255(f'{name}epsilons_255', spec.sweep_epsilons_255)
  return {
    label: _stronger(
      f'sweep_{label.removesuffix("/255")}', radius, steps, 'sweep'
    )
    for label, radius in radii.items()
  }


def _loss_by_steps(spec: ml_collections.ConfigDict) -> dict[str, Attack]:
  """PGD from one start, cut after so many steps; 0 is the clean image."""
  clean = gradient_attack('clean', spec).settings
  longest = gradient_attack('pgd_1', spec).settings._replace(restarts=1)
  return {
    str(steps): Attack(
      f'loss_{steps}',
      longest._replace(steps=steps)
      if at_least('config.evaluation.loss_steps', steps, 0)
      else clean,
      'loss',
    )
    for steps in spec.loss_steps
  }


def _audit(spec: ml_collections.ConfigDict) -> AuditPlan | None:
  if not spec.audit:
    return None
  steps = at_least('config.evaluation.audit_steps', spec.audit_steps)
  queries = at_least('config.evaluation.audit_queries', spec.audit_queries, 0)
  radius = in_unit(spec, 'epsilon')
  sweep = _sweep(spec)
  radii = [attack.settings.epsilon for attack in sweep.values()]
  largest = max([LARGEST * radius, *radii])
  if spec.norm == 'linf':
    largest = min(largest, 1.0)
  name = f'sweep_{255 * largest:g}'
  square = _ensemble('square', spec)
  return AuditPlan(
    attack=gradient_attack(f'pgd_{steps}', spec),
    margin=gradient_attack(f'cw_{steps}', spec),
    largest=_stronger(name, largest, spec.sweep_steps, 'sweep'),
    square=_with_queries(square, queries) if queries else None,
  )


def _with_queries(square: Ensemble, queries: int) -> Ensemble:
  return Ensemble(
    title='square',
    epsilon=square.epsilon,
    version='custom',
    attacks=('square',),
    n_queries=queries,
    num_images=square.num_images,
  )


def evaluation(config: ml_collections.ConfigDict, net: nn.Module) -> Plan:
  """Returns all that a network's evaluation runs.

  Args:
    config: the run's config.
    net: the network, for the names of its outputs.

  Raises:
    ValueError: any value that is out of its range.
  """
  spec = config.evaluation
  _ensemble('autoattack', spec)  # mistakes show even if it does not run
  names = tuple(spec.attacks)
  if not names or len(set(names)) < len(names):
    raise ValueError(
      f'config.evaluation.attacks: got {names}, expected different names'
    )
  known = ('main', 'second', 'mean', 'aggregated')
  for output in spec.autoattack_outputs:
    choose('config.evaluation.autoattack_outputs', output, known)
  ensembles = ('autoattack', *checks.NAMES)
  return Plan(
    clean=gradient_attack('clean', spec),
    attacks=tuple(
      (_ensemble if name in ensembles else gradient_attack)(name, spec)
      for name in names
    ),
    sweep=_sweep(spec),
    loss_by_steps=_loss_by_steps(spec),
    audit=_audit(spec) if 'aggregated' in output_names(net) else None,
    export_images=spec.export_images,
  )


def validation_attacks(config: ml_collections.ConfigDict) -> list[Attack]:
  """Returns 'clean' and the attack that model selection is made by."""
  names = ('clean', config.validation.attack)
  return [gradient_attack(name, config.evaluation) for name in names]
