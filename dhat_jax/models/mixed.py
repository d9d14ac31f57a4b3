"""Aggregators that mix the heads' probabilities: MixedNUTS and its control.

The first head is the robust one, the second the accurate one. Nothing is
trained: a few numbers are fitted on held-out images, before the evaluation.
Source: Bai et al. 2024, arXiv 2402.02263, and its published code.
"""

import itertools
import logging
import math
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dhat_jax import arguments
from dhat_jax.models.aggregator import Aggregator, Fit, HeldOut, register

_logger = logging.getLogger(__name__)

# Places of the heads in the logits [B, 2, K].
ROBUST, ACCURATE = 0, 1
# Share of the plain robust logits in the surrogate; the mapped ones have the
# rest.
PLAIN_SHARE = 0.9
_LARGEST_LOGIT = 1e15  # whose square float32 holds
_LARGEST_CUTOFF = 1 - 1e-9
_WEIGHTS = (1e-7, 1 - 2**-24)  # whose logarithms are finite, also of 1 - weight


def normalised(logits: chex.Array) -> chex.Array:
  """Returns logits [N, K] with mean 0 and standard deviation 1 per example.

  Differs from the published code, which takes mean and deviation of the 250
  largest logits where there are more classes.
  """
  logits = jnp.clip(logits, -_LARGEST_LOGIT, _LARGEST_LOGIT)
  variance = logits.var(axis=1, keepdims=True, ddof=1)
  return (logits - logits.mean(axis=1, keepdims=True)) / jnp.sqrt(
    variance + 1e-8
  )


def mapped(
  logits: chex.Array,
  scale: chex.Numeric,
  shift: chex.Numeric,
  power: chex.Numeric,
) -> chex.Array:
  """Maps robust logits so that confident ones become very confident.

  Equation 4 of the paper: s sign(u) |u|^p with u = GELU(LN(logits) + c).

  Args:
    logits: of the robust head, [N, K].
    scale: s.
    shift: c.
    power: p >= 1.

  Returns:
    float [N, K].
  """
  clamped = jax.nn.gelu(normalised(logits) + shift, approximate=False)
  return scale * jnp.sign(clamped) * jnp.abs(clamped) ** power


def margins(logits: chex.Array) -> chex.Array:
  """Returns the lead of the most probable class: [N, K] -> [N] in [0, 1]."""
  largest, _ = jax.lax.top_k(jax.nn.softmax(logits), 2)  # [N, 2]
  return largest[:, 0] - largest[:, 1]


def cutoff(attacked_margins: np.ndarray, percentile: float) -> float:
  """Returns the margin that `percentile` % of the images reach.

  Args:
    attacked_margins: [N], of attacked images that the robust head gets right.
      Without any there is nothing to preserve, and the cutoff is 1.
    percentile: b of the paper, in [0, 100].
  """
  if not len(attacked_margins):
    return 1.0
  return float(np.percentile(attacked_margins, 100 - percentile))


def weight_of(cutoff: float) -> float:
  """Returns the robust head's weight a = 1 / (1 + cutoff).

  The accurate head overrules the robust one where its margin is below
  (1 - a) / a, which is the cutoff.
  """
  return 1 / (1 + cutoff)


def _log_weights(weight: chex.Numeric) -> tuple[chex.Array, chex.Array]:
  """Returns (log(1 - weight), log(weight)), both finite."""
  weight = jnp.clip(weight, *_WEIGHTS)
  return jnp.log1p(-weight), jnp.log(weight)


def _heads(logits: chex.Array) -> tuple[chex.Array, chex.Array]:
  """Splits [B, 2, K] into (robust, accurate) logits, [B, K] each."""
  if logits.shape[1] != 2:
    raise ValueError(
      f'aggregator: got logits of {logits.shape[1]} heads, expected 2: a '
      'robust one and an accurate one'
    )
  return logits[:, ROBUST], logits[:, ACCURATE]


def _constant(module: nn.Module, name: str, value: float) -> chex.Array:
  """Returns a number of a module, which a fit replaces."""
  return module.param(name, nn.initializers.constant(value), ())


