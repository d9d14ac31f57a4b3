"""Dual Head Adversarial Training (DH-AT) in JAX and Flax.

The names below are importable from here; the rest is in the modules. They are
loaded when first used, so that importing the package costs nothing.
"""

import importlib

_PUBLIC = {
  'DualHeadNet': 'models.dual_head',
  'ResNet18': 'models.resnet',
  'WideResNet': 'models.wide_resnet',
  'Outputs': 'models.outputs',
  'Settings': 'attacks.pgd',
  'make_attack': 'attacks.pgd',
  'make_evaluation_attack': 'attacks.pgd',
  'autoattack': 'attacks.autoattack',
  'create_train_state': 'training.state',
  'load_run': 'run',
  'make_eval_step': 'evaluation.step',
  'make_train_step': 'training.step',
  'train_and_evaluate': 'run',
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
  if name not in _PUBLIC:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module = importlib.import_module(f'{__name__}.{_PUBLIC[name]}')
  return getattr(module, name)


def __dir__():
  return sorted([*globals(), *_PUBLIC])
