"""DH-AT on CIFAR-100: CIFAR-10's recipe with weight decay 5e-4.

    python -m dhat_jax.main --config=configs/cifar100.py
    python -m dhat_jax.main --config=configs/cifar100.py:sat_resnet18

Variants as in `cifar10.py`. With 100 classes the aggregator is `classwise`
(80,140 parameters; `pairwise` would have 31.7 M). On the digits it is 1.8
points of AutoAttack behind `pairwise` with SAT, level with TRADES and MART
(docs/results/experiment_digits.json). Its learning rate follows from the runs
that `cifar10.py` names. Not run at full size yet.
"""

from ml_collections import ConfigDict

from dhat_jax.configs import recipes


def get_config(variant: str = recipes.DEFAULT_VARIANT) -> ConfigDict:
  """Returns the config of a variant, `<base>_<backbone>[_mixed]`."""
  return recipes.cifar('cifar100', variant, num_classes=100, weight_decay=5e-4)
