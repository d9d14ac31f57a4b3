"""PyTorch: state dicts, networks, and JAX functions as modules."""
