"""DH-AT on CIFAR-10 with generated images: the recipe of the best networks.

    python -m dhat_jax.main --config=configs/cifar10_generated.py \
        --config.dataset.extra.files="('1m.npz',)"

Variants are backbones: `dm_wrn28_10` (the default), `dm_wrn70_16`, or others;
with `_mixed`, MixedNUTS. The recipe is that of Wang et al. (2023), from the
published code of DM-Improves-AT, in the stages of the heads:

- TRADES, beta 5, label smoothing .1; 10 steps of 2/255 from U(-8/255, 8/255),
  on the network with the batch's statistics;
- 70 % of each batch of 512 are generated images; an epoch is one pass over as
  many images as the data set has;
- one cycle of 400 epochs, rate .2 and momentum .95 to .85, Nesterov, weight
  decay 5e-4 without batch norm;
- averaged weights, decay .995; the best checkpoint by PGD-40 on the margin, on
  1,000 images held out (published: on 1,024 training images);
- DeepMind's WideResNet with SiLU, which normalises images inside.

The second head has beta 3 and three quarters of the epochs, as in DH-AT. The
last stage has the rate and the length of `cifar10.py`.

Published for one head, WRN-28-10 (AutoAttack): 67.31 with 20 million generated
images and 2,400 epochs. With this code no run of this size was made. What
generated images gain on the digits is in docs/results/experiment_modern.json;
see docs/results.md.
"""

from ml_collections import ConfigDict

from dhat_jax.configs import recipes

DEFAULT_VARIANT = 'dm_wrn28_10'
# (epochs, beta) of each stage.
STAGES = {
  'main_head': (400.0, 5.0),
  'second_head': (300.0, 3.0),
  'aggregator': (60.0, 3.0),
}
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2471, 0.2435, 0.2616)
BATCH_SIZE = 512


def get_config(variant: str = DEFAULT_VARIANT) -> ConfigDict:
  """Returns the config of a variant, `<backbone>[_mixed]`."""
  variant, is_mixed = recipes.without_mixed(variant)
  config = recipes.cifar(
    'cifar10', recipes.DEFAULT_VARIANT, num_classes=10, weight_decay=5e-4
  )
  name = 'cifar10_generated'
  config.name = name if variant == DEFAULT_VARIANT else f'{name}_{variant}'
  config.model.update(backbone=variant, mean=MEAN, std=STD)
  config.dataset.extra.update(files=('1m.npz',), fraction=0.7)
  with config.unlocked():
    for name, (epochs, beta) in STAGES.items():
      spec = config[name]
      spec.epochs = epochs
      spec.batch_size = BATCH_SIZE
      spec.loss = {'name': 'trades', 'beta': beta, 'label_smoothing': 0.1}
      spec.attack.update(
        epsilon_255=8.0,
        step_size_255=2.0,
        start='uniform',
        statistics='batch',
      )
      spec.optimizer.update(nesterov=True, decay_norm=False)
      spec.ema_decay = 0.995
      spec.ema.update(copy_epochs=0.025 * epochs, warm_up=True)
      if name != 'aggregator':
        spec.schedule.update(
          name='one_cycle', learning_rate=0.2, pct_start=0.025, per_epoch=True
        )
  config.validation.attack = 'cw_40'
  config.evaluation.epsilon_255 = 8.0
  config.evaluation.step_size_255 = 2.0
  return recipes.mixed(config) if is_mixed else config
