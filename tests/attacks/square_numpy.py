"""Square in L2, written out for one image: Andriushchenko et al., ECCV 2020.

As the reference within AutoAttack computes it, for images of any height and
width: where the reference fails (a tile that sticks out of the image), the tile
is left out; a height below 5 has tiles of side 1. NumPy, float64, recorded
draws in [0, 1).
"""

import math

import numpy as np

from dhat_jax.attacks import square_windows


def _sign(uniform):
  return np.sign(2 * uniform - 1)


def _scaled(delta, epsilon):
  return epsilon * delta / (np.sqrt((delta**2).sum()) + 1e-12)


def _stamp(size, flip):
  stamp = square_windows.make_stamp(size)  # equal to the reference's: tested
  return stamp.T if flip > 0.5 else stamp


def _start(image, epsilon, flips, signs):
  height, width, _ = image.shape
  side = max(height // 5, 1)
  first = max((height - 5 * side) // 2, 0)
  delta = np.zeros_like(image)
  tiles = [
    (top, left)
    for top in range(first, height - side + 1, side)
    for left in range(first, width - side + 1, side)
  ]
  for (top, left), flip, sign in zip(tiles, flips, signs, strict=True):
    stamp = _stamp(side, flip)[:, :, None] * _sign(sign)
    delta[top : top + side, left : left + side] += stamp
  return np.clip(image + _scaled(delta, epsilon), 0, 1)


def _side(query, height, width):
  halvings = sum(query > end for end in square_windows.SCHEDULE)
  side = max(round(math.sqrt(0.8 / 2**halvings * height * width)), 3)
  side += side % 2 == 0
  return min(side, height, width)


def _propose(best, image, epsilon, side, windows, flip, signs):
  height, width, channels = image.shape
  corners = [
    int(uniform * (length - side))
    for uniform, length in zip(windows, [height, width] * 2, strict=True)
  ]
  first, second = (
    (slice(top, top + side), slice(left, left + side))
    for top, left in (corners[:2], corners[2:])
  )
  delta = best - image
  missing = max(epsilon**2 - (delta**2).sum(), 0)
  both = np.zeros((height, width, 1))
  both[first] = both[second] = 1
  held = ((delta * both) ** 2).sum(axis=(0, 1))  # [C]
  new = _stamp(side, flip)[:, :, None] * _sign(signs)
  new += delta[first] / (1e-12 + np.sqrt((delta[first] ** 2).sum(axis=(0, 1))))
  new /= 1e-12 + np.sqrt((new**2).sum(axis=(0, 1)))
  new *= np.sqrt(missing / channels + held)
  delta[second] = 0
  delta[first] = new
  return np.clip(image + _scaled(delta, epsilon), 0, 1)


def square_l2(margin, image, epsilon, start, query):
  """Best point of one image.

  Args:
    margin: image [H, W, C] -> z_y - max other.
    image: float64 [H, W, C].
    epsilon: radius.
    start: (flips [T], signs [T, C]), row by row.
    query: (windows [Q, 4], flip [Q], signs [Q, C]).
  """
  best = _start(image, epsilon, *start)
  lowest = margin(best)
  for number, draw in enumerate(zip(*query, strict=True)):
    if lowest <= 0:
      break
    side = _side(number, *image.shape[:2])
    points = _propose(best, image, epsilon, side, *draw)
    new = margin(points)
    if new < lowest or new <= 0:
      best, lowest = points, new
  return best
