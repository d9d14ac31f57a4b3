"""The whole evaluation of a network: what results.json holds of it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from dhat_jax.datasets.base import Split
from dhat_jax.evaluation import aggregator_analysis, audit
from dhat_jax.evaluation.audit import AuditPlan
from dhat_jax.evaluation.ensemble import Ensemble
from dhat_jax.evaluation.evaluator import Attack, Evaluator, output_names, table
from dhat_jax.evaluation.parts import Parts, example_places
from dhat_jax.runtime import devices
from dhat_jax.training import metrics


@dataclasses.dataclass(frozen=True)
class Plan:
  """What to evaluate.

  Attributes:
    clean: the images as they are.
    attacks: made against each output.
    sweep: {radius, as text: attack}.
    loss_by_steps: {number of steps, as text: attack}.
    audit: of the aggregated output, or None.
    export_images: whether to write the adversarial images of `attacks`.
  """

  clean: Attack
  attacks: tuple[Attack | Ensemble, ...]
  sweep: Mapping[str, Attack] = dataclasses.field(default_factory=dict)
  loss_by_steps: Mapping[str, Attack] = dataclasses.field(default_factory=dict)
  audit: AuditPlan | None = None
  export_images: bool = False

  def of_output(self, output: str) -> list[Attack | Ensemble]:
    """Returns the attacks that are made against an output."""
    return [
      attack
      for attack in self.attacks
      if not isinstance(attack, Ensemble)
      or not attack.outputs
      or output in attack.outputs
    ]

  def num_gradient_attacks(self, num_outputs: int) -> int:
    """Returns how many calls of gradient attacks the suite makes."""
    plain = [a for a in self.attacks if not isinstance(a, Ensemble)]
    extra = (*self.sweep.values(), *self.loss_by_steps.values())
    one = len({self.clean, *plain, *extra})  # each is made once
    return num_outputs * one + (7 if self.audit else 0)


def run(
  evaluator: Evaluator,
  variables: Any,
  split: Split,
  plan: Plan,
  *,
  class_names: tuple[str, ...],
  seed: int,
  directory: str | None = None,
  progress: str | None = None,
) -> dict[str, Any]:
  """Evaluates a network.

  Called again with the same arguments after being killed it makes only what is
  missing, and returns the same, bit for bit.

  Args:
    evaluator: of the network.
    variables: on the host.
    split: the images; all of them count.
    plan: what to evaluate.
    class_names: K names.
    seed: of all noise.
    directory: where finished parts are kept, or None.
    progress: title of a progress bar, or None for none.

  Returns:
    What `docs/results_schema.md` describes: accuracy, worst_case, per_class,
    confusion, and, if planned, autoattack, sweep, loss_by_steps, audit.
  """
  outputs = output_names(evaluator.net)
  audited = plan.audit is not None and 'aggregated' in outputs
  plan = dataclasses.replace(plan, audit=plan.audit if audited else None)
  names = [attack.name for attack in plan.attacks]
  silent = progress is None or not devices.is_first()
  total = plan.num_gradient_attacks(len(outputs)) * evaluator.num_batches(split)
  with metrics.progress_bar(
    progress or '', total, 0, unit='batch', disable=silent
  ) as bar:
    parts = Parts(
      evaluator,
      variables,
      split,
      seed=seed,
      directory=directory,
      export=names if plan.export_images else (),
      bar=None if silent else bar,
    )
    return _evaluate(parts, plan, outputs, class_names)


def _evaluate(parts, plan, outputs, class_names) -> dict[str, Any]:
  """Makes all parts, the cheap ones first, and puts them together."""
  for kind in (Attack, Ensemble):
    for output in outputs:
      for attack in (plan.clean, *plan.of_output(output)):
        if isinstance(attack, kind):
          parts.get(output, attack)
    if kind is Attack:
      extra = _extra(parts, plan, outputs)

  def each(function, *args):
    return {output: function(parts, plan, output, *args) for output in outputs}

  results = {
    'accuracy': each(_accuracy),
    'worst_case': each(lambda *args: float(_worst(*args).mean())),
    'worst_case_images': each(lambda *args: len(_worst(*args))),
    'per_class': each(_per_class, class_names),
    'confusion': each(_confusion, len(class_names)),
  }
  results['examples'] = _examples(parts)
  if 'aggregated' in outputs:
    results['heads'] = _heads(parts, plan)
  if any(isinstance(attack, Ensemble) for attack in plan.attacks):
    results['autoattack'] = each(_ensembles)
  return results | extra


def _extra(parts, plan, outputs) -> dict[str, Any]:
  """What is not made by the attacks of the list."""
  results = {}
  if plan.sweep:
    results['sweep'] = {
      output: {
        radius: float(parts.get(output, attack)['robust'].mean())
        for radius, attack in plan.sweep.items()
      }
      for output in outputs
    }
  if plan.loss_by_steps:
    results['loss_by_steps'] = {
      output: {
        steps: _loss_and_accuracy(parts.get(output, attack))
        for steps, attack in plan.loss_by_steps.items()
      }
      for output in outputs
    }
  if plan.audit is not None:
    results['audit'] = audit.run(parts, plan.audit)
  return results


def _loss_and_accuracy(part) -> list[float]:
  return [float(part['losses'].mean()), float(part['robust'].mean())]


def _accuracy(parts, plan, output) -> dict[str, float]:
  return {
    attack.name: float(parts.get(output, attack)['robust'].mean())
    for attack in plan.of_output(output)
  }


def _worst(parts, plan, output) -> np.ndarray:
  """Which images resist all attacks, of those that all attacks saw."""
  flags = [
    parts.get(output, attack)['robust']
    for attack in (plan.clean, *plan.of_output(output))
  ]
  count = min(len(robust) for robust in flags)
  return np.logical_and.reduce([robust[:count] for robust in flags])


def _per_class(parts, plan, output, class_names) -> dict[str, Any]:
  clean = parts.get(output, plan.clean)['robust']
  worst = _worst(parts, plan, output)
  labels = parts.split.labels
  return {
    name: {
      'images': int((labels == index).sum()),
      'clean': _share(clean, labels == index),
      'worst_case': _share(worst, (labels == index)[: len(worst)]),
    }
    for index, name in enumerate(class_names)
  }


def _share(flags, chosen) -> float | None:
  return float(flags[chosen].mean()) if chosen.any() else None


def _strongest(parts, plan, output) -> tuple[str, Any]:
  """Returns (name, part) of the strongest attack that saw all images."""
  found = {
    attack.name: parts.get(output, attack)
    for attack in (plan.clean, *plan.of_output(output))
  }
  whole = {
    name: part
    for name, part in found.items()
    if len(part['robust']) == len(parts.split.labels)
  }
  return min(whole.items(), key=lambda item: item[1]['robust'].sum())


def _confusion(parts, plan, output, num_classes) -> dict[str, Any]:
  """Counts [label][prediction], clean and under the strongest attack."""
  name, part = _strongest(parts, plan, output)

  def count(part):
    matrix = np.zeros((num_classes, num_classes), int)
    predictions = part[f'{output}_predictions']
    np.add.at(matrix, (parts.split.labels, predictions), 1)
    return matrix.tolist()

  return {
    'clean': count(parts.get(output, plan.clean)),
    'attack': name,
    'attacked': count(part),
  }


def _examples(parts) -> dict[str, list[int]]:
  """Which images the parts keep, and their labels."""
  places = example_places(len(parts.split.labels))
  labels = [int(parts.split.labels[place]) for place in places]
  return {'places': places, 'labels': labels}


def _heads(parts, plan) -> dict[str, Any]:
  """What the aggregated output makes of the heads."""
  name, part = _strongest(parts, plan, 'aggregated')
  shown = {plan.clean.name: parts.get('aggregated', plan.clean), name: part}
  return {
    'influence': {
      head: [float(value) for value in values]
      for head, values in parts.influence().items()
    },
    'agreement': {
      name: aggregator_analysis.agreement(
        {
          output: part[f'{output}_predictions']
          for output in (*aggregator_analysis.HEADS, 'aggregated')
        },
        parts.split.labels,
      )
      for name, part in shown.items()
    },
  }


def _ensembles(parts, plan, output) -> dict[str, Any]:
  """Accuracy after each attack of each ensemble, and its warnings."""
  return {
    attack.name: _ensemble(parts.get(output, attack), attack)
    for attack in plan.of_output(output)
    if isinstance(attack, Ensemble)
  }


def _ensemble(part, ensemble) -> dict[str, Any]:
  return {
    'images': len(part['robust']),
    'epsilon': ensemble.epsilon,
    'not_standard': ensemble.budget,
    'accuracy_after': {
      name.removeprefix('flags/'): float(flags.mean())
      for name, flags in part.items()
      if name.startswith('flags/')
    },
    'warnings': part['warnings'].tolist(),
  }


def summary(results: Mapping[str, Any]) -> str:
  """Formats the accuracies, and the audit's red flags, for the console."""
  accuracy = {
    output: {**row, 'worst case': results['worst_case'][output]}
    for output, row in results['accuracy'].items()
  }
  lines = [table(accuracy)]
  if 'audit' in results:
    found = results['audit']['flags']
    lines += [
      '',
      'audit of the aggregated output: '
      + (f'{len(found)} RED FLAGS' if found else 'no red flag'),
    ]
    lines += [
      f'  RED FLAG {flag["name"]}: {flag["sentence"]}' for flag in found
    ]
  return '\n'.join(lines)
