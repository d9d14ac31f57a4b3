"""PyTorch: state dicts in and out, its networks, ours as its modules."""
