"""The table of evaluation attacks, by name.

A new attack is a factory that is registered under a name, which
`config.evaluation.attacks` gives. It appears in results.json, in the worst case
and in the report like all others:

    @attacks.register('momentum_<steps>')
    def momentum(*, steps, epsilon, step_size):
      def fn(logits_fn, images, labels, rngs):
        ...
        return robust, images_adv

      return attacks.on_logits(fn)
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import chex
import jax
import numpy as np

from dhat_jax import arguments
from dhat_jax.attacks import mora, pgd
from dhat_jax.attacks.autoattack import checks
from dhat_jax.attacks.autoattack.ensemble import autoattack
from dhat_jax.datasets.base import Split
from dhat_jax.evaluation import heads, user_code
from dhat_jax.evaluation.attack_types import (
  STANDARD,
  EnsembleAttack,
  EvaluationAttack,
  LogitsAttack,
)
from dhat_jax.evaluation.evaluator import Target
from dhat_jax.registry import Registry

# What every factory may take: the config's evaluation says it for all attacks.
SHARED = (
  'epsilon',
  'step_size',
  'norm',
  'restarts',
  'autoattack_version',
  'autoattack_outputs',
  'autoattack_images',
  'autoattack_n_iter',
  'autoattack_queries',
  'autoattack_targets',
  'autoattack_target_order',
  'autoattack_screening',
)
EVALUATION_ATTACKS = Registry('evaluation attack', shared=SHARED)
register = EVALUATION_ATTACKS.register
# Attacks by what they were made of: asked for again, they compile nothing.
_MADE: dict[Any, EvaluationAttack] = {}


def on_logits(
  function: Callable, settings: Any = None, **fields: Any
) -> LogitsAttack:
  """Returns the evaluation attack of a batch function.

  Args:
    function: (logits_fn, images, labels, rngs) -> (robust, images_adv). With
      `settings`, these are a fifth argument; see `LogitsAttack`.
    settings: a tree of traced numbers; several attacks then share one
      compilation.
    **fields: other attributes of `LogitsAttack`.
  """
  if settings is not None:
    return LogitsAttack(function=function, settings=settings, **fields)

  def without_settings(logits_fn, images, labels, rngs, settings):
    del settings
    return function(logits_fn, images, labels, rngs)

  return LogitsAttack(function=without_settings, **fields)


def make(name: str, *, where: str = '', **shared: Any) -> EvaluationAttack:
  """Returns an attack by name.

  Args:
    name: as in `config.evaluation.attacks`.
    where: what gave the name, for errors.
    **shared: values for `SHARED`; a factory gets those that it takes.

  Raises:
    ValueError: no such name, or a value that the attack refuses.
  """
  factory, _ = EVALUATION_ATTACKS.find(name, where)
  key = (name, factory, tuple(sorted(shared.items())))
  if key not in _MADE:
    attack = EVALUATION_ATTACKS.make(name, where=where, **shared)
    made_of = attack.made_of
    if made_of is None:
      made_of = _made_of(name, factory, shared)
    _MADE[key] = dataclasses.replace(attack, title=name, made_of=made_of)
  return _MADE[key]


def _made_of(
  name: str, factory: Callable, shared: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the arguments and the code of a user's attack."""
  _, numbers = EVALUATION_ATTACKS.find(name)
  taken = inspect.signature(factory).parameters
  return {
    **{key: value for key, value in shared.items() if key in taken},
    **numbers,
    'text': user_code.code_of(factory),
  }


# Clean images, FGSM, PGD and CW: one function, so that they compile once.


@functools.cache
def _gradient_function(norm: str, every_point: bool) -> Callable:
  return pgd.make_evaluation_attack(
    objective=None, norm=norm, every_point=every_point
  )


def gradient(settings: pgd.Settings, *, norm: str, **fields) -> LogitsAttack:
  """Returns a gradient attack; all of one norm share one compilation.

  Args:
    settings: of `pgd.make_evaluation_attack`.
    norm: 'linf' or 'l2'.
    **fields: other attributes of `LogitsAttack`.

  Raises:
    ValueError: a number out of its range.
  """
  return LogitsAttack(
    function=_gradient_function(norm, every_point=False),
    settings=pgd.check_settings(settings, norm),
    made_of={'gradient': norm},
    **fields,
  )


def at_every_point(attack: LogitsAttack) -> LogitsAttack:
  """Returns a gradient attack that succeeds if any of its points does.

  For networks whose gradient is that of a surrogate, so that the last point
  need not be the best one.

  Args:
    attack: from `gradient`.
  """
  norm = attack.made_of['gradient']
  return dataclasses.replace(
    attack,
    function=_gradient_function(norm, every_point=True),
    made_of={**attack.made_of, 'every_point': True},
  )


@register('clean')
def clean(*, norm: str) -> LogitsAttack:
  """The images as they are."""
  return _one_step(0.0, 0, norm)


@register('fgsm')
def fgsm(*, epsilon: float, norm: str) -> LogitsAttack:
  """One step of epsilon from the clean image (Goodfellow et al. 2015)."""
  return _one_step(epsilon, 1, norm)


