"""What each part of today's recipes gains, alone and together, on the digits.

    python -m experiments.modern --seeds=0,1,2,3,4

TRADES with WRN-10-1, as `experiments.digits` runs it, and one change at a time
in all stages (DKL: in those of the heads). Each run is a single head (stage 1)
and DH-AT with the published aggregator. The generated images are those of
`experiments.generated_digits`, made at the first start. A second group compares
the aggregators of two heads: for MixedNUTS and its control the second head is
trained without attack. The others train single heads for longer.
"""

import argparse
import copy
import os
from typing import Any

import ml_collections

from dhat_jax.configs import recipes
from dhat_jax.runtime import cli
from experiments import digits, generated_digits, runs
from experiments.digits import changed
from experiments.runs import Entry, Run

SEEDS = (0, 1, 2, 3, 4)
# The file of generated images, in the experiment's workdir.
GENERATED = 'generated_digits.npz'
BASELINE = 'TRADES'
# What parts that regularise may need: so many times the epochs.
LONG = (3, 10)
LONG_VARIANTS = (BASELINE, 'together')
AWP = {'weight_perturbation': {'name': 'awp', 'gamma': 0.005, 'start_epoch': 2}}
COSINE = {'schedule': {'name': 'cosine'}}
ONE_CYCLE = {
  'schedule': {'name': 'one_cycle', 'pct_start': 0.2},
  'optimizer': {'nesterov': True},
}
# Over the last 20 of a stage's 80 to 200 steps.
EMA = {'ema_decay': 0.95, 'ema': {'warm_up': True}}
SMOOTHING = {'loss': {'label_smoothing': 0.1}}
SILU = {'backbone_options': {'activation': 'silu'}}
CUTMIX = {'augmentations': ({'name': 'cutmix', 'probability': 0.5},)}
DKL = {'loss': {'name': 'dkl', 'alpha': 4.0, 'beta': 20.0}}
# Variant -> (changes of each stage, of the model, of the data set).
VARIANTS: dict[str, tuple[dict, dict, dict]] = {
  BASELINE: ({}, {}, {}),
  'AWP': (AWP, {}, {}),
  'SAM': ({'weight_perturbation': {'name': 'sam', 'rho': 0.05}}, {}, {}),
  'cosine': (COSINE, {}, {}),
  'one cycle, Nesterov': (ONE_CYCLE, {}, {}),
  'EMA': (EMA, {}, {}),
  'label smoothing': (SMOOTHING, {}, {}),
  'SiLU': ({}, SILU, {}),
  'CutMix': ({}, {}, CUTMIX),
  'generated images': ({}, {}, {'extra': {'fraction': 0.5}}),
  'DKL': (DKL, {}, {}),
  'epsilon ramp': (
    {'attack': {'warmup_epochs': 5.0, 'warmup_per_epoch': True}},
    {},
    {},
  ),
  'attack in batch statistics': ({'attack': {'statistics': 'batch'}}, {}, {}),
  'together': (
    {**AWP, **ONE_CYCLE, **EMA, **SMOOTHING},
    SILU,
    {'extra': {'fraction': 0.5}},
  ),
  # The parts of configs/digits_modern.py.
  'together, no generated images': (
    {**AWP, **ONE_CYCLE, **EMA, **SMOOTHING},
    SILU,
    {},
  ),
}


def _update(node: ml_collections.ConfigDict, values: dict[str, Any]) -> None:
  """Sets values of a node; dicts are merged, a new name drops old options."""
  for key, value in values.items():
    if not isinstance(value, dict):
      node[key] = value
      continue
    if key not in node or (key == 'loss' and 'name' in value):
      node[key] = ml_collections.ConfigDict()
    _update(node[key], value)


