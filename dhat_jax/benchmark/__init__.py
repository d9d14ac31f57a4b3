"""Speed, measured side by side: `python -m dhat_jax.benchmark --help`."""
