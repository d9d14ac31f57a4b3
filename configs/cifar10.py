"""DH-AT on CIFAR-10: the paper's experiment.

    python -m dhat_jax.main --config=configs/cifar10.py
    python -m dhat_jax.main --config=configs/cifar10.py:mart_resnet18

The default variant is TRADES on WRN-34-10. Its three stages cost 360, 338 and
491 GFLOP per training image (76 to 100 epochs of 50,000 images each): days on
one accelerator. Neither the accuracy nor the time of a full run has been
measured with this code. The paper claims, against plain TRADES, +1.8 points
clean, +3.4 PGD-40 and +2.3 AutoAttack accuracy.

The aggregator's learning rate is .01, where .1 is published: from the first
step on, .1 cost 10 to 19 points on the digits
(docs/results/experiment_ablations.json). The plain mean of the heads did no
worse than the learned aggregator, on the digits and on a part of CIFAR-10: see
docs/results.md.
"""

from ml_collections import ConfigDict

from dhat_jax.configs import recipes


def get_config(variant: str = recipes.DEFAULT_VARIANT) -> ConfigDict:
  """Returns the config of a variant, `<base>_<backbone>[_mixed]`."""
  return recipes.cifar('cifar10', variant, num_classes=10, weight_decay=None)
