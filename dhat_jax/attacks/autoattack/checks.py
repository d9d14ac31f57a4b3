"""Signs that a network, or a call, is not what AutoAttack is made for."""

import numpy as np

from dhat_jax.attacks import balls

NAMES = ('apgd-ce', 'apgd-dlr', 'apgd-t', 'fab', 'fab-t', 'square')
VERSIONS = {
  'standard': ('apgd-ce', 'apgd-t', 'fab-t', 'square'),
  'plus': ('apgd-ce', 'apgd-dlr', 'fab', 'square', 'apgd-t', 'fab-t'),
  'rand': ('apgd-ce', 'apgd-dlr'),
}
FEWEST_CLASSES = {'apgd-dlr': 3, 'apgd-t': 4}


def choose_attacks(
  version: str, attacks: tuple[str, ...] | None, randomized: bool
) -> tuple[str, ...]:
  """Names of the attacks of a version, in the order in which they run.

  Raises:
    ValueError: unknown version or name, names given without 'custom' or
      missing with it, or an attack that cannot handle a randomised network.
  """
  if version != 'custom' and version not in VERSIONS:
    choices = [*VERSIONS, 'custom']
    raise ValueError(f'version: got {version!r}, choices {choices}')
  if (version == 'custom') != bool(attacks):
    raise ValueError(
      f'attacks: got {attacks!r} with version {version!r}; expected names '
      "with 'custom' and only with it"
    )
  names = tuple(attacks or VERSIONS[version])
  for name in names:
    if name not in NAMES:
      raise ValueError(f'attacks: got {name!r}, choices {list(NAMES)}')
  if len(set(names)) < len(names):
    raise ValueError(f'attacks: got {names}, expected each name once')
  fixed = set(names) - {'apgd-ce', 'apgd-dlr'}
  if randomized and fixed:
    raise ValueError(
      f'randomized: {sorted(fixed)} expect logits without noise; use '
      "version='rand', or 'custom' with apgd-ce and apgd-dlr"
    )
  return names


def check_inputs(
  images: np.ndarray, labels: np.ndarray, epsilon: float, batch_size: int
) -> None:
  """Raises ValueError for images outside [0, 1], bad shapes or sizes."""
  if not np.issubdtype(images.dtype, np.floating) or images.ndim < 2:
    raise ValueError(
      f'images: got {images.dtype} {images.shape}, expected float [N, ...]'
    )
  if labels.shape != images.shape[:1] or labels.dtype.kind not in 'iu':
    raise ValueError(
      f'labels: got {labels.dtype} {labels.shape}, expected int '
      f'[{images.shape[0]}]'
    )
  if not len(images):
    raise ValueError('images: got none')
  if not (np.min(images) >= 0 and np.max(images) <= 1):
    raise ValueError(
      f'images: got values in [{np.min(images)}, {np.max(images)}], expected '
      '[0, 1]; normalisation belongs into logits_fn'
    )
  if not epsilon > 0:
    raise ValueError(f'epsilon: got {epsilon}, expected > 0, in [0, 1] units')
  if batch_size < 1:
    raise ValueError(f'batch_size: got {batch_size}, expected >= 1')


def check_finite(logits: np.ndarray, where: str) -> None:
  """Raises ValueError for logits that are not all finite numbers."""
  wrong = int(np.sum(~np.all(np.isfinite(logits), axis=1)))
  if wrong:
    raise ValueError(
      f'logits: got NaN or infinity on {wrong} images ({where}); the flags '
      'would mean nothing'
    )


def check_logits(
  logits: np.ndarray, labels: np.ndarray, names: tuple[str, ...]
) -> None:
  """Raises ValueError for probabilities, or classes too few for an attack.

  Args:
    logits: float [N, K] on the clean images.
    labels: int [N].
    names: of the attacks.
  """
  check_finite(logits, 'clean')
  classes = logits.shape[1]
  if labels.min() < 0 or labels.max() >= classes:
    raise ValueError(
      f'labels: got {labels.min()} to {labels.max()}, expected 0 to '
      f'{classes - 1}: there are {classes} logits'
    )
  inside = logits.min() > -1e-5 and logits.max() < 1 + 1e-5
  if inside and np.all(np.abs(logits.sum(axis=1) - 1) < 1e-5):
    raise ValueError(
      'logits: got rows in [0, 1] that sum to 1, expected logits: take the '
      'network before its softmax (or return log-probabilities)'
    )
  for name in names:
    fewest = FEWEST_CLASSES.get(name, 2)
    if classes < fewest:
      raise ValueError(
        f'{name}: got {classes} classes, expected at least {fewest}; use '
        "version='custom', attacks=('apgd-ce', 'fab-t', 'square')"
      )


def warn_targets(
  names: tuple[str, ...], classes: int, n_targets: int
) -> list[str]:
  """Warns if there are fewer other classes than targets."""
  if classes > n_targets or not {'apgd-t', 'fab-t'} & set(names):
    return []
  return [
    f'{classes} classes: targeted attacks use all {classes - 1} other classes, '
    f'not {n_targets}'
  ]


def warn_randomized(samples: list[np.ndarray], labels: np.ndarray) -> list[str]:
  """Warns if logits [B, K] of the same images differ from call to call."""
  correct = [int(np.sum(balls.is_right(z, labels))) for z in samples]
  units = [
    z / (np.linalg.norm(z, axis=1, keepdims=True) + 1e-10) for z in samples
  ]
  gap = max(np.linalg.norm(a - b, axis=1).max() for a in units for b in units)
  if len(set(correct)) == 1 and gap <= 1e-4:
    return []
  return [
    f'logits change from call to call (correct: {correct}, largest gap '
    f"{gap:.2g}): a randomised network; use version='rand' and pass noise "
    'through a key (randomized=True)'
  ]


def warn_square(flags: dict[str, np.ndarray]) -> list[str]:
  """Warns if Square breaks what gradients missed: masked gradients."""
  if 'square' not in flags or len(flags) < 3:
    return []
  accuracy = {name: float(np.mean(robust)) for name, robust in flags.items()}
  others = min(value for name, value in accuracy.items() if name != 'square')
  drop = others - accuracy['square']
  if drop <= 0.002:
    return []
  return [
    f'square lowered robust accuracy by {100 * drop:.2f} points below the '
    'gradient attacks: gradients may be masked; use more queries or an '
    'adaptive attack'
  ]