class _Mix(Aggregator, kw_only=True):
  """A mix of probabilities whose weight is fitted.

  Attributes:
    percentile: share of the attacked images that the robust head gets right
      whose margin must reach the cutoff, in percent.
    images: held-out images of the fit, at most.
    attack: evaluation attack on the robust head, in the fit.
  """

  percentile: float
  images: int = 1000
  attack: str = 'pgd_20'

  trains = False

  def __post_init__(self):
    arguments.number('percentile', self.percentile, 0, 100)
    arguments.integer('images', self.images, 1)
    arguments.text('attack', self.attack)
    super().__post_init__()

  @nn.nowrap
  def _chosen(self, held_out: HeldOut) -> tuple[np.ndarray, np.ndarray]:
    """Returns the robust logits that count in a fit.

    Returns:
      ([n, K] of attacked images that are right, [m, K] of clean ones that are
      wrong).
    """
    clean, attacked = (
      logits[:, ROBUST] for logits in (held_out.clean, held_out.attacked)
    )
    right = attacked.argmax(axis=1) == held_out.labels
    wrong = clean.argmax(axis=1) != held_out.labels
    needed = math.ceil(100 / max(100 - self.percentile, 1e-6))
    if right.sum() < needed:
      _logger.warning(
        'fit of the aggregator: the robust head gets %d images right under '
        '%s; percentile %g means something from %d on',
        *(right.sum(), self.attack, self.percentile, needed),
      )
    return attacked[right], clean[wrong]


@register('linear_mix')
class LinearMix(_Mix, kw_only=True):
  """The control of `mixed`: log((1 - a) softmax(z_acc) + a softmax(z_rob)).

  Attributes:
    percentile: share of the attacked images that the robust head gets right
      whose margin must reach the cutoff, in percent.
    images: held-out images of the fit, at most.
    attack: evaluation attack on the robust head, in the fit.
  """

  percentile: float = 95.0

  @nn.compact
  def __call__(self, logits: chex.Array, train: bool) -> chex.Array:
    """Mixes [B, 2, K] to [B, K]; `train` makes no difference."""
    del train
    robust, accurate = _heads(logits)
    log_rest, log_weight = _log_weights(_constant(self, 'weight', 0.957))
    return jnp.logaddexp(
      log_rest + nn.log_softmax(accurate), log_weight + nn.log_softmax(robust)
    )

  @nn.nowrap
  def fit(self, held_out: HeldOut) -> Fit:
    """Fits a; see `Mixed.fit`, here with the plain logits."""
    right, wrong = self._chosen(held_out)
    limit = cutoff(np.asarray(margins(right)), self.percentile)
    return Fit(
      params={'weight': weight_of(limit)},
      numbers={
        'cutoff': limit,
        'images': len(held_out.labels),
        'attacked_right': len(right),
        'clean_wrong': len(wrong),
      },
    )


