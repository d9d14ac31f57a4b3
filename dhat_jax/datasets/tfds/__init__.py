"""Data sets of TFDS, read and prepared without TensorFlow."""

# What a folder that TFDS has prepared holds.
INFO_FILE = 'dataset_info.json'
