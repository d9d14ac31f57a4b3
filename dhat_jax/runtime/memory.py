"""Memory of the process: what compilers leave behind."""

import ctypes
import pathlib
import re
import sys

import jax


def return_freed() -> None:
  """Returns memory that was freed to the system, where the C library can.

  XLA frees hundreds of MB after it compiled a network for a CPU. glibc keeps
  them, in pieces that the next compilation does not fill. Elsewhere, and for
  other devices, nothing is done.
  """
  if jax.default_backend() != 'cpu' or not sys.platform.startswith('linux'):
    return
  trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
  if trim is not None:
    trim(0)


def peak_mib() -> float | None:
  """Returns the most memory that the process has held so far, in MiB.

  It is the peak of the resident set, of Linux; None where it is not known.
  """
  if not sys.platform.startswith('linux'):
    return None
  status = pathlib.Path('/proc/self/status').read_text()
  found = re.search(r'VmHWM:\s*(\d+) kB', status)
  return int(found[1]) / 2**10 if found else None
