"""Data sets of TFDS, read and prepared without TensorFlow."""
