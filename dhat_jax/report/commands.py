"""The commands that measure what a page lacks."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from dhat_jax.report.read import Run
from dhat_jax.report.tables import listed_attacks

# Of the epsilon of a run: what a sweep shows best.
_SWEEP = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0)
_STEPS = (0, 1, 2, 5, 10, 20, 50)


def train(run: Run) -> str:
  """Returns the command that resumes a run up to its evaluation."""
  return _main(run)


def evaluate(run: Run, **options: Any) -> str:
  """Returns the command that evaluates a run again.

  It keeps what the last evaluation changed in the config of the run.

  Args:
    run: a trained one.
    **options: keys of `config.evaluation` and their values.
  """
  changed = {**_changed(run), **options}
  overrides = [
    f'--config.evaluation.{key}={shlex.quote(_literal(value))}'
    for key, value in changed.items()
  ]
  return _main(run, '--mode=evaluate', *overrides)


def sweep(run: Run) -> str:
  """Returns the command that measures accuracy against epsilon."""
  epsilon_255 = 255 * run.results.get('epsilon', 8 / 255)
  return evaluate(
    run,
    sweep_epsilons_255=[round(factor * epsilon_255, 3) for factor in _SWEEP],
  )


def loss_by_steps(run: Run) -> str:
  """Returns the command that measures the loss against attack steps."""
  return evaluate(run, loss_steps=_STEPS)


def audit(run: Run) -> str:
  """Returns the command that audits the final output."""
  return evaluate(run, audit=True)


def autoattack(run: Run) -> str:
  """Returns the command that adds AutoAttack to the attacks of a run."""
  attacks = _evaluation(run.results.get('config')).get('attacks')
  if not attacks:
    attacks = listed_attacks([run])
  return evaluate(run, attacks=[*attacks, 'autoattack'])


def _main(run: Run, *options: str) -> str:
  return ' '.join(
    [
      'python -m dhat_jax.main --config=CONFIG',
      f'--workdir={shlex.quote(run.directory)}',
      *options,
    ]
  )


def _evaluation(config: Mapping[str, Any] | None) -> Mapping[str, Any]:
  return (config or {}).get('evaluation') or {}


def _changed(run: Run) -> dict[str, Any]:
  """Returns where the last evaluation's config differs from the run's."""
  trained = _evaluation(run.config)
  evaluated = _evaluation(run.results.get('config'))
  return {
    key: value
    for key, value in evaluated.items()
    if key in trained and trained[key] != value
  }


def _literal(value: Any) -> str:
  """Formats a value as a flag takes it: a list is a tuple."""
  if isinstance(value, list | tuple):
    items = ','.join(map(json.dumps, value))
    return f'({items},)' if len(value) == 1 else f'({items})'
  return str(value)
