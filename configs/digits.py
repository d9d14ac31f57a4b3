"""DH-AT on scikit-learn's handwritten digits: minutes on a CPU, offline.

    python -m dhat_jax.main --config=configs/digits.py --workdir=runs/digits

The aggregator's learning rate is .01. At .1, the published one, so short a
stage ends 10 to 19 points lower (docs/results/experiment_ablations.json). There
seed 0 hides the gradient from PGD, but not from CW. What each part gains is in
docs/results/experiment_digits.json, five seeds.
"""

from ml_collections import ConfigDict

from dhat_jax.configs import recipes


def get_config(variant: str = 'trades_wrn10_1') -> ConfigDict:
  """Returns the config of a variant, `<base>_<backbone>[_mixed]`."""
  variant, is_mixed = recipes.without_mixed(variant)
  base, backbone = recipes.split_variant(variant)
  attack = recipes.attack(
    epsilon=0.2,
    step_size=0.05,
    start='uniform' if base == 'sat' else 'gaussian',
  )
  main, second, aggregated = recipes.losses(base, backbone)
  common = {'attack': attack, 'weight_decay': 2e-4, 'batch_size': 64}
  heads = {**common, 'learning_rate': 0.1}
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
      'augmentations': ('crop_flip',),
      'crop_padding': 0,
      'flip': False,
      'extra': {'files': (), 'fraction': 0.7},
    },
    backbone=backbone,
    aggregator='pairwise',
    main_head=recipes.stage(loss=main, epochs=10, drop_epochs=(8,), **heads),
    second_head=recipes.stage(loss=second, epochs=6, drop_epochs=(5,), **heads),
    aggregator_stage=recipes.stage(
      loss=aggregated,
      epochs=4,
      drop_epochs=(3,),
      learning_rate=0.01,
      **common,
    ),
  )
  config.evaluation.attacks = ('clean', 'fgsm', 'pgd_40', 'cw_40')
  config.evaluation.epsilon = 0.2
  config.evaluation.step_size = 0.02
  config.evaluation.batch_size = 128
  config.evaluation.sweep_epsilons_255 = ()
  config.evaluation.loss_steps = ()
  config.evaluation.audit = False
  config.validation.every_epochs = 4
  config.compare_with_natural = True
  return recipes.mixed(config) if is_mixed else config
