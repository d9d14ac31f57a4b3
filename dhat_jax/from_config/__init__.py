"""From a config to the objects of a run: names and numbers stop here.

Nothing below this package sees a ConfigDict.
"""

from dhat_jax.from_config.check import check
from dhat_jax.from_config.data import (
  digests,
  image_shape,
  load_dataset,
  make_source,
)
from dhat_jax.from_config.evaluation import (
  make_evaluator,
  make_plan,
  validation_attacks,
)
from dhat_jax.from_config.experiment import Experiment, make_experiment
from dhat_jax.from_config.training import (
  find_role,
  make_augmentation,
  make_intervals,
  make_natural,
  make_network,
  make_stage,
)
from dhat_jax.from_config.values import as_json, completed, in_unit

__all__ = [
  'Experiment',
  'as_json',
  'check',
  'completed',
  'digests',
  'find_role',
  'image_shape',
  'in_unit',
  'load_dataset',
  'make_augmentation',
  'make_evaluator',
  'make_experiment',
  'make_intervals',
  'make_natural',
  'make_network',
  'make_plan',
  'make_source',
  'make_stage',
  'validation_attacks',
]
