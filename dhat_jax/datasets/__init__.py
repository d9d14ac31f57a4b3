"""Image data sets: uint8 NHWC images and int32 labels in memory.

`loaders` names them; each gives a `base.Source`, which loads a `base.Dataset`.
"""
