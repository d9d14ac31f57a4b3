"""Image datasets: uint8 NHWC images and int32 labels in memory."""
