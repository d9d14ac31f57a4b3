"""Devices, processes, files and the command line."""
