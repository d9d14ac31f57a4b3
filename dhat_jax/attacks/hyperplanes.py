"""Nearest points of a hyperplane within the box [0, 1]^D, in Linf and L2.

The reference sorts all coordinates by the length at which they meet the box,
and finds the segment of the piecewise linear problem by binary search. Here
Newton's method finds the same root. On a concave, piecewise linear function it
climbs from the left, and stops exactly after a few steps. It needs no sorting,
and the result is the same up to rounding.
"""

import chex
import jax
import jax.numpy as jnp


def _solve(
  weights: chex.Array, limits: chex.Array, totals: chex.Array
) -> chex.Array:
  """Finds x >= 0 with sum_i weights_i min(x, limits_i) = total.

  Args:
    weights: float [B, D], not negative.
    limits: float [B, D], not negative.
    totals: float [B], not negative.

  Returns:
    float [B]; infinite where even the limits do not add up to the total.
  """

  def climb(carry):
    lengths, _ = carry
    free = limits > lengths[:, None]
    slopes = jnp.sum(jnp.where(free, weights, 0.0), axis=1)
    reached = jnp.sum(jnp.where(free, 0.0, weights * limits), axis=1)
    missing = totals - reached
    # Nothing left that could move: infeasible, unless rounding says so.
    roots = jnp.where(
      slopes > 0,
      missing / jnp.where(slopes > 0, slopes, 1.0),
      jnp.where(missing > 0, jnp.inf, lengths),
    )
    return jnp.maximum(roots, lengths), roots > lengths

  # Unrolled once: no coordinate is at its limit for small totals.
  start = climb((jnp.zeros_like(totals), None))
  return jax.lax.while_loop(lambda carry: jnp.any(carry[1]), climb, start)[0]


def project_linf(
  points: chex.Array, normals: chex.Array, offsets: chex.Array
) -> chex.Array:
  """Smallest Linf step from each point to its hyperplane within the box.

  Args:
    points: float [B, D] in [0, 1].
    normals: float [B, D], w of the hyperplane {u : w . u = b}.
    offsets: float [B], b.

  Returns:
    float [B, D], steps: all coordinates move by the same length towards the
    plane, or as far as the box allows. Where the plane does not meet the box,
    it is the step to the box's nearest corner; where w = 0, there is no step.
  """
  gaps = jnp.sum(normals * points, axis=1) - offsets  # [B]
  # Downwards along w above the plane, upwards below it.
  directions = -jnp.sign(normals) * jnp.where(gaps >= 0, 1.0, -1.0)[:, None]
  room = jnp.where(directions > 0, 1.0 - points, points)
  lengths = _solve(jnp.abs(normals), room, jnp.abs(gaps))
  return directions * jnp.minimum(lengths[:, None], room)


def project_l2(
  points: chex.Array, normals: chex.Array, offsets: chex.Array
) -> chex.Array:
  """Smallest L2 step from each point to its hyperplane within the box.

  Args:
    points: float [B, D] in [0, 1].
    normals: float [B, D], w of the hyperplane {u : w . u = b}.
    offsets: float [B], b.

  Returns:
    float [B, D], steps along -w or w, clipped to the box. Coordinates with
    |w| <= 1e-8 never move, as in the reference.
  """
  gaps = jnp.sum(normals * points, axis=1) - offsets  # [B]
  downhill = -normals * jnp.where(gaps >= 0, 1.0, -1.0)[:, None]
  moves = jnp.abs(normals) > 1e-8
  room = jnp.where(downhill > 0, 1.0 - points, points)
  limits = jnp.where(
    moves, room / jnp.where(moves, jnp.abs(normals), 1.0), 1e12
  )
  limits = jnp.minimum(limits, 1e12)
  lengths = _solve(normals**2, limits, jnp.abs(gaps))
  steps = downhill * jnp.minimum(lengths[:, None], limits)
  return jnp.where(moves, steps, 0.0)
