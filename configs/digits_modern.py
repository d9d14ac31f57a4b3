"""DH-AT on the digits with today's training: minutes on a CPU, offline.

    python -m dhat_jax.main --config=configs/digits_modern.py

`digits.py` with adversarial weight perturbation, one cycle with its momentum,
averaged weights, label smoothing and SiLU, in all stages. Each of these slows
the fit down, so the stages are three times as long. What each gains, alone and
together, and how long it takes, is in docs/results.md
(docs/results/experiment_modern.json): at this size plain TRADES, trained as
long, is no worse. Sources are those of `cifar10_modern.py` and
`cifar10_generated.py`; gamma, rate and decay are of that experiment. Generated
images join by a flag:

    python -m experiments.generated_digits --out=runs/generated_digits.npz
    python -m dhat_jax.main --config=configs/digits_modern.py \
        --config.dataset.extra.files="('runs/generated_digits.npz',)"
"""

from ml_collections import ConfigDict

from dhat_jax.configs import digits

LENGTH = 3  # times the epochs of `digits.py`


def get_config(variant: str = 'trades_wrn10_1') -> ConfigDict:
  """Returns the config of a variant, as `digits.py` has them."""
  config = digits.get_config(variant)
  config.name = config.name.replace('digits', 'digits_modern', 1)
  config.dataset.extra.fraction = 0.5
  with config.unlocked():
    config.model.backbone_options.activation = 'silu'
    for name in config.stages:
      spec = config[name]
      spec.epochs *= LENGTH
      spec.loss.label_smoothing = 0.1
      spec.weight_perturbation.update(name='awp', gamma=0.005, start_epoch=2)
      spec.schedule.update(name='one_cycle', pct_start=0.2)
      spec.optimizer.nesterov = True
      # Over the last 20 of a stage's 240 to 600 steps.
      spec.ema_decay = 0.95
      spec.ema.warm_up = True
  return config
