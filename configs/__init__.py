"""Configs of experiments: plain data, one file per data set."""
