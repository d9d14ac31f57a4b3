"""Checks whether AutoAttack is valid for a network and a call."""

from collections.abc import Callable, Mapping

import chex
import jax
import numpy as np

from dhat_jax import divergences
from dhat_jax.attacks import arguments, balls
from dhat_jax.attacks.logits import check_finite

NAMES = ('apgd-ce', 'apgd-dlr', 'apgd-t', 'fab', 'fab-t', 'square')
VERSIONS = {
  'standard': ('apgd-ce', 'apgd-t', 'fab-t', 'square'),
  'plus': ('apgd-ce', 'apgd-dlr', 'fab', 'square', 'apgd-t', 'fab-t'),
  'rand': ('apgd-ce', 'apgd-dlr'),
}
# With fewer classes their loss is the margin: {attack: (loss, classes)}.
RATIOS = {
  'apgd-dlr': ('DLR', divergences.DLR_CLASSES),
  'apgd-t': ('targeted DLR', divergences.TARGETED_DLR_CLASSES),
}


def choose_attacks(
  version: str, attacks: tuple[str, ...] | None
) -> tuple[str, ...]:
  """Names of the attacks of a version, in the order in which they run.

  Raises:
    ValueError: unknown version or name, names without 'custom' or 'custom'
      without names.
  """
  balls.check_choice('version', version, (*VERSIONS, 'custom'))
  if isinstance(attacks, str):
    raise ValueError(f'attacks: got {attacks!r}, expected several names')
  if (version == 'custom') != bool(attacks):
    raise ValueError(
      f'attacks: got {attacks!r} with version {version!r}; expected names '
      "with 'custom' and only with it"
    )
  names = tuple(attacks or VERSIONS[version])
  for name in names:
    balls.check_choice('attacks', name, NAMES)
  if len(set(names)) < len(names):
    raise ValueError(f'attacks: got {names}, expected each name once')
  return names


