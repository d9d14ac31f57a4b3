"""Image data sets: uint8 NHWC images and int32 labels in memory.

A module's `load` gives a `base.Dataset`; `dhat_jax.build` names them.
"""
