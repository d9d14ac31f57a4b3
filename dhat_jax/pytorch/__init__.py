"""PyTorch: state dicts, networks, functions of JAX as modules and back."""
