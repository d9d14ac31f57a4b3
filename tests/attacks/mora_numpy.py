"""MORA in float64 NumPy, image by image, differentiated by hand.

The heads are sines of linear functions, 4 sin((x - .5) @ slope).
"""

import numpy as np


def softmax(z):
  exp = np.exp(z - z.max())
  return exp / exp.sum()


def lead(z):
  largest = np.sort(z)[::-1]
  return largest[0] - largest[1]


def weights(output, heads, label):
  """Returns the scale L and the weights of [output, *heads], for one image."""
  members = [output, *heads]
  scale = max(lead(z) for z in members) / 10
  scale = scale if scale > 1 else 1.0
  mean = sum(softmax(z / scale) for z in heads) / len(heads)
  others = [c for c in range(len(mean)) if c != label]
  rival = max(others, key=lambda c: mean[c])
  result = []
  for z in members:
    p = softmax(0.2 * z)
    value = p[rival] * (p[label] / mean[label] + (1 - p[rival]) / mean[rival])
    result.append(value if z.argmax() == label else 0.0)
  return scale, result


def mixed(output, heads, label, share):
  """Returns the mix [K], and its factors of [output, *heads]."""
  scale, values = weights(output, heads, label)
  total = sum(values) + 1e-8
  factors = [share * value / total / scale for value in values]
  factors[0] += (1 - share) / lead(output)
  mix = sum(f * z for f, z in zip(factors, [output, *heads], strict=True))
  return mix, factors


def run(
  slopes, merge, image, label, start, *, share, epsilon, steps, norm, needed=0.0
):
  """One run on one image [D] from a start.

  Args:
    slopes: [H, D, K], of the heads.
    merge: heads' weights [H] of the output, which is linear in them.
    image, start: float [D].
    label, share, epsilon, steps, norm: as in the attack.

  Returns:
    (whether it resists, its first wrong point or None, all points).
  """
  x, before, points = start, start, [start]
  for i in range(steps + 1):
    inner = [(x - 0.5) @ slope for slope in slopes]
    heads = [4 * np.sin(z) for z in inner]
    output = sum(m * z for m, z in zip(merge, heads, strict=True))
    judged = output.copy()
    judged[label] += needed
    if judged.argmax() != label:
      return False, x, points
    if i == steps:
      return True, None, points
    mix, factors = mixed(output, heads, label, share)
    rise = softmax(mix)
    rise[label] -= 1  # of the cross entropy, by the mix
    gradient = 0
    for m, factor, slope, z in zip(
      merge, factors[1:], slopes, inner, strict=True
    ):
      share_of_head = factor + factors[0] * m
      gradient = gradient + slope @ (share_of_head * 4 * np.cos(z) * rise)
    size = 2 * epsilon * (1 - i / steps)
    z = project(x + size * unit(gradient, norm), image, epsilon, norm)
    share_of_step = 0.75 if i else 1.0
    moved = x + share_of_step * (z - x) + (1 - share_of_step) * (x - before)
    x, before = project(moved, image, epsilon, norm), x
    points.append(x)


def unit(gradient, norm):
  if norm == 'linf':
    return np.sign(gradient)
  return gradient / (np.sqrt((gradient**2).sum()) + 1e-12)


def project(x, image, epsilon, norm):
  delta = x - image
  if norm == 'linf':
    delta = np.clip(delta, -epsilon, epsilon)
  else:
    size = np.sqrt((delta**2).sum())
    delta = delta * min(1, epsilon / max(size, 1e-12))
  return np.clip(image + delta, 0, 1)
