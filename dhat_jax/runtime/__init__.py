"""Devices, processes, files, the command line: what everything rests on."""
