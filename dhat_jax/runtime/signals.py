"""Signals to stop: SIGTERM, SIGINT (Ctrl-C), SIGHUP (a closed terminal).

A command listens with `watched`, from before it imports JAX to its end. Code
that must not stop at any moment handles signals with `redirected`. A signal
that the process was started to ignore, as `nohup` does with SIGHUP, stays
ignored.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence

STOPPING = tuple(
  getattr(signal, name)
  for name in ('SIGTERM', 'SIGINT', 'SIGHUP')
  if hasattr(signal, name)
)

Handle = Callable[[int], None]


def exit_code(number: int | None) -> int:
  """Returns the exit code of a stopped and saved run: 0, or 128 + number.

  It is 0 for SIGTERM, since schedulers take anything else for a failure, and 0
  if another process of the run got the signal. It is 130 for Ctrl-C and 129 for
  SIGHUP, as shells expect.
  """
  return 0 if number in (None, signal.SIGTERM) else 128 + number


def _listened(numbers: Sequence[int]) -> list[int]:
  """Returns the signals that this thread can and may handle."""
  if threading.current_thread() is not threading.main_thread():
    return []
  return [
    number
    for number in numbers
    # None: a handler that is not Python's.
    if signal.getsignal(number) not in (signal.SIG_IGN, None)
  ]


@contextlib.contextmanager
def _handled(numbers: list[int], handle: Callable) -> Iterator[None]:
  """Sets Python's handlers inside the context."""
  before = {number: signal.signal(number, handle) for number in numbers}
  try:
    yield
  finally:
    for number, old in before.items():
      signal.signal(number, old)


class Watch:
  """Calls a function as soon as a signal arrives, whatever the process does.

  Python's handlers run in the main thread, once it returns from the compiler or
  the device, which may take minutes. This is a thread.

  Attributes:
    handle: the function, which gets the signal's number.
    received: the first signal that arrived, or None.
  """

  def __init__(self, handle: Handle):
    self.handle = handle
    self.received: int | None = None
    self._interrupts = 0

  def _run(self, reader: int) -> None:
    while numbers := os.read(reader, 16):
      for number in numbers:
        if number in STOPPING:
          self._act(number)
    os.close(reader)

  def _act(self, number: int) -> None:
    self.received = self.received or number
    self._interrupts += number == signal.SIGINT
    if self._interrupts > 1:
      os._exit(exit_code(signal.SIGINT))
    self.handle(number)

  @contextlib.contextmanager
  def listening(self) -> Iterator[None]:
    """Listens inside the context, in the main thread alone."""
    numbers = _listened(STOPPING)
    if not numbers:
      yield
      return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    thread = threading.Thread(target=self._run, args=(reader,), daemon=True)
    with _handled(numbers, lambda *_: None):
      old = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
      thread.start()
      try:
        yield
      finally:
        signal.set_wakeup_fd(old)
        os.close(writer)  # which ends the thread


_watch: Watch | None = None


@contextlib.contextmanager
def watched(handle: Handle) -> Iterator[Watch]:
  """Calls `handle` on every signal, at once; a second Ctrl-C ends the process.

  Args:
    handle: called with the signal's number, in another thread.

  Yields:
    The watch; its `handle` may be replaced.
  """
  global _watch
  outer, _watch = _watch, Watch(handle)
  try:
    with _watch.listening():
      yield _watch
  finally:
    _watch = outer


@contextlib.contextmanager
def redirected(
  handle: Handle, numbers: Sequence[int] = STOPPING
) -> Iterator[None]:
  """Calls another function on a signal, inside the context.

  Outside of `watched`, as in a program that uses this package as a library, a
  second Ctrl-C is a KeyboardInterrupt.

  Args:
    handle: called with the signal's number.
    numbers: the signals; `watched` uses its own.
  """
  watch = _watch
  if watch is not None:
    outer, watch.handle = watch.handle, handle
    try:
      yield
    finally:
      watch.handle = outer
    return
  interrupts = []

  def on_signal(number: int, _) -> None:
    if number == signal.SIGINT:
      interrupts.append(number)
    if len(interrupts) > 1:
      raise KeyboardInterrupt
    handle(number)

  with _handled(_listened(numbers), on_signal):
    yield
