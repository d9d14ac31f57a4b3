"""The whole evaluation of a network, as results.json holds it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dhat_jax.datasets.base import Split
from dhat_jax.evaluation import (
  aggregator_analysis,
  audit,
  audit_targets,
  best_known,
  judging,
)
from dhat_jax.evaluation.attack_types import EvaluationAttack
from dhat_jax.evaluation.evaluator import Evaluator, Target
from dhat_jax.evaluation.plan import Plan, jobs
from dhat_jax.evaluation.recorder import Records, record_all
from dhat_jax.evaluation.records import (
  SCHEMA_VERSION,
  Record,
  example_places,
)
from dhat_jax.evaluation.schema import Results
from dhat_jax.evaluation.store import Store, digest
from dhat_jax.models.outputs import OUTPUTS, final
from dhat_jax.runtime import devices, provenance


def evaluate(
  evaluator: Evaluator,
  variables: Any,
  split: Split,
  plan: Plan,
  *,
  class_names: tuple[str, ...],
  seed: int,
  directory: str | None = None,
  progress: str | None = None,
) -> Results:
  """Evaluates a network.

  A second call with the same arguments, after a kill, computes only what is
  missing. It returns the same, bit for bit.

  Args:
    evaluator: of the network.
    variables: on the host.
    split: uint8 images; all of them count.
    plan: what to evaluate.
    class_names: K names.
    seed: of all noise.
    directory: where finished records are stored, or None.
    progress: title of a progress bar; None shows none.

  Returns:
    What `docs/results_schema.md` describes: outputs, accuracy, worst_case,
    per_class, confusion, examples and, if planned, autoattack, best_known,
    sweep, loss_by_steps, audit.
  """
  store = Store(directory, _identity(evaluator, variables, split, seed))
  replicated = devices.replicate(variables)
  targets = {o: evaluator.target(replicated, o) for o in evaluator.outputs}
  audited = aggregator_analysis.aggregated(evaluator.outputs)
  todo = jobs(
    plan,
    targets,
    audited=audited,
    bypass=audit_targets.bypass(targets[audited]) if audited else None,
    surrogate=audit_targets.surrogate(targets[audited]) if audited else None,
  )
  records = record_all(
    todo, split, store, seed=seed, plan=plan, progress=progress
  )
  findings = _Findings(
    targets=targets,
    audited=audited,
    split=split,
    plan=plan,
    class_names=class_names,
    store=store,
    records=records,
  )
  return findings.results()


def _identity(
  evaluator: Evaluator, variables: Any, split: Split, seed: int
) -> str:
  """Returns the digest of what all records of an evaluation depend on."""
  return digest(
    {
      'variables': variables,
      'images': split.images,
      'labels': split.labels,
      'net': repr(evaluator.net),
      'batch_size': evaluator.batch_size,
      'seed': seed,
      'versions': provenance.versions(),
      'schema_version': SCHEMA_VERSION,
      **({} if evaluator.samples == 1 else {'samples': evaluator.samples}),
    }
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Findings:
  """The records of an evaluation, put together.

  Attributes:
    targets: {output: target}.
    audited: the output with an aggregator, or None.
    split: the images.
    plan: what was evaluated.
    class_names: K names.
    store: of other computed arrays.
    records: {(target, attack): record}.
  """

  targets: Mapping[str, Target]
  audited: str | None
  split: Split
  plan: Plan
  class_names: tuple[str, ...]
  store: Store
  records: Records

  def results(self) -> Results:
    """Returns the evaluation's part of results.json."""
    results: Results = {
      'outputs': [
        {
          'name': name,
          'label': OUTPUTS[name].label,
          'stage': OUTPUTS[name].stage,
        }
        for name in self.targets
      ],
      'final_output': final(self.targets),
      'accuracy': self._each(self._accuracy),
      'worst_case': self._each(lambda o: float(self._worst(o).mean())),
      'worst_case_images': self._each(lambda o: len(self._worst(o))),
      'per_class': self._each(self._per_class),
      'confusion': self._each(self._confusion),
      'examples': self._examples(),
    }
    details = self._each(self._details)
    if any(details.values()):
      results['autoattack'] = details
    if self._of(final(self.targets), self.plan.clean).correct:
      results['randomized'] = judging.section(
        self.records,
        attacks=self._each(lambda o: list(self._listed(o))),
        audited=self.audited if self.plan.audit else None,
      )
    if self.plan.sweep:
      results['sweep'] = self._each(self._sweep)
    if self.plan.loss_by_steps:
      results['loss_by_steps'] = self._each(self._loss_by_steps)
    if self.audited:
      results['heads'] = self._heads(self.audited)
      if self.plan.audit:
        results['audit'] = self._audit(self.audited)
    best = best_known.report(
      self.plan, self.records, self.split.labels, self.targets
    )
    if best:
      results['best_known'] = best
    return results

  def _each(self, function: Callable[[str], Any]) -> dict[str, Any]:
    return {output: function(output) for output in self.targets}

  def _of(self, output: str, attack: EvaluationAttack) -> Record:
    return self.records[output, attack.name]

  def _listed(self, output: str) -> dict[str, Record]:
    """Returns {attack: record} of the list, clean images first."""
    attacks = (self.plan.clean, *self.plan.against(output))
    return {attack.name: self._of(output, attack) for attack in attacks}

  def _accuracy(self, output: str) -> dict[str, float]:
    return {
      attack.name: float(self._of(output, attack).robust.mean())
      for attack in self.plan.against(output)
    }

  def _worst(self, output: str) -> np.ndarray:
    """Returns which of the images that all attacks saw resist all of them."""
    flags = [record.robust for record in self._listed(output).values()]
    count = min(len(robust) for robust in flags)
    return np.logical_and.reduce([robust[:count] for robust in flags])

  def _per_class(self, output: str) -> dict[str, Any]:
    clean = self._of(output, self.plan.clean).robust
    worst = self._worst(output)
    labels = self.split.labels
    return {
      name: {
        'images': int((labels == index).sum()),
        'clean': _share(clean, labels == index),
        'worst_case': _share(worst, (labels == index)[: len(worst)]),
      }
      for index, name in enumerate(self.class_names)
    }

  def _strongest(self, output: str) -> tuple[str, Record]:
    """Returns (name, record) of the strongest attack that saw all images."""
    whole = {
      name: record
      for name, record in self._listed(output).items()
      if len(record.robust) == len(self.split.labels)
    }
    return min(whole.items(), key=lambda item: item[1].robust.sum())

  def _confusion(self, output: str) -> dict[str, Any]:
    """Counts [label][prediction], clean and under the strongest attack."""
    name, record = self._strongest(output)
    return {
      'clean': self._matrix(self._of(output, self.plan.clean)),
      'attack': name,
      'attacked': self._matrix(record),
    }

  def _matrix(self, record: Record) -> list[list[int]]:
    """Counts [label][prediction]; a prediction of no class has no column."""
    size = len(self.class_names)
    predictions = record.predictions[record.output]
    known = predictions >= 0
    matrix = np.zeros((size, size), int)
    np.add.at(matrix, (self.split.labels[known], predictions[known]), 1)
    return matrix.tolist()

  def _examples(self) -> dict[str, list[int]]:
    """Returns which images the records show, and their labels."""
    places = example_places(len(self.split.labels))
    labels = [int(self.split.labels[place]) for place in places]
    return {'places': places, 'labels': labels}

  def _details(self, output: str) -> dict[str, Any]:
    """Returns AutoAttack's accuracies after each of its attacks, and more."""
    details = {
      attack.name: attack.details(self._of(output, attack))
      for attack in self.plan.against(output)
    }
    return {name: more for name, more in details.items() if more is not None}

  def _sweep(self, output: str) -> dict[str, float]:
    return {
      radius: float(self._of(output, attack).robust.mean())
      for radius, attack in self.plan.sweep.items()
    }

  def _loss_by_steps(self, output: str) -> dict[str, list[float]]:
    records = {
      steps: self._of(output, attack)
      for steps, attack in self.plan.loss_by_steps.items()
    }
    return {
      steps: [float(record.losses.mean()), float(record.robust.mean())]
      for steps, record in records.items()
    }

  def _heads(self, output: str) -> dict[str, Any]:
    """Returns how the aggregated output uses the heads."""
    name, record = self._strongest(output)
    clean = self.plan.clean
    shown = {clean.name: self._of(output, clean), name: record}
    labels = self.split.labels
    target = self.targets[output]
    fitted = aggregator_analysis.fitted(target.evaluator.net, target.variables)
    return {
      'influence': self._influence(output),
      'agreement': {
        name: aggregator_analysis.agreement(record.predictions, labels)
        for name, record in shown.items()
      },
      **({'fitted': fitted} if fitted else {}),
    }

  def _influence(self, output: str) -> dict[str, list[float]]:
    target = self.targets[output]
    influence = self.store.get(
      'influence',
      {'images': aggregator_analysis.IMAGES},
      lambda: aggregator_analysis.influence_of(target, self.split),
    )
    return {head: values.tolist() for head, values in influence.items()}

  def _audit(self, output: str) -> dict[str, Any]:
    target = self.targets[output]
    sizes = self.store.get(
      f'{output}/gradient_sizes',
      None,
      lambda: {'sizes': audit.gradient_sizes(target, self.split)},
    )['sizes']
    return audit.report(
      self.plan.audit,
      self.records,
      self.split.labels,
      output=output,
      gradient_sizes=sizes,
      num_classes=len(self.class_names),
    )


def _share(flags: np.ndarray, chosen: np.ndarray) -> float | None:
  return float(flags[chosen].mean()) if chosen.any() else None
