"""Dual Head Adversarial Training (DH-AT) in JAX and Flax."""
