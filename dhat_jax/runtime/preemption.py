"""Asked to stop: SIGTERM, here or on any other host of the run."""

import contextlib
import signal
from collections.abc import Callable, Iterator

from dhat_jax.runtime import processes


class Preempted(Exception):
  """The run was asked to stop, and its state is saved."""


@contextlib.contextmanager
def _on_sigterm(handle: Callable) -> Iterator[None]:
  """Calls `handle` on SIGTERM, where this process may listen for it.

  Where there are several processes, JAX's distributed runtime listens.
  """
  if processes.process_count() > 1:
    yield
    return
  try:
    old = signal.signal(signal.SIGTERM, handle)
  except ValueError:  # not the main thread, which alone gets signals
    yield
    return
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, old)


class StopRequest:
  """Turns SIGTERM into an answer that all processes get at the same step.

  Attributes:
    requested: whether the run is to stop as soon as it is saved.
  """

  def __init__(self):
    self.requested = False
    self._calls = 0

  def _handle(self, *_):
    self.requested = True

  @contextlib.contextmanager
  def listening(self) -> Iterator[None]:
    """Listens inside the context."""
    with _on_sigterm(self._handle):
      yield

  def ask(self) -> bool:
    """Returns `requested`; every process calls it once after every step."""
    self._calls += 1
    self.requested |= processes.stops_at(self._calls)
    return self.requested
