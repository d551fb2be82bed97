"""Devices, process groups, the layout of layers over stages, and chunks of the sequence."""
