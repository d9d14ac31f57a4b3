"""Requests to stop, on any host of the run; see `signals`."""

import contextlib
import itertools
import os
import signal
from collections.abc import Iterator

from dhat_jax.runtime import processes, signals

# Of all stages and evaluations of this process: where several processes agree
# on a call to stop at, its number must not come twice.
_calls = itertools.count(1)


class Preempted(Exception):
  """The run was asked to stop, and its state is saved."""


def forward(number: int) -> None:
  """Turns a signal into SIGTERM, which JAX's distributed runtime handles.

  It tells the other processes.
  """
  if number != signal.SIGTERM:
    os.kill(os.getpid(), signal.SIGTERM)


class StopRequest:
  """Turns signals into a request that all processes see at the same step.

  Attributes:
    requested: whether the run should stop as soon as it is saved.
  """

  def __init__(self):
    self.requested = False

  def _handle(self, number: int) -> None:
    if processes.process_count() > 1:
      forward(number)
    else:
      self.requested = True

  @contextlib.contextmanager
  def listening(self) -> Iterator[None]:
    """Listens inside the context."""
    # Where there are several processes, JAX's runtime has SIGTERM.
    numbers = [
      number
      for number in signals.STOPPING
      if number != signal.SIGTERM or processes.process_count() == 1
    ]
    with signals.redirected(self._handle, numbers):
      yield

  def ask(self) -> bool:
    """Returns `requested`; every process calls it once after every step."""
    self.requested |= processes.stops_at(next(_calls))
    return self.requested


def stop_here(where: str) -> None:
  """Stops a run of several processes here if one was asked to stop.

  Every process calls it at the same places, where all finished work is saved. A
  single process need not wait for such a place.

  Args:
    where: the place, for the message.

  Raises:
    Preempted: in all processes, at the same call.
  """
  if processes.stops_at(next(_calls)):
    raise Preempted(where)
