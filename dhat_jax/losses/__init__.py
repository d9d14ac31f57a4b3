"""Training losses: logits [B, K] -> ([B], diagnostics); the caller averages.

A user's config file adds its own with `@losses.register('name')` on a function
of keyword-only settings that returns a `Loss`. Besides its own options it gets
`num_classes` and `steps_per_epoch`, if it names them.

Notation: z(x) logits on the clean image x, z(x') on the adversarial one,
p = softmax z(x), q = softmax z(x'). Everything is computed through
log-softmax.
"""

from dhat_jax.losses.adversarial import mart, natural, sat, trades
from dhat_jax.losses.base import LOSSES, Diagnostics, Loss, Memory, register
from dhat_jax.losses.decoupled import dkl
from dhat_jax.losses.second_head import (
  reverse_log_probabilities,
  reverse_smoothing,
)

__all__ = [
  'LOSSES',
  'Diagnostics',
  'Loss',
  'Memory',
  'dkl',
  'mart',
  'natural',
  'register',
  'reverse_log_probabilities',
  'reverse_smoothing',
  'sat',
  'trades',
]
