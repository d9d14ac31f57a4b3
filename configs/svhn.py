"""DH-AT on SVHN (cropped digits, without the `extra` images).

    python -m dhat_jax.main --config=configs/svhn.py:trades_preact_resnet18

The schedule that is common there: 200 epochs at .01, a tenth of it from
epochs 100 and 150 on, weight decay 5e-4, epsilon 8/255 in 10 steps of 1/255,
no flips. Epsilon and step size rise from 0 over the first 5 epochs: without
that, training can collapse to predicting one class. For the last stage .01 is
what the runs that `cifar10.py` names ask for too. Not run at full size yet.
"""

from ml_collections import ConfigDict

from dhat_jax.configs import recipes

WARMUP_EPOCHS = 5.0


def get_config(variant: str = recipes.DEFAULT_VARIANT) -> ConfigDict:
  """Returns the config of a variant, `<base>_<backbone>[_mixed]`."""
  plain, is_mixed = recipes.without_mixed(variant)
  base, backbone = recipes.split_variant(plain)
  attack = recipes.attack(
    epsilon_255=8.0,
    step_size_255=1.0,
    start='uniform' if base == 'sat' else 'gaussian',
  )
  main, second, aggregated = recipes.losses(base, backbone)
  common = {'learning_rate': 0.01, 'weight_decay': 5e-4}
  heads = {**common, 'epochs': 200, 'drop_epochs': (100, 150)}
  warm = {**attack, 'warmup_epochs': WARMUP_EPOCHS}
  config = recipes.run(
    name=recipes.run_name('svhn', plain),
    dataset=recipes.tfds_dataset(
      'svhn_cropped', num_classes=10, validation_size=1000, flip=False
    ),
    backbone=backbone,
    aggregator='pairwise',
    main_head=recipes.stage(loss=main, attack=warm, **heads),
    second_head=recipes.stage(loss=second, attack=warm, **heads),
    aggregator_stage=recipes.stage(
      loss=aggregated,
      attack=attack,
      **common,
      epochs=60,
      drop_epochs=(25, 40, 50),
    ),
  )
  return recipes.mixed(config) if is_mixed else config
