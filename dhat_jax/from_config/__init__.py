"""From a config to objects: the only package that reads configs."""