def check_inputs(
  images: np.ndarray, labels: np.ndarray, names: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
  """Checks the data: images float [N, ...], labels int32 [N], in NumPy.

  Args:
    images: float [N, ...] in [0, 1].
    labels: int [N].
    names: of the attacks.

  Raises:
    ValueError: another dtype or shape, or values outside [0, 1].
  """
  rank = 4 if 'square' in names else None
  images = arguments.float_images(images, rank, np)
  return images, arguments.classes('labels', labels, len(images), xp=np)


def check_logits(logits: np.ndarray) -> None:
  """Raises ValueError if clean logits [N, K] are probabilities."""
  check_finite(logits, 'clean')
  inside = logits.min() > -1e-5 and logits.max() < 1 + 1e-5
  if inside and np.all(np.abs(logits.sum(axis=1) - 1) < 1e-5):
    raise ValueError(
      'logits: got rows in [0, 1] that sum to 1, expected logits: take the '
      'network before its softmax (or return log-probabilities)'
    )


def few_classes(
  names: tuple[str, ...], classes: int, n_targets: int
) -> list[str]:
  """Says how attacks differ from the standard because classes are few.

  Args:
    names: of the attacks.
    classes: K.
    n_targets: target classes that were asked for.

  Returns:
    A sentence for each difference.
  """
  lines = [
    f'{classes} classes: {name} maximises the margin, since {loss} needs '
    f'{fewest} classes'
    for name, (loss, fewest) in RATIOS.items()
    if name in names and classes < fewest
  ]
  if classes <= n_targets and {'apgd-t', 'fab-t'} & set(names):
    others = f'all {classes - 1} other classes'
    if classes == 2:
      others = 'the only other class'
    lines.append(
      f'{classes} classes: targeted attacks use {others}, not {n_targets}'
    )
  return lines


def warn_stops(
  names: tuple[str, ...], stop_at_epsilon: bool, same_network: bool
) -> list[str]:
  """Says that FAB's images are not the smallest perturbations.

  Args:
    names: of the attacks.
    stop_at_epsilon: whether FAB stops.
    same_network: whether the judge sees what FAB saw. If not, it may judge the
      first image that counts otherwise than the nearest one.
  """
  if not stop_at_epsilon or not {'fab', 'fab-t'} & set(names):
    return []
  flags = 'the flags are the same'
  if not same_network:
    flags = 'the flags may differ, since another network judges its images'
  return [
    f'fab stops at epsilon: {flags}; its images are not the smallest '
    'perturbations'
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
    f'{gap:.2g}): a randomised network. Draw its noise from a key: pass '
    'logits_fn(images, key) and randomized=True'
  ]


def label_randomized(
  version: str, names: tuple[str, ...], eot_iter: int, samples: int
) -> list[str]:
  """Says how a randomised network was attacked and judged."""
  lines = [
    f'a randomised network: an image counts as robust if most of {samples} '
    'evaluations are correct; report sampled_accuracy, the mean and the worst'
  ]
  if version != 'rand':
    fixed = [name for name in names if not name.startswith('apgd')]
    means = f'; {", ".join(fixed)} attack the mean logits of as many'
    lines.append(
      f'not the version for randomised networks, rand: APGD compares points by '
      f'the mean loss of {eot_iter} evaluations{means if fixed else ""}'
    )
  return lines


def warn_sigmoid(logits: np.ndarray) -> list[str]:
  """Warns if all clean logits [N, K] are in [0, 1], as after a sigmoid."""
  if logits.min() < 0 or logits.max() > 1:
    return []
  return [
    'logits: all are in [0, 1]; if they are probabilities, take the network '
    'before its sigmoid: attacks need logits'
  ]


def warn_screening(alike: np.ndarray) -> list[str]:
  """Warns if the two networks differ on more than 2 % of the clean images.

  Args:
    alike: bool [N], whether they predict the same class.
  """
  wrong = int((~alike).sum())
  if wrong <= 0.02 * len(alike):
    return []
  return [
    f'screening_fn predicts another class than logits_fn on {wrong} of '
    f'{len(alike)} clean images: attacks on it may miss what fools logits_fn'
  ]


def screened(
  screening_fn: Callable | None,
  images: np.ndarray,
  classes: int,
  rng: chex.PRNGKey | None,
) -> list[str]:
  """Says that the attacks see another network than the one that judges.

  Args:
    screening_fn: that network, or None.
    images: float [B, ...].
    classes: K.
    rng: typed key of its noise; None for a network without.

  Raises:
    ValueError: it has another number of classes.
  """
  if screening_fn is None:
    return []
  keys = [] if rng is None else [rng]
  columns = jax.eval_shape(screening_fn, images, *keys).shape[1]
  if columns != classes:
    raise ValueError(
      f'screening_fn: got {columns} logits, expected the {classes} of logits_fn'
    )
  return [
    'screening: the attacks see screening_fn, and logits_fn judges their '
    'images; robust images were not attacked through logits_fn'
  ]


def warn_batch(
  logits: np.ndarray, mixed: np.ndarray, threshold: float = 1e-3
) -> list[str]:
  """Warns if an image's logits depend on the other images of its batch.

  Args:
    logits: float [n, K].
    mixed: float [n, K], of the same images in another order, among others.
    threshold: of the gap, in units of the logits' length; rounding is smaller.
  """
  sizes = np.linalg.norm(logits, axis=1) + 1e-10
  gaps = np.linalg.norm(logits - mixed, axis=1) / sizes
  wrong = int(np.sum(~(gaps <= threshold)))  # NaN counts
  if not wrong:
    return []
  return [
    f'logits depend on the other images of the batch ({wrong} of '
    f'{len(logits)} images, largest gap {np.max(gaps):.2g}): batch norm in '
    'training mode? What is robust depends on batch_size'
  ]


def warn_gradients(
  zero: Mapping[str, int], broken: Mapping[str, int]
) -> list[str]:
  """Warns of zero and broken gradients.

  Args:
    zero: {attack: number of starting points where the gradient vanished}.
    broken: {attack: number of runs of an image in which a gradient, or a step
      along it, was not finite}.
  """
  return [
    *(
      f'{name}: {count} starting points with zero gradient; gradient attacks '
      'may be unreliable'
      for name, count in zero.items()
      if count
    ),
    *(
      f'{name}: gradients with NaN or infinity in {count} runs on an image, '
      'taken for 0; robust may mean that the attack could not see'
      for name, count in broken.items()
      if count
    ),
  ]


def warn_square(flags: dict[str, np.ndarray]) -> list[str]:
  """Warns if Square breaks more than the gradient attacks: masked gradients."""
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
