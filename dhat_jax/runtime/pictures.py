"""Images with any number of channels as pictures."""

import numpy as np


def rgb(images: np.ndarray) -> np.ndarray:
  """Returns images as red, green and blue.

  Args:
    images: float [..., C].

  Returns:
    float [..., 3]: colours are unchanged; other numbers of channels become
    their mean, as grey.
  """
  if images.shape[-1] == 3:
    return images
  gray = images.mean(axis=-1, keepdims=True)
  return np.repeat(gray, 3, axis=-1)
