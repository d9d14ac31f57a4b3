"""From a config and its data to a run: everything resolved, not compiled."""

import dataclasses

import jax
import ml_collections

from dhat_jax.datasets import batches
from dhat_jax.datasets.base import Dataset
from dhat_jax.evaluation.evaluator import Evaluator
from dhat_jax.evaluation.plan import Plan
from dhat_jax.from_config import evaluation, training
from dhat_jax.training.loop import Intervals
from dhat_jax.training.stages import Stage

# Which images are held out is the same for every seed of a run.
_HOLD_OUT_SEED = 0


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A run as objects and callables; `run` trains and evaluates it.

  Attributes:
    dataset: the data; a validation split is held out of `train`.
    stages: in the order of training, with batches and validation.
    intervals: when a stage records, saves and validates.
    evaluator: of the last stage's network; it validates all stages too, so
      that nothing compiles twice.
    plan: what the evaluation runs.
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
    evaluator: of another run of the same network, to share what it compiled.

  Raises:
    ValueError: any value that is out of its range.
  """
  net = training.make_network(config)
  evaluator = evaluator or evaluation.make_evaluator(config, net)
  train, held_out = batches.hold_out(
    dataset.train, config.dataset.validation_size, seed=_HOLD_OUT_SEED
  )
  source = training.make_source(config)
  make_batches = source.make_batches or batches.ShuffledSplit
  stages = []
  for name in config.stages:
    stage = training.make_stage(config, name, len(train.labels))
    validation = None
    if held_out is not None:
      validation = training.make_validation(
        evaluator,
        held_out,
        evaluation.validation_attacks(config),
        output=stage.role.output,
        seed=config.seed,
      )
    stages.append(
      dataclasses.replace(
        stage,
        validation=validation,
        source=make_batches(
          train,
          batch_size=stage.batch_size,
          seed=training.order_seed(config.seed, name),
          process_index=jax.process_index(),
          process_count=jax.process_count(),
        ),
      )
    )
  return Experiment(
    dataset=dataset,
    stages=tuple(stages),
    intervals=training.make_intervals(config),
    evaluator=evaluator,
    plan=evaluation.make_plan(config, net),
    seed=config.seed,
  )