def make_config(seed: int, variant: str, root: str):
  """Returns the digits' config with a variant's changes.

  Args:
    seed: of the run.
    variant: key of `VARIANTS`.
    root: the folder of the generated images.
  """
  stage_values, model_values, dataset_values = copy.deepcopy(VARIANTS[variant])
  config = digits.make_config('trades', seed)
  config.evaluation.autoattack_outputs = ('main', 'aggregated')
  if 'extra' in dataset_values:
    dataset_values['extra']['files'] = (os.path.join(root, GENERATED),)
  with config.unlocked(), config.ignore_type():
    for name in config.stages:
      values = dict(stage_values)
      if name == 'aggregator' and 'name' in values.get('loss', {}):
        del values['loss']  # its squares of logits diverge there
      _update(config[name], values)
    _update(config.model, model_values)
    _update(config.dataset, dataset_values)
  return config


def long_config(
  seed: int, variant: str, root: str, times: int
) -> ml_collections.ConfigDict:
  """Returns a variant's single head, trained several times as long."""
  config = changed(make_config(seed, variant, root), stages=('main_head',))
  spec = config.main_head
  spec.epochs *= times
  with config.ignore_type():
    spec.schedule.drop_epochs = tuple(
      1 + times * (epoch - 1) for epoch in spec.schedule.drop_epochs
    )
  config.evaluation.autoattack_outputs = ('main',)
  return config


def aggregator_config(
  source: Run, aggregator: str
) -> ml_collections.ConfigDict:
  """Returns the baseline's config with an aggregator that is fitted."""
  config = recipes.mixed(changed(source.config))
  if aggregator != config.model.aggregator:  # with its own defaults
    config.model.aggregator = aggregator
    with config.unlocked():
      del config.model.aggregator_options
  config.evaluation.autoattack_outputs = ('second', 'aggregated')
  return config


def of_seed(seed: int, root: str) -> list[Entry]:
  """Returns the rows of a seed.

  Args:
    seed: of the runs.
    root: the experiment's workdir, where the generated images are.
  """
  made = {
    variant: Run(f'modern_{seed}/{index:02}', make_config(seed, variant, root))
    for index, variant in enumerate(VARIANTS)
  }
  entries = [
    Entry(group, variant, seed, run, output)
    for group, output in (('single head', 'main'), ('DH-AT', 'aggregated'))
    for variant, run in made.items()
  ]
  entries += [
    Entry(
      f'single head, {times} times the epochs',
      variant,
      seed,
      Run(
        f'modern_{seed}/long_{times}_{list(VARIANTS).index(variant):02}',
        long_config(seed, variant, root, times),
      ),
      'main',
    )
    for times in LONG
    for variant in LONG_VARIANTS
  ]
  plain = made[BASELINE]
  entries += [
    Entry('aggregators', 'pairwise', seed, plain, 'aggregated'),
    Entry('aggregators', 'mean', seed, plain, 'mean'),
  ]
  entries += [
    Entry(
      'aggregators',
      f'{aggregator}, second head without attack',
      seed,
      Run(
        f'modern_{seed}/{aggregator}',
        aggregator_config(plain, aggregator),
        plain,
        ('main_head',),
      ),
      'aggregated',
    )
    for aggregator in ('mixed', 'linear_mix')
  ]
  return entries


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
  """Returns the flags; those of the command line by default."""
  parser = runs.flags(__doc__)
  parser.set_defaults(
    seeds=SEEDS,
    workdir='runs/experiments/modern',
    json='docs/results/experiment_modern.json',
  )
  return parser.parse_args(arguments)


def main() -> None:
  """Runs the experiment."""
  options = parse()
  images = os.path.join(options.workdir, GENERATED)
  if not os.path.exists(images):
    os.makedirs(options.workdir, exist_ok=True)
    generated_digits.write(images)
  runs.main(
    [
      entry
      for seed in dict.fromkeys((*SEEDS, *options.seeds))
      for entry in of_seed(seed, options.workdir)
    ],
    options,
    image_shape=digits.IMAGE_SHAPE,
    num_train=digits.NUM_TRAIN,
    caption={
      'experiment': 'modern',
      'baseline': BASELINE,
      'data': "scikit-learn's digits",
    },
  )


if __name__ == '__main__':
  with cli.mistakes_in_one_line():
    main()
