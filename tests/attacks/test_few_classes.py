"""Two and three classes: the margin against the exact minimum, at any scale."""

import functools

import jax
import numpy as np
import pytest

from dhat_jax.attacks import apgd
from experiments import exact_minima, few_classes

# (classes, norm, hidden units)
CASES = [(2, 'l2', 0), (3, 'linf', 6)]


@functools.cache
def problem_of(classes, norm, hidden):
  """A random network of 16 pixels, and 16 images with their minima."""
  net = exact_minima.make_network(3, inputs=16, hidden=hidden, classes=classes)
  pixels = np.random.default_rng(4).uniform(size=(16, 16)).astype(np.float32)
  return few_classes.with_minima(net, pixels, norm)


@functools.cache
def attack_of(norm):
  """APGD on targeted DLR; each image has its own radius and target."""

  def one(net, factor, image, label, target, index, epsilon):
    robust, images_adv = apgd.apgd(
      lambda points: factor * exact_minima.logits_of(net, points),
      image[None],
      label[None],
      jax.random.key(0, impl='threefry2x32'),
      loss='targeted_dlr',
      targets=target[None],
      epsilon=epsilon,
      norm=norm,
      indices=index[None],
    )
    return robust[0], images_adv[0]

  return jax.jit(jax.vmap(one, (None, None, 0, 0, 0, 0, 0)))


def attack(case, share, factor=1.0):
  """Attacks at a share of the minima, towards each other class: [K - 1, N]."""
  net, images, labels, minima = problem_of(*case)
  runs = [
    attack_of(case[1])(
      net,
      np.float32(factor),
      images,
      labels,
      (labels + shift) % case[0],
      np.arange(len(labels)),
      np.float32(share * minima),
    )
    for shift in range(1, case[0])
  ]
  return tuple(np.stack(parts) for parts in zip(*runs, strict=True))


@pytest.mark.parametrize(('case', 'gap'), [(CASES[0], 1.01), (CASES[1], 1.05)])
def test_images_break_from_their_exact_minimum_on(case, gap):
  assert attack(case, 0.999)[0].all()
  found = ~attack(case, gap)[0].all(axis=0)
  assert found.mean() >= (1 if case[0] == 2 else 0.9)


@pytest.mark.parametrize('case', CASES)
def test_the_margin_does_not_depend_on_the_scale_of_logits(case):
  share = 1.001 if case[0] == 2 else 1.05
  robust, images_adv = attack(case, share)
  for factor in (2.0**-10, 2.0**10):  # exact: bit for bit
    scaled = attack(case, share, factor)
    np.testing.assert_array_equal(scaled[0], robust)
    np.testing.assert_array_equal(scaled[1], images_adv)
  for factor in (1e-3, 1e3):
    np.testing.assert_array_equal(attack(case, share, factor)[0], robust)


def test_the_exact_minimum_by_hand():
  # One pixel: relu(4 (x - .5) + 1) against 2; they tie at x = .75.
  net = exact_minima.Network(
    w=np.float32([[4]]),
    b=np.float32([1]),
    v=np.float32([[0, 1]]),
    c=np.float32([2, 0]),
  )
  assert exact_minima.distance(net, np.array([0.2]), 0) == pytest.approx(0.55)
  assert exact_minima.distance(net, np.array([1.0]), 1) == pytest.approx(0.25)
  # A third class that nothing reaches changes nothing.
  net = net._replace(v=np.float32([[0, 1, 0]]), c=np.float32([2, 0, 1]))
  assert exact_minima.distance(net, np.array([0.2]), 0) == pytest.approx(0.55)
  low = net._replace(c=np.float32([9, 0, 1]))
  assert exact_minima.distance(low, np.array([0.2]), 0) == np.inf


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_the_exact_minimum_of_linear_networks(norm):
  """Far from the box's sides it is the gap over the dual norm of the slope."""
  net = exact_minima.make_network(0, inputs=16, hidden=0, classes=3)
  image = np.full(16, 0.5) + 0.01 * np.arange(16) / 16
  logits = exact_minima.logits_of(net, image[None])[0]
  label = int(logits.argmax())
  dual = {'linf': 1, 'l2': 2}[norm]
  slopes = np.delete(net.v[:, [label]] - net.v, label, axis=1)
  gaps = np.delete(logits[label] - logits, label)
  expected = min(gaps / np.linalg.norm(slopes, dual, axis=0))
  assert expected < 0.3  # inside the box
  assert exact_minima.distance(net, image, label, norm) == pytest.approx(
    expected, rel=1e-5
  )