@register('mixed')
class Mixed(_Mix, kw_only=True):
  """MixedNUTS: log((1 - a) hardmax(z_acc) + a softmax(mapped(z_rob))).

  The accurate head's hard maximum has no gradient. `surrogate` has one. The
  numbers before a fit are the published ones of CIFAR-10.

  Attributes:
    percentile: share of the attacked images that the robust head gets right
      whose margin must reach the cutoff, in percent.
    images: held-out images of the fit, at most.
    attack: evaluation attack on the robust head, in the fit.
    surrogate_percentile: the same of the surrogate's weight.
    scales: least and largest scale of the grid, in equal ratios.
    shifts: least and largest shift of the grid, in equal steps.
    powers: least and largest power of the grid, in equal steps; at least 1.
    grid: values of each of the three.
  """

  percentile: float = 98.5
  surrogate_percentile: float = 95.0
  scales: tuple[float, float] = (0.05, 5.0)
  shifts: tuple[float, float] = (-1.1, 0.0)
  powers: tuple[float, float] = (1.0, 4.0)
  grid: int = 8

  def __post_init__(self):
    arguments.number('surrogate_percentile', self.surrogate_percentile, 0, 100)
    _check_range('scales', self.scales, above=0)
    _check_range('shifts', self.shifts)
    _check_range('powers', self.powers, least=1)
    arguments.integer('grid', self.grid, 1)
    super().__post_init__()

  @nn.compact
  def __call__(self, logits: chex.Array, train: bool) -> chex.Array:
    """Mixes [B, 2, K] to [B, K]; `train` makes no difference."""
    del train
    robust, accurate = _heads(logits)
    _constant(self, 'surrogate_weight', 0.957)
    log_rest, log_weight = _log_weights(_constant(self, 'weight', 0.99875))
    log_robust = log_weight + nn.log_softmax(
      mapped(
        robust,
        _constant(self, 'scale', 5.0),
        _constant(self, 'shift', -1.1),
        _constant(self, 'power', 4.0),
      )
    )
    hard = jax.nn.one_hot(
      accurate.argmax(axis=1), accurate.shape[1], dtype=bool
    )  # [B, K]
    mixed = jnp.where(hard, jnp.logaddexp(log_rest, log_robust), log_robust)
    # A head that is not finite must not look finite here.
    return mixed + 0 * robust + 0 * accurate

  @nn.nowrap
  def surrogate(
    self, variables: Mapping[str, Any], logits: chex.Array
  ) -> chex.Array:
    """Computes the logits that an attack differentiates; see `Aggregator`.

    log((1 - b) softmax(z_acc) + b (.9 softmax(z_rob) + .1 softmax(mapped)))
    with a weight b of its own, that of the linear mix.
    """
    numbers = variables['params']
    robust, accurate = _heads(logits)
    log_rest, log_weight = _log_weights(numbers['surrogate_weight'])
    inner = mapped(robust, numbers['scale'], numbers['shift'], numbers['power'])
    parts = [
      log_rest + nn.log_softmax(accurate),
      log_weight + np.log(PLAIN_SHARE) + nn.log_softmax(robust),
      log_weight + np.log1p(-PLAIN_SHARE) + nn.log_softmax(inner),
    ]
    return jax.nn.logsumexp(jnp.stack(parts), axis=0)

  @nn.nowrap
  def fit(self, held_out: HeldOut) -> Fit:
    """Fits scale, shift, power and weight; algorithm 1 of the paper.

    For each point of the grid, the cutoff is the margin that `percentile` % of
    the attacked images reach that the robust head gets right. The best point
    has the smallest share of wrong clean images whose margin reaches it too. Of
    several, it is the one with the largest cutoff, then the first one.

    Differs from the published code, which leaves this choice to its user.

    Args:
      held_out: the heads' logits.
    """
    right, wrong = self._chosen(held_out)
    points = np.array(list(itertools.product(*self._axes())), np.float32)
    right_margins, wrong_margins = (
      np.asarray(_margins_at(points, logits), np.float64)
      for logits in (right, wrong)
    )  # [G, n], [G, m]
    limits = np.array([cutoff(row, self.percentile) for row in right_margins])
    reached = wrong_margins >= np.minimum(limits, _LARGEST_CUTOFF)[:, None]
    shares = reached.mean(axis=1) if len(wrong) else np.zeros(len(points))
    best = np.lexsort((-limits, shares))[0]
    scale, shift, power = points[best].tolist()
    bent = np.asarray(mapped(right, scale, shift, power))
    changed = bent.argmax(axis=1) != right.argmax(axis=1)
    plain = cutoff(np.asarray(margins(right)), self.surrogate_percentile)
    return Fit(
      params={
        'scale': scale,
        'shift': shift,
        'power': power,
        'weight': weight_of(float(limits[best])),
        'surrogate_weight': weight_of(plain),
      },
      numbers={
        'cutoff': float(limits[best]),
        'wrong_above_cutoff': float(shares[best]),
        # GELU falls before it rises, so the map may change a prediction.
        'attacked_changed': int(changed.sum()),
        'images': len(held_out.labels),
        'attacked_right': len(right),
        'clean_wrong': len(wrong),
      },
    )

  @nn.nowrap
  def _axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the values of scale, shift and power: [grid] each."""
    return (
      np.geomspace(*self.scales, self.grid),
      np.linspace(*self.shifts, self.grid),
      np.linspace(*self.powers, self.grid),
    )


def _check_range(name: str, got: Any, **bounds: float) -> None:
  """Raises ValueError unless a range is (least, largest), each in bounds."""
  arguments.sequence(
    name, got, lambda name, item: arguments.number(name, item, **bounds)
  )
  if len(got) != 2 or got[0] > got[1]:
    raise arguments.mistake(name, got, '(least, largest)')


@jax.jit
def _margins_at(points: chex.Array, logits: chex.Array) -> chex.Array:
  """Returns the mapped logits' margins: [G, 3], [N, K] -> [G, N]."""
  return jax.lax.map(lambda point: margins(mapped(logits, *point)), points)
