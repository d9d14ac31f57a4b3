"""DH-AT on CIFAR-10 with today's training: AWP, a cosine, averaged weights.

    python -m dhat_jax.main --config=configs/cifar10_modern.py
    python -m dhat_jax.main --config=configs/cifar10_modern.py:sat_resnet18

Variants are those of `cifar10.py`. Against that recipe:

- adversarial weight perturbation in the stages of the heads, as published (Wu
  et al. 2020): gamma .005 from epoch 10 on, with SAT .01 from the start;
- 200 epochs at .2, which fall along a cosine from epoch to epoch, weight decay
  5e-4: as in the published code of DKL (Cui et al. 2024), which has AWP too;
- averaged weights, decay .995, that are validated, handed on and evaluated
  (Wang et al. 2023);
- epsilon is 8/255 in training and in evaluation, as RobustBench has it.

The second head has three quarters of the main head's epochs, as in DH-AT. The
rate of the last stage is that of `cifar10.py`.

Published with AWP and one head (WRN-34-10, AutoAttack): 56.17 with TRADES,
57.09 with DKL. With this code no run of this size was made. What each part
gains on the digits is in docs/results/experiment_modern.json; see
docs/results.md.
"""

from ml_collections import ConfigDict

from dhat_jax.configs import recipes

EPOCHS = {'main_head': 200.0, 'second_head': 150.0, 'aggregator': 60.0}
LEARNING_RATE = 0.2
# The average is a copy of the weights for this share of a stage.
COPY_SHARE = 0.025


def get_config(variant: str = recipes.DEFAULT_VARIANT) -> ConfigDict:
  """Returns the config of a variant, `<base>_<backbone>[_mixed]`."""
  variant, is_mixed = recipes.without_mixed(variant)
  base, _ = recipes.split_variant(variant)
  config = recipes.cifar('cifar10', variant, num_classes=10, weight_decay=5e-4)
  config.name = recipes.run_name('cifar10_modern', variant)
  with config.unlocked():
    for name, epochs in EPOCHS.items():
      spec = config[name]
      spec.epochs = epochs
      spec.attack.update(epsilon_255=8.0, step_size_255=2.0)
      spec.schedule.update(name='cosine', per_epoch=True)
      spec.ema_decay = 0.995
      spec.ema.update(copy_epochs=COPY_SHARE * epochs, warm_up=True)
      if name == 'aggregator':
        continue
      spec.schedule.learning_rate = LEARNING_RATE
      spec.weight_perturbation.update(
        name='awp',
        gamma=0.01 if base == 'sat' else 0.005,
        start_epoch=1 if base == 'sat' else 10,
      )
  config.evaluation.epsilon_255 = 8.0
  return recipes.mixed(config) if is_mixed else config
