"""A run to look at: one HTML page, its figures and its tables. Needs no JAX."""