def _one_step(length: float, steps: int, norm: str) -> LogitsAttack:
  settings = pgd.Settings(length, length, steps, start_scale=0.0)
  return gradient(settings, norm=norm)


@register('pgd_<steps>')
def projected_gradient(
  *, steps: int, epsilon: float, step_size: float, restarts: int, norm: str
) -> LogitsAttack:
  """Ascent on the cross entropy from a random start (Madry et al. 2018)."""
  return _ascent('cross_entropy', steps, epsilon, step_size, restarts, norm)


@register('cw_<steps>')
def carlini_wagner(
  *, steps: int, epsilon: float, step_size: float, restarts: int, norm: str
) -> LogitsAttack:
  """Ascent on the margin from a random start (Carlini & Wagner 2017)."""
  return _ascent('margin', steps, epsilon, step_size, restarts, norm)


def _ascent(
  objective: str,
  steps: int,
  epsilon: float,
  step_size: float,
  restarts: int,
  norm: str,
) -> LogitsAttack:
  settings = pgd.Settings(
    epsilon=epsilon,
    step_size=step_size,
    steps=_whole(steps),
    restarts=restarts,
    start_scale=1.0,
    objective=tuple(pgd.OBJECTIVES).index(objective),
  )
  return gradient(settings, norm=norm)


def _whole(steps: float) -> int:
  if steps != int(steps) or not 1 <= steps <= arguments.LARGEST_INTEGER:
    raise ValueError(
      f'got {steps} steps, expected a whole number from 1 to '
      f'{arguments.LARGEST_INTEGER}'
    )
  return steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadsAttack(LogitsAttack):
  """A batch function that gets logits [B, 2 + H, K]; see `heads.WithHeads`."""

  outputs: tuple[str, ...] = heads.MERGED

  def batches(
    self, target: Target, split: Split, rng: chex.PRNGKey
  ) -> Iterator[tuple[np.ndarray, jax.Array]]:
    """Yields (robust [B], images_adv [D, B / D, ...]) of padded batches."""
    net = heads.WithHeads(target.net, target.evaluator.net, target.output)
    return super().batches(dataclasses.replace(target, net=net), split, rng)


def needs_heads(attack: EvaluationAttack) -> bool:
  """Returns whether it only attacks outputs that are made of heads."""
  return isinstance(attack, HeadsAttack)


_mora_function = functools.cache(mora.make_evaluation_attack)


@register('mora_<steps>')
def reweighted(*, steps: int, epsilon: float, norm: str) -> HeadsAttack:
  """MORA, on outputs made of heads, which it weighs anew (Yu et al. 2022)."""
  settings = mora.Settings(epsilon=epsilon, steps=_whole(steps))
  return HeadsAttack(
    function=_mora_function(norm),
    settings=mora.check_settings(settings, norm),
    made_of={'mora': norm},
  )


def without_heads(attack: HeadsAttack) -> HeadsAttack:
  """Returns MORA's control: as many runs and steps, on the output alone.

  Whatever MORA breaks beyond it, it owes to the heads.

  Args:
    attack: MORA.
  """
  settings = attack.settings
  return dataclasses.replace(
    attack,
    title=f'{attack.title}_control',
    settings=settings._replace(shares=(0.0,) * len(settings.shares)),
    stream=attack.title,
  )


@register('autoattack')
def whole_autoattack(
  *,
  epsilon: float,
  norm: str,
  autoattack_version: str = 'standard',
  autoattack_outputs: tuple[str, ...] = (),
  autoattack_images: int = 0,
  autoattack_n_iter: int = STANDARD['n_iter'],
  autoattack_queries: int = STANDARD['n_queries'],
  autoattack_targets: int = STANDARD['n_targets'],
  autoattack_target_order: str = STANDARD['target_order'],
  autoattack_screening: str = STANDARD['screening'],
) -> EnsembleAttack:
  """AutoAttack (Croce & Hein 2020)."""
  return EnsembleAttack(
    function=autoattack,
    epsilon=epsilon,
    norm=norm,
    version=autoattack_version,
    outputs=tuple(autoattack_outputs),
    first=autoattack_images,
    n_iter=autoattack_n_iter,
    n_queries=autoattack_queries,
    n_targets=autoattack_targets,
    target_order=autoattack_target_order,
    screening=autoattack_screening,
  )


def _register_alone(name: str) -> None:
  """Registers one attack of AutoAttack, with one restart."""
  runs = ', with one restart'
  if name == 'square':
    runs = ''
  elif name.endswith('-t'):
    runs = ', with one run for each target class'

  @register(name)
  @functools.wraps(whole_autoattack)
  def alone(**options) -> EnsembleAttack:
    options.pop('autoattack_version', None)
    if name != 'apgd-t':
      options.pop('autoattack_target_order', None)
    whole = whole_autoattack(**options)
    return dataclasses.replace(whole, version='custom', attacks=(name,))

  alone.__doc__ = f'{name} of AutoAttack alone{runs}.'


for _name in checks.NAMES:
  _register_alone(_name)
