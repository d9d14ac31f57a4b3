"""Digits: SAT, TRADES and MART x single heads and DH-AT with three aggregators.

    python -m experiments.digits --seeds=0,1,2,3,4

On a CPU, offline. The main head of a DH-AT run is the single head: stage 1
trains it as if there were no other. `mean` is the mean of that run's two heads.
Called again it continues; several calls may make different seeds at the same
time. The table holds what is done.
"""

import argparse
import copy
from collections.abc import Iterator

import ml_collections

from dhat_jax.configs import digits
from dhat_jax.runtime import cli
from experiments import runs
from experiments.runs import Entry, Run

BASES = ('trades', 'sat', 'mart')
SEEDS = (0, 1, 2, 3, 4)
# As many parameters as DH-AT with WRN-10-1 and `pairwise`, to 1 %.
WIDE = 'wrn10_1.53'
IMAGE_SHAPE, NUM_TRAIN = (8, 8, 1), 1309  # 128 of 1,437 are for validation


def make_config(base: str, seed: int, backbone: str = 'wrn10_1'):
  """Returns configs/digits.py with the evaluation of this experiment."""
  config = digits.get_config(f'{base}_{backbone}')
  config.seed = seed
  config.compare_with_natural = False
  evaluate(config.evaluation, ('main', 'mean', 'aggregated'))
  return config


def evaluate(spec: ml_collections.ConfigDict, outputs: tuple[str, ...]) -> None:
  """Sets an evaluation: PGD, CW, the audit, AutoAttack on some outputs.

  AutoAttack is a short one, so that five seeds take an hour and not a day; its
  name in the results says so.
  """
  spec.attacks = ('clean', 'pgd_40', 'cw_40', 'autoattack')
  spec.autoattack_outputs = outputs
  spec.autoattack_n_iter = 20
  spec.autoattack_targets = 3
  spec.autoattack_queries = 200
  spec.audit = True
  spec.audit_queries = 0  # AutoAttack has its own Square
  spec.batch_size = 180


def changed(
  source: ml_collections.ConfigDict, **values
) -> ml_collections.ConfigDict:
  """Returns a copy with other values; keys are dotted, dots as '__'."""
  config = copy.deepcopy(source)
  with config.unlocked(), config.ignore_type():
    config.update_from_flattened_dict(
      {key.replace('__', '.'): value for key, value in values.items()}
    )
  return config


def of_seed(base: str, seed: int) -> Iterator[Entry]:
  """Yields the rows of a base method."""
  dual = Run(f'{base}_{seed}/dual', make_config(base, seed))
  classwise = changed(dual.config, model__aggregator='classwise')
  classwise.evaluation.autoattack_outputs = ('aggregated',)
  classwise = Run(
    f'{base}_{seed}/classwise', classwise, dual, ('main_head', 'second_head')
  )
  wide = changed(make_config(base, seed, WIDE), stages=('main_head',))
  wide.evaluation.autoattack_outputs = ('main',)
  wide = Run(f'{base}_{seed}/wide', wide)
  yield Entry(base, 'single head', seed, dual, 'main')
  yield Entry(base, 'single head, wide', seed, wide, 'main')
  yield Entry(base, 'DH-AT, pairwise', seed, dual, 'aggregated')
  yield Entry(base, 'DH-AT, classwise', seed, classwise, 'aggregated')
  yield Entry(base, 'DH-AT, mean', seed, dual, 'mean')


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
  """Returns the flags; those of the command line by default."""
  parser = runs.flags(__doc__)
  parser.set_defaults(
    seeds=SEEDS,
    workdir='runs/experiments/digits',
    json='docs/results/experiment_digits.json',
  )
  return parser.parse_args(arguments)


def main() -> None:
  """Runs the experiment."""
  options = parse()
  entries = [
    entry
    for seed in (*SEEDS, *(set(options.seeds) - set(SEEDS)))
    for base in BASES
    for entry in of_seed(base, seed)
  ]
  runs.main(
    entries,
    options,
    image_shape=IMAGE_SHAPE,
    num_train=NUM_TRAIN,
    caption={
      'experiment': 'digits',
      'baseline': 'single head',
      'data': "scikit-learn's digits",
    },
  )


if __name__ == '__main__':
  with cli.mistakes_in_one_line():
    main()
