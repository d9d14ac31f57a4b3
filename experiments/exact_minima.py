"""Small networks and the exact distance of an image to their decision boundary.

In Linf it is one mixed integer programme for each image and target class. Its
columns are the pixels, the hidden units, whether each unit's ReLU is on, and
the radius. SciPy solves it (HiGHS). In L2 it is a root, for linear networks.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy import optimize


class Network(NamedTuple):
  """logits = relu((x - .5) w + b) v + c; linear if there are no hidden units.

  Attributes:
    w: float32 [D, H], or None: logits = (x - .5) v + c.
    b: float32 [H], or None.
    v: float32 [H, K], or [D, K] of a linear network.
    c: float32 [K].
  """

  w: np.ndarray | None
  b: np.ndarray | None
  v: np.ndarray
  c: np.ndarray


def logits_of(net: Network, images: Any) -> Any:
  """Returns the logits of NumPy or JAX images: [B, ...] -> [B, K]."""
  hidden = images.reshape(len(images), -1) - 0.5
  if net.w is not None:
    hidden = (hidden @ net.w + net.b[None]).clip(min=0)
  return hidden @ net.v + net.c[None]


def make_network(
  seed: int, *, inputs: int, hidden: int, classes: int
) -> Network:
  """Draws normal weights; all classes have the same mean logit.

  Args:
    seed: of the draws.
    inputs: D.
    hidden: H; 0 for a linear network.
    classes: K.
  """
  rng = np.random.default_rng(seed)

  def draw(*shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)

  w, b = (draw(inputs, hidden), draw(hidden) / 2) if hidden else (None, None)
  net = Network(w, b, draw(hidden or inputs, classes), np.zeros(classes))
  images = rng.uniform(size=(1000, inputs)).astype(np.float32)
  return net._replace(c=np.float32(-logits_of(net, images).mean(axis=0)))


def _pair(net: Network, label: int, target: int) -> tuple[np.ndarray, float]:
  """Returns z_target - z_label as weights and a constant, in float64."""
  slope = np.float64(net.v[:, target]) - np.float64(net.v[:, label])
  return slope, float(net.c[target]) - float(net.c[label])


def _relu_rows(net: Network) -> tuple[list[optimize.LinearConstraint], float]:
  """Ties hidden units to pixels, by the range of each in the box.

  Returns:
    The rows and the largest value of a hidden unit.
  """
  w = np.float64(net.w)  # [D, H]
  b = np.float64(net.b) - 0.5 * w.sum(axis=0)  # for x in place of x - .5
  low, high = (b + part.sum(axis=0) for part in (w.clip(max=0), w.clip(min=0)))
  unit, none = np.eye(len(b)), np.zeros((len(b), 1))

  def row(on, least, most):  # of h - w x + on * (whether it is on)
    return optimize.LinearConstraint(
      np.hstack([-w.T, unit, np.diag(on), none]), least, most
    )

  off = np.hstack([0 * w.T, unit, -np.diag(high), none])
  return [
    row(0 * low, b, np.inf),  # h >= w x + b
    row(-low, -np.inf, b - low),  # on: h <= w x + b
    optimize.LinearConstraint(off, -np.inf, 0),  # off: h <= 0
  ], max(high.max(), 0)


def _linf(net: Network, image: np.ndarray, label: int, target: int) -> float:
  """Solves one target class; infinity if the box does not reach it."""
  pixels, hidden = len(image), 0 if net.w is None else len(net.b)
  rows, largest = _relu_rows(net) if hidden else ([], 0.0)
  slope, constant = _pair(net, label, target)
  if not hidden:
    constant -= 0.5 * slope.sum()
  first = pixels if hidden else 0  # of the columns on which logits depend
  reach = np.zeros((1, pixels + 2 * hidden + 1))
  reach[0, first : first + len(slope)] = slope
  near, far = (np.eye(pixels, reach.shape[1]) for _ in range(2))
  near[:, -1], far[:, -1] = -1, 1  # |x - image| <= radius
  sizes = [pixels, hidden, hidden, 1]
  found = optimize.milp(
    np.eye(reach.shape[1])[-1],
    integrality=np.repeat([0, 0, 1, 0], sizes),
    bounds=optimize.Bounds(0, np.repeat([1, largest, 1, 1], sizes)),
    constraints=[
      *rows,
      optimize.LinearConstraint(near, -np.inf, image),
      optimize.LinearConstraint(far, image, np.inf),
      optimize.LinearConstraint(reach, -constant, np.inf),
    ],
    options={'mip_rel_gap': 1e-9},
  )
  if found.status == 2:  # infeasible
    return np.inf
  if not found.success:
    raise ValueError(f'milp: got {found.message!r}, expected an optimum')
  return found.fun


def _l2(net: Network, image: np.ndarray, label: int, target: int) -> float:
  """Solves one target class of a linear network, likewise.

  The nearest point moves along the slope, clipped to the box: its size has one
  unknown.
  """
  slope, constant = _pair(net, label, target)

  def moved(size: float) -> np.ndarray:
    return np.clip(image + size * slope, 0, 1)

  def gap(size: float) -> float:
    return (moved(size) - 0.5) @ slope + constant

  end = 1 / np.abs(slope).min()  # every pixel is at the box's side
  if gap(end) < 0:
    return np.inf
  size = optimize.brentq(gap, 0, end, xtol=1e-14)
  return float(np.linalg.norm(moved(size) - image))


def distance(
  net: Network, image: np.ndarray, label: int, norm: str = 'linf'
) -> float:
  """Returns the distance at which a class first ties with the label.

  Args:
    net: of D inputs and K classes; in L2 a linear one.
    image: [D] in [0, 1].
    label: its class, predicted correctly.
    norm: 'linf' or 'l2'.
  """
  solve = {'linf': _linf, 'l2': _l2}[norm]
  image = np.float64(image)
  others = [k for k in range(len(net.c)) if k != label]
  return min(solve(net, image, label, target) for target in others)
