"""Closed-over arrays as arguments of a compiled function.

`jax.jit` would write a closed-over network's weights into the program as
constants, once per function that uses the network.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.extend as jex


def hoist(fn: Callable, *args: Any) -> tuple[Callable, list[jax.Array]]:
  """Traces fn once and turns the arrays that it closes over into arguments.

  Arrays inside a function that is itself jitted stay there.

  Args:
    fn: trees of arrays -> tree of arrays.
    *args: its arguments, or others of the same shapes.

  Returns:
    run(consts, *args), which computes fn(*args), for `jax.jit` or `jax.pmap`;
    and consts.
  """
  closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
  jaxpr, structure = closed.jaxpr, jax.tree.structure(shapes)

  def run(consts, *args):
    evaluate = jex.core.jaxpr_as_fun(jex.core.ClosedJaxpr(jaxpr, consts))
    return jax.tree.unflatten(structure, evaluate(*jax.tree.leaves(args)))

  return run, closed.consts
