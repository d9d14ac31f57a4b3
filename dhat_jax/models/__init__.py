"""Flax modules: backbones in two parts, aggregators, the dual-head network."""
