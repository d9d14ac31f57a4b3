"""DH-AT on scikit-learn's handwritten digits: minutes on a CPU, offline.

python -m dhat_jax.main --config=configs/digits.py --workdir=runs/digits
"""

from ml_collections import ConfigDict

from configs import recipes


def get_config(variant: str = 'trades_wrn10_1') -> ConfigDict:
  """Returns the config of a variant, `<base>_<backbone>`."""
  base, backbone = recipes.split_variant(variant)
  attack = recipes.attack(
    epsilon=0.15,
    step_size=0.03,
    start='uniform' if base == 'sat' else 'gaussian',
  )
  main, second, aggregated = recipes.losses(base, backbone)
  common = {
    'attack': attack,
    'weight_decay': 2e-4,
    'learning_rate': 0.1,
    'batch_size': 64,
  }
  config = recipes.run(
    name='digits' if variant == 'trades_wrn10_1' else f'digits_{variant}',
    dataset={
      'name': 'digits',
      'loader': 'digits',
      'data_dir': '',
      'manual_dir': '',
      'cache_dir': '',
      'num_classes': 10,
      'validation_size': 128,
      'crop_padding': 0,
      'flip': False,
    },
    backbone=backbone,
    aggregator='pairwise',
    main_head=recipes.stage(loss=main, epochs=20, drop_epochs=(16,), **common),
    second_head=recipes.stage(
      loss=second, epochs=16, drop_epochs=(12,), **common
    ),
    aggregator_stage=recipes.stage(
      loss=aggregated, epochs=10, drop_epochs=(6,), **common
    ),
  )
  config.evaluation.epsilon = 0.15
  config.evaluation.step_size = 0.015
  config.evaluation.restarts = 1
  config.validation.every_epochs = 4
  config.compare_with_natural = True
  return config
