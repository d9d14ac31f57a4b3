"""Which images are right, as short text in JSON."""

import numpy as np


def pack(flags: np.ndarray) -> str:
  """Returns booleans [N] as text: '<N>:<hex digits>'."""
  return f'{len(flags)}:{np.packbits(flags).tobytes().hex()}'


def unpack(text: str) -> np.ndarray:
  """Returns the booleans of a text of `pack`: bool [N]."""
  count, _, digits = text.partition(':')
  packed = np.frombuffer(bytes.fromhex(digits), np.uint8)
  return np.unpackbits(packed, count=int(count)).astype(bool)
