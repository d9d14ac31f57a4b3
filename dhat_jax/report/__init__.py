"""Reports of runs: an HTML page, figures and tables. Needs no JAX."""
