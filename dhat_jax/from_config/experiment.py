"""From a config and its data to a run: everything resolved, uncompiled."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np

from dhat_jax.datasets import batches
from dhat_jax.datasets.base import Dataset, Split
from dhat_jax.evaluation import validation
from dhat_jax.evaluation.attack_types import EvaluationAttack
from dhat_jax.evaluation.evaluator import Evaluator
from dhat_jax.evaluation.fit import AggregatorFit
from dhat_jax.evaluation.plan import Plan
from dhat_jax.from_config import data, evaluation, training
from dhat_jax.models.outputs import OUTPUTS
from dhat_jax.runtime import streams
from dhat_jax.training.loop import Intervals
from dhat_jax.training.stages import Fitted, Stage, Validation

# Which images are held out is the same for every seed of a run.
_HOLD_OUT_SEED = 0


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A run as objects and callables; `run` trains and evaluates it.

  Attributes:
    dataset: the data; a validation split is held out of `train`.
    stages: in the order of training, with batches and validation.
    intervals: when a stage records, saves and validates.
    evaluator: of the last stage's network. It also validates all stages, so
      nothing compiles twice.
    plan: the jobs of the evaluation.
    seed: of all noise.
  """

  dataset: Dataset
  stages: tuple[Stage, ...]
  intervals: Intervals
  evaluator: Evaluator
  plan: Plan
  seed: int

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(H, W, C) of the images."""
    return self.dataset.train.images.shape[1:]


def make_validation(
  evaluator: Evaluator,
  split: Split,
  attacks: tuple[EvaluationAttack, EvaluationAttack],
  *,
  output: str,
  seed: int,
) -> Validation:
  """Returns the validation of a stage.

  Args:
    evaluator: of the run's network.
    split: the held-out images.
    attacks: (the clean images, the attack that selects the best checkpoint).
    output: the output that the stage trains.
    seed: of the attack's noise.
  """
  clean, attack = attacks
  scores = validation.Validation(
    evaluator=evaluator, output=output, clean=clean, attack=attack, seed=seed
  )

  def judge(variables):
    accuracies, images, images_adv = scores.judge(variables, split, shown=8)
    return accuracies, {
      'images/clean': images,
      'images/attacked': images_adv,
      # Gray where nothing is changed.
      'images/change': 0.5 + 5 * (images_adv - images),
    }

  return Validation(judge=judge)


def make_fit(fit: AggregatorFit, split: Split) -> Callable[[Any], Fitted]:
  """Returns the fit of a stage: replicated variables -> `Fitted`.

  Args:
    fit: of the aggregator.
    split: the held-out images.
  """

  def fitted(variables):
    result = fit(variables, split)
    # float32 scalars, as the aggregator's initial ones.
    params = jax.tree.map(np.float32, result.params)
    return Fitted({fit.part: params}, {**result.params, **result.numbers})

  return fitted


def order_seed(seed: int, stage: str) -> int | tuple[int, int]:
  """Returns the seed of a stage's batches, whose order differs by stage."""
  # The stages that had a place in a table keep the order that it gave them.
  numbered = ('main_head', 'second_head', 'aggregator', 'joint')
  if stage in numbered:
    return seed * len(numbered) + numbered.index(stage)
  return seed, streams.number(f'order/{stage}')


def make_experiment(
  config: ml_collections.ConfigDict,
  dataset: Dataset,
  *,
  evaluator: Evaluator | None = None,
) -> Experiment:
  """Resolves a config on its data.

  Args:
    config: the run's config, checked.
    dataset: of `load_dataset`.
    evaluator: of another run of the same network, to share its compilations.

  Raises:
    ValueError: any value that is out of its range.
  """
  net = training.make_network(config)
  evaluator = evaluator or evaluation.make_evaluator(config, net)
  train, held_out = batches.hold_out(
    dataset.train, config.dataset.validation_size, seed=_HOLD_OUT_SEED
  )
  make_batches = data.batch_maker(config, dataset)
  attack = evaluation.fit_attack(config, net)
  stages = []
  for name in config.stages:
    training.check_batch_size(config, name, len(train.labels))
    batch_source = make_batches(
      train,
      batch_size=config[name].batch_size,
      seed=order_seed(config.seed, name),
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    stage = training.make_stage(
      config,
      name,
      len(train.labels),
      steps_per_epoch=batch_source.steps_per_epoch,
    )
    judge = None
    if held_out is not None:
      judge = make_validation(
        evaluator,
        held_out,
        evaluation.validation_attacks(config),
        output=stage.role.output,
        seed=config.seed,
      )
    stage = dataclasses.replace(stage, validation=judge, source=batch_source)
    if attack is not None and OUTPUTS[stage.role.output].aggregates:
      fit = AggregatorFit(
        evaluator=evaluator,
        output=stage.role.output,
        attack=attack,
        seed=config.seed,
      )
      stage = dataclasses.replace(stage, fit=make_fit(fit, held_out))
    stages.append(stage)
  return Experiment(
    dataset=dataset,
    stages=tuple(stages),
    intervals=training.make_intervals(config),
    evaluator=evaluator,
    plan=evaluation.make_plan(config, net),
    seed=config.seed,
  )
